/** A process that is asked by a line of JSON and answers with another. What the lines say is its callers'. */

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

/** A process gives no answers any more; the message says which and why. */
export class Gone extends Error {}

export class LineProcess {
  name;
  #process;
  #answers;
  #exited;

  /** @param name what errors call it */
  constructor(name, command, args) {
    this.name = name;
    this.#process = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.#answers = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
    // A closed pipe shows as the end of the answers, with the reason from here.
    this.#process.stdin.on("error", () => {});
    this.#exited = new Promise((resolve) => {
      this.#process.on("error", (error) => resolve(error.message));
      this.#process.on("exit", (code, signal) => resolve(`it ended with ${signal ?? code}`));
    });
  }

  /** @throws Gone */
  ask(request) {
    this.#process.stdin.write(`${JSON.stringify(request)}\n`);
    return this.answer();
  }

  /** The next line, for processes that speak first. @throws Gone */
  async answer() {
    const { value, done } = await this.#answers.next();
    if (done) throw new Gone(`${this.name} is gone: ${await this.#exited}.`);
    return JSON.parse(value);
  }

  /** Closes its input, and waits until it has ended. */
  async end() {
    this.#process.stdin.end();
    await this.#exited;
  }
}
