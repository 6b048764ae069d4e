/** The peers' process (bench/peers/worker.py): what it is asked to do, and what it says went wrong. */

import { fileURLToPath } from "node:url";
import { Gone, LineProcess } from "../line-process.mjs";
import { Refused } from "./options.mjs";

const WORKER = fileURLToPath(new URL("../peers/worker.py", import.meta.url));

export class Peers {
  #process;

  constructor(python) {
    this.#process = new LineProcess("The peers' process", python, [WORKER]);
  }

  /** @throws Error with what the worker says went wrong, Refused if the process is not there */
  async ask(what, request = {}) {
    const answer = await this.#process.ask({ do: what, ...request }).catch((error) => {
      if (!(error instanceof Gone)) throw error;
      throw new Refused(`${error.message} It needs Python with PyTorch and Triton (--python).`);
    });
    if (answer.error !== undefined) throw new Error(`peers, ${what}: ${answer.error}`);
    return answer;
  }

  close() {
    return this.#process.end();
  }
}
