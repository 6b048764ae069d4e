/**
 * Runs forward passes on a tiny layer and prints, as JSON, what the device and the
 * process held before and after each window of them. A program of its own, because
 * growth of a few bytes a step shows only where the engine holds still:
 * memory.test.ts starts it with the flags for that.
 */

import { getHeapSpaceStatistics } from "node:v8";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { openCpu } from "./device.ts";
import { collectGarbage } from "./garbage.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "./layers.ts";
import { normal, randomFor } from "./seed.ts";

/** Sizes in turn, so that several token buckets, graphs and buffer sizes take part. */
const TOKENS = [1, 5, 16, 2, 0, 33];
const HIDDEN = 8;
/** By then the profiler's window is full and everything has run many times. */
const WARMUP = 600;
const WINDOWS = 5;
/** A multiple of the number of sizes, so that windows begin and end alike. */
const STEPS_PER_WINDOW = 402;
const GRAPHS = 4;

const device = await openCpu(2);
const before = device.memory();
const random = randomFor("steady state");
const base = plainSpec(HIDDEN, 6, 4, 2, {
  shared: { experts: gatedExperts(HIDDEN, 5), gate: true },
});
const spec = { ...base, router: { ...base.router, capacityFactor: 1 } };
const { tensors } = randomLayer(random, spec);
const layer = new MoELayer(spec, tensors, { device, graphs: { capacity: GRAPHS } });
const inputs = TOKENS.map((tokens) => batch(normal(random, tokens * HIDDEN), HIDDEN));

async function run(steps: number): Promise<void> {
  for (let i = 0; i < steps; i++) {
    const input = inputs[i % inputs.length] as (typeof inputs)[number];
    await layer.forward(input, { routing: true });
  }
}

/** Bytes in use when the garbage is gone; compiled code left out. */
function reading() {
  collectGarbage();
  const { external, arrayBuffers, rss, heapTotal } = process.memoryUsage();
  const heap = getHeapSpaceStatistics()
    .filter(({ space_name }) => !space_name.includes("code"))
    .reduce((sum, space) => sum + space.space_used_size, 0);
  const { usedBytes, peakBytes, allocations } = device.memory();
  return {
    heap,
    external: external + arrayBuffers,
    resident: rss - heapTotal,
    device: { usedBytes, peakBytes, allocations },
  };
}

await run(WARMUP);
const readings = [reading()];
for (let i = 0; i < WINDOWS; i++) {
  await run(STEPS_PER_WINDOW);
  readings.push(reading());
}
const statistics = await layer.statistics();
await layer.close();
const after = device.memory();
await device.close();

const report = { before, after, readings, statistics, stepsPerWindow: STEPS_PER_WINDOW };
console.log(JSON.stringify(report));

export type SteadyState = typeof report;
