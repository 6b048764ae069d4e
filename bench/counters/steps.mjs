/**
 * Runs one whole step of every cell, from router logits to the output, for a profiler to look at.
 * Measures nothing itself.
 *
 *   node bench/counters/steps.mjs SHAPE:TOKENS:ROUTING...
 *
 * Launched eagerly, so that every kernel is seen. Cells of a shape that follow each other share its
 * weights. Prints the device as JSON.
 */

import {
  BareStep,
  ExpertPopularity,
  makeLogits,
  oneLane,
  openDevice,
  parseSkew,
  presetOf,
  Random,
  summaryOf,
  syntheticLayer,
} from "../gpu/support.mjs";
import { parseCell } from "./cells.mjs";

const SEED = 1;

/** One step of made-up hidden states; the weights are random, too, as what a card draws depends on them. */
async function runStep({ layer, spec }, { tokens, routing }) {
  const random = new Random(SEED);
  const { experts, topK } = spec.router;
  const options = { tokens, fromLogits: true, outputType: "bfloat16" };
  const step = new BareStep(layer, oneLane(layer), options);
  const shape = [tokens, spec.hiddenSize];
  const data = random.fillNormal(new Float32Array(tokens * spec.hiddenSize));
  await step.write({ dtype: "float32", shape, data });
  const popularity = ExpertPopularity.draw(parseSkew(routing), experts, random);
  step.writeLogits(makeLogits(popularity, tokens, random));
  await step.run();
  const { data: bits } = await step.output();
  step[Symbol.dispose]();
  // Exponents of all ones: not finite.
  const broken = bits.findIndex((value) => (value & 0x7f80) === 0x7f80);
  if (broken >= 0 || !bits.some((value) => value !== 0)) {
    throw new Error(`${tokens} tokens, ${topK} of ${experts} experts: the output is no layer's`);
  }
}

const device = await openDevice({ kind: "cuda" });
let synthetic;
let loaded;
for (const cell of process.argv.slice(2).map(parseCell)) {
  if (cell.shape !== loaded) {
    // The profiler keeps a copy of all memory that kernels may reach: no more of it than is needed.
    synthetic?.modules[Symbol.dispose]();
    synthetic = await syntheticLayer(device, presetOf(cell.shape), SEED);
    loaded = cell.shape;
  }
  await runStep(synthetic, cell);
}
synthetic?.modules[Symbol.dispose]();
console.log(JSON.stringify(await summaryOf(device)));
await device.close();
