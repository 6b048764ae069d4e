/** The peers' process (bench/peers/worker.py): requests and answers, a JSON line each. */

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Refused } from "./options.mjs";

const WORKER = fileURLToPath(new URL("../peers/worker.py", import.meta.url));

export class Peers {
  #process;
  #answers;
  #exited;

  constructor(python) {
    this.#process = spawn(python, [WORKER], { stdio: ["pipe", "pipe", "inherit"] });
    this.#answers = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
    // A closed pipe shows as the end of the answers, with the reason from here.
    this.#process.stdin.on("error", () => {});
    this.#exited = new Promise((resolve) => {
      this.#process.on("error", (error) => resolve(error.message));
      this.#process.on("exit", (code, signal) => resolve(`it ended with ${signal ?? code}`));
    });
  }

  /** @throws Error with what the worker says went wrong, Refused if the process is not there */
  async ask(what, request = {}) {
    this.#process.stdin.write(`${JSON.stringify({ do: what, ...request })}\n`);
    const { value, done } = await this.#answers.next();
    if (done) {
      const why = await this.#exited;
      throw new Refused(
        `The peers' process is gone: ${why}. It needs Python with PyTorch and Triton (--python).`,
      );
    }
    const answer = JSON.parse(value);
    if (answer.error !== undefined) throw new Error(`peers, ${what}: ${answer.error}`);
    return answer;
  }

  async close() {
    this.#process.stdin.end(`${JSON.stringify({ do: "quit" })}\n`);
    await this.#exited;
  }
}
