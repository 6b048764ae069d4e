/**
 * Routes a batch of random logits once per size, as a layer does, for a profiler to look at.
 * Measures nothing itself.
 *
 *   node bench/traffic/route.mjs EXPERTS:TOP_K:TOKENS...
 *
 * Launched eagerly, so that every kernel is seen: `route`, and `bucket` with the work lists of one
 * lane. Prints the device as JSON.
 */

import {
  BareStep,
  ExpertPopularity,
  makeLogits,
  oneLane,
  openDevice,
  parseSkew,
  Random,
  StepStreams,
  summaryOf,
  syntheticLayer,
} from "../gpu/support.mjs";

const SEED = 1;
/** Experts are not run: they are as small as they can be. */
const WIDTH = 64;

const device = await openDevice({ kind: "cuda" });
const random = new Random(SEED);
for (const size of process.argv.slice(2)) {
  const [experts, topK, tokens] = size.split(":").map(Number);
  const shape = { hiddenSize: WIDTH, intermediateSize: WIDTH, experts, topK, renormalize: true };
  const { layer, modules } = await syntheticLayer(device, shape, SEED);
  const streams = new StepStreams(device, oneLane(layer));
  const step = new BareStep(layer, oneLane(layer), { tokens, fromLogits: true, streams });
  const popularity = ExpertPopularity.draw(parseSkew("uniform"), experts, random);
  step.writeLogits(makeLogits(popularity, tokens, random));
  const scope = { mostTokens: tokens, lanes: 1 };
  modules.parts.routing.fromLogits.record(streams.main, step.buffers, scope);
  await device.synchronize();
  const routed = (await step.counts()).reduce((sum, count) => sum + count, 0);
  if (routed !== tokens * topK) throw new Error(`${size}: ${routed} slots were routed`);
  step[Symbol.dispose]();
  streams[Symbol.dispose]();
  modules[Symbol.dispose]();
}
console.log(JSON.stringify(await summaryOf(device)));
await device.close();
