/**
 * A contender that runs in Node: Nexus, or ONNX Runtime with a model in the layer's folder. The
 * protocol is in contenders.mjs.
 *
 *   node serve.mjs FOLDER nexus
 *   node serve.mjs FOLDER onnxruntime MODEL
 */

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { createInterface } from "node:readline";

const [folder, library, model] = process.argv.slice(2);
const layer = JSON.parse(readFileSync(path.join(folder, "layer.json"), "utf8"));

/** Each gives its versions, batches in the form that it wants, and a step from one to the output. */
const LIBRARIES = {
  async nexus() {
    const { MoELayer, openDevice } = await import("../../dist/src/index.js");
    const { layerSpecOf } = await import("../../dist/src/workload/presets.js");
    const { RandomLayer } = await import("../../dist/src/workload/random-layer.js");
    const device = await openDevice({ kind: "cpu", threads: layer.threads });
    const weights = new RandomLayer(layer, "float32", layer.seed);
    const moe = await new MoELayer(layerSpecOf(layer, "float32"), weights, { device }).ready();
    return {
      versions: { nexusKernels: device.properties.features.join(", ") },
      batch: (hidden, logits) => ({ hidden, logits }),
      step: async ({ hidden, logits }) => (await moe.forward(hidden, { logits })).output.data,
      close: () => moe.close().then(() => device.close()),
    };
  },

  async onnxruntime() {
    // By `require`, which also looks where NODE_PATH says.
    const require = createRequire(import.meta.url);
    const { env, InferenceSession, Tensor } = require("onnxruntime-node");
    const session = await InferenceSession.create(path.join(folder, model), {
      executionProviders: ["cpu"],
      executionMode: "sequential",
      graphOptimizationLevel: "all",
      intraOpNumThreads: layer.threads,
      interOpNumThreads: 1,
    });
    const tensor = ({ data, shape }) => new Tensor("float32", data, shape);
    return {
      versions: { onnxruntime: env.versions.node },
      batch: (hidden, logits) => ({ hidden: tensor(hidden), logits: tensor(logits) }),
      step: async (inputs) => (await session.run(inputs)).output.data,
      close: () => session.release(),
    };
  },
};

const answer = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

let contender;
try {
  contender = await LIBRARIES[library]();
} catch (error) {
  answer({ unavailable: error.message });
  process.exit(0);
}
const { versions, batch, step, close } = contender;
answer({ versions });

let batches = [];
for await (const line of createInterface({ input: process.stdin })) {
  const { load, tokens, output, calls, first } = JSON.parse(line);
  if (load !== undefined) {
    batches = load.map((file) => readBatch(file, tokens));
    answer({});
  } else if (output !== undefined) {
    writeFileSync(output, await step(batches[0]));
    answer({});
  } else {
    await step(batches.at(first - 1));
    const us = [];
    for (let i = 0; i < calls; i++) {
      const began = performance.now();
      await step(batches[(first + i) % batches.length]);
      us.push((performance.now() - began) * 1e3);
    }
    answer({ us });
  }
}
await close();

function readBatch(file, tokens) {
  const values = new Float32Array(new Uint8Array(readFileSync(file)).buffer);
  const rows = (data, width) => ({ data, shape: [tokens, width] });
  const { hiddenSize, experts } = layer;
  const split = tokens * hiddenSize;
  return batch(rows(values.slice(0, split), hiddenSize), rows(values.slice(split), experts));
}
