/**
 * The contenders as processes: started with a layer's folder, asked one thing at a time by a line
 * of JSON, answering with another.
 *
 *   { load: [file...], tokens }   reads batches                       -> {}
 *   { output: file }              writes the output of the first one  -> {}
 *   { calls, first }              runs batches in turn, after one call that is not timed,
 *                                 which wakes the threads             -> { us: [...] }
 *
 * The first line, once the weights are loaded, is { versions } or { unavailable: why }.
 */

import { spawn, spawnSync } from "node:child_process";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));

class Contender {
  name;
  versions;
  #process;
  #lines;

  /** @throws Error saying why it cannot run here */
  static async start(name, command, args) {
    const it = new Contender();
    it.name = name;
    it.#process = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
    const failed = new Promise((_, reject) => it.#process.once("error", reject));
    it.#lines = createInterface({ input: it.#process.stdout })[Symbol.asyncIterator]();
    const { versions, unavailable } = await Promise.race([it.#answer(), failed]);
    if (unavailable !== undefined) throw new Error(unavailable);
    it.versions = versions;
    return it;
  }

  ask(request) {
    this.#process.stdin.write(`${JSON.stringify(request)}\n`);
    return this.#answer();
  }

  end() {
    this.#process.stdin.end();
  }

  async #answer() {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`${this.name} ended without an answer`);
    return JSON.parse(value);
  }
}

/** Starts all that can run here, Nexus first. */
export async function startContenders(folder, python) {
  const serve = (...args) => [process.execPath, [path.join(here, "serve.mjs"), folder, ...args]];
  const loop = (library) => [python, [path.join(here, "serve.py"), folder, library]];
  const commands = {
    nexus: serve("nexus"),
    "onnxruntime moe": serve("onnxruntime", "moe.onnx"),
    "onnxruntime graph": serve("onnxruntime", "graph.onnx"),
    openblas: loop("numpy"),
    pytorch: loop("torch"),
  };
  const leftOut = {};
  const models = spawnSync(python, [path.join(here, "onnx_models.py"), folder], {
    encoding: "utf8",
  });
  const noModels = models.status === 0 ? undefined : (models.error?.message ?? models.stderr);
  const contenders = [];
  for (const [name, [command, args]] of Object.entries(commands)) {
    try {
      if (name.startsWith("onnxruntime") && noModels !== undefined) throw new Error(noModels);
      contenders.push(await Contender.start(name, command, args));
    } catch (error) {
      if (name === "nexus") throw error;
      leftOut[name] = error.message.trim().split("\n").at(-1);
    }
  }
  return { contenders, leftOut };
}
