/**
 * A process of its own, for what must not happen in the tests' process. Prints one
 * line of JSON for each thing that happens.
 *
 *   child.js open     opens the device, runs a small layer and says how it went
 *   child.js auto     says which kind of device is opened where any will do
 *   child.js replay   says when it replays a graph, and goes on until it is killed
 */

import { NexusError } from "../../src/errors.ts";
import { openDevice } from "../../src/execution/open.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { layerSpecOf } from "../../src/workload/presets.ts";
import { RandomLayer } from "../../src/workload/random-layer.ts";

const SHAPE = { hiddenSize: 256, intermediateSize: 128, experts: 16, topK: 2, renormalize: true };
const TOKENS = 64;

function say(what: object): void {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

async function run(forever: boolean): Promise<void> {
  await using device = await openDevice({ kind: "cuda" });
  const spec = layerSpecOf(SHAPE, "bfloat16");
  await using layer = new MoELayer(spec, new RandomLayer(SHAPE, "bfloat16", 1), { device });
  const data = Float32Array.from({ length: TOKENS * SHAPE.hiddenSize }, (_, i) => Math.sin(i));
  const hidden = { data, shape: [TOKENS, SHAPE.hiddenSize] };
  let last = await layer.forward(hidden);
  while (last.stats.mode !== "replayed") last = await layer.forward(hidden);
  say({ replaying: true });
  while (forever) await layer.forward(hidden);
  say({ finite: last.output.data.every(Number.isFinite) });
}

async function choose(): Promise<void> {
  await using device = await openDevice();
  say({ kind: device.properties.kind });
}

try {
  if (process.argv[2] === "auto") await choose();
  else await run(process.argv[2] === "replay");
} catch (error) {
  if (!(error instanceof NexusError)) throw error;
  say({ error: error.name, code: error.code, message: error.message });
}
