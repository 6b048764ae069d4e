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

import { spawnSync } from "node:child_process";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { LineProcess } from "../line-process.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));

class Contender extends LineProcess {
  versions;

  /** @throws Error saying why it cannot run here */
  static async start(name, command, args) {
    const it = new Contender(name, command, args);
    const { versions, unavailable } = await it.answer();
    if (unavailable !== undefined) throw new Error(unavailable);
    it.versions = versions;
    return it;
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
