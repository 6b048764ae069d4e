/**
 * Many replays with changing routing, of host tensors and of tensors that stay on the device, and many openings of
 * the device: memory stays as it is, on the card and in the process, and outputs do not drift. NEXUS_REPLAYS
 * sets how many replays.
 */

import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { median } from "../../src/cli/statistics.ts";
import type { Device } from "../../src/execution/device.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import type { TensorData } from "../../src/tensor.ts";
import { layerSpecOf } from "../../src/workload/presets.ts";
import { FilledLayer } from "../../src/workload/random-layer.ts";
import { collectGarbage } from "../support/garbage.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { tensorOf } from "../support/tensors.ts";
import { freeDeviceBytes } from "./free-memory.ts";
import { gpuTest, openGpu } from "./gpu.ts";

const REPLAYS = Number(process.env["NEXUS_REPLAYS"] ?? 20_000);
if (!Number.isInteger(REPLAYS) || REPLAYS < 100) {
  throw new Error(
    `NEXUS_REPLAYS is ${process.env["NEXUS_REPLAYS"]}; give a number of 100 or more.`,
  );
}
const OPENINGS = 20;
const HIDDEN = 64;
const TOKENS = 24;
/** 75 MB of experts, more than the L2 holds: packed weights are read. */
const LARGE = { hiddenSize: 1024, intermediateSize: 768, experts: 16, topK: 2, renormalize: true };
/** As many as the buffers have room for: replays read them where they are. */
const FULL_TOKENS = 32;
const BATCHES = 16;
/** Lanes change their order every few hundred steps, and each order has a graph of its own. */
const WARM_UP = 1200;
/** What live objects, and native memory that they hold, may grow by after that: noise of the collector. */
const LIVE_BYTES = 4 << 20;
/** Parts of the replays, of as many each. */
const WINDOWS = 5;
/**
 * What the process may grow by in half of the replays, going by the median window. The engine settles on the
 * sizes of its heap in one or two of them, which takes it up to 100 MB whether there is a GPU or not; what
 * every replay leaves behind shows in all.
 */
const PROCESS_BYTES = 24 << 20;
/** How often the output of a batch is held against its first. */
const CHECK_EVERY = 97;

// One lane layout and fixed slices: the one graph that steps replay is never left.
const OPTIONS = { streams: 1, slices: { policy: "static" } } as const;

gpuTest(`${REPLAYS} replays with changing routing`, async (device, t) => {
  const random = randomFor("gpu endurance");
  const spec = {
    ...plainSpec(HIDDEN, 48, 16, 4),
    experts: gatedExperts(HIDDEN, 48, { dtype: "bfloat16" }),
  };
  const { tensors } = randomLayer(random, spec);
  await using layer = new MoELayer(spec, tensors, { device, ...OPTIONS });
  const inputs = Array.from({ length: BATCHES }, () =>
    batch(normal(random, TOKENS * HIDDEN), HIDDEN),
  );
  await endure(device, t, layer, async (i) => {
    const { output } = await layer.forward(inputs[i % BATCHES] as (typeof inputs)[number]);
    return output.data;
  });
});

gpuTest(`${REPLAYS} replays on the device, with packed weights beside`, async (device, t) => {
  const { packsWeights } = device.properties;
  if (!packsWeights.available) return t.skip(packsWeights.reason);
  const random = randomFor("gpu endurance, packed");
  const { hiddenSize } = LARGE;
  const weights = new FilledLayer(LARGE, "bfloat16", 5);
  const options = { device, packWeights: "beside", ...OPTIONS } as const;
  await using layer = new MoELayer(layerSpecOf(LARGE, "bfloat16"), weights, options);
  const shape = [FULL_TOKENS, hiddenSize];
  const inputs = Array.from({ length: BATCHES }, () => {
    const values = normal(random, FULL_TOKENS * hiddenSize);
    return DeviceTensor.fromHost(device, tensorOf(values, shape, "bfloat16"));
  });
  await endure(device, t, layer, async (i, wanted) => {
    const { output } = await layer.forward(inputs[i % BATCHES] as DeviceTensor);
    const data = wanted ? (await output.toHost()).data : undefined;
    output[Symbol.dispose]();
    return data;
  });
  for (const input of inputs) input[Symbol.dispose]();
});

/**
 * Steps without end, as far as memory and outputs can tell.
 *
 * @param step runs batch `i % BATCHES`, and brings its output if that is wanted
 */
async function endure(
  device: Device,
  t: TestContext,
  layer: MoELayer,
  step: (i: number, wanted: boolean) => Promise<TensorData | undefined>,
): Promise<void> {
  const reading = () => {
    collectGarbage();
    const { usedBytes, allocations } = device.memory();
    const { rss, heapUsed, external } = process.memoryUsage();
    return { usedBytes, allocations, free: freeDeviceBytes(), rss, live: heapUsed + external };
  };

  const first: (TensorData | undefined)[] = [];
  for (let i = 0; i < WARM_UP; i++) {
    const output = await step(i, i < BATCHES);
    if (i < BATCHES) first.push(output);
  }
  const before = reading();
  const statistics = await layer.statistics();
  const started = performance.now();
  let after = before;
  const growth: number[] = [];
  for (let window = 0, i = 0; window < WINDOWS; window++) {
    for (; i < ((window + 1) * REPLAYS) / WINDOWS; i++) {
      const checked = i % CHECK_EVERY === 0;
      const output = await step(i, checked);
      if (checked) assert.deepEqual(output, first[i % BATCHES], `replay ${i}`);
    }
    const now = reading();
    growth.push(now.rss - after.rss);
    after = now;
  }
  const seconds = (performance.now() - started) / 1000;
  const { graphs } = await layer.statistics();
  assert.equal(graphs.replays - statistics.graphs.replays, REPLAYS, "not all steps were replays");
  assert.equal(graphs.captures, statistics.graphs.captures);
  assert.equal(after.usedBytes, before.usedBytes);
  assert.equal(after.allocations, before.allocations);
  assert.equal(after.free, before.free, "free memory of the card");
  const live = after.live - before.live;
  assert.ok(live < LIVE_BYTES, `live objects grew by ${live} bytes`);
  assert.ok(
    median(growth) * (WINDOWS / 2) < PROCESS_BYTES,
    `the process grew by ${growth.join(", ")} bytes`,
  );
  t.diagnostic(
    `${((seconds / REPLAYS) * 1e6).toFixed(1)} us a call; live objects grew by ${live} bytes, the process by ${growth.join(", ")}`,
  );
}

gpuTest(`the device opened and closed ${OPENINGS} times`, async () => {
  const random = randomFor("gpu openings");
  const spec = {
    ...plainSpec(HIDDEN, 48, 16, 4),
    experts: gatedExperts(HIDDEN, 48, { dtype: "bfloat16" }),
  };
  const { tensors } = randomLayer(random, spec);
  const input = batch(normal(random, TOKENS * HIDDEN), HIDDEN);
  const open = async (closeLayer: boolean) => {
    const device = await openGpu();
    const layer = new MoELayer(spec, tensors, { device, streams: 4 });
    for (let i = 0; i < 4; i++) await layer.forward(input);
    // Closing the device closes all it owns.
    if (closeLayer) await layer.close();
    await device.close();
  };
  await open(true);
  const free = [freeDeviceBytes()];
  for (let i = 0; i < OPENINGS; i++) {
    await open(i % 2 === 0);
    free.push(freeDeviceBytes());
  }
  // What the driver keeps for itself once is no leak; what every opening leaves behind is.
  const lost = free.slice(1).map((bytes, i) => (free[i] as number) - bytes);
  assert.equal(median(lost), 0, `free memory of the card: ${free.join(", ")}`);
  assert.ok((free[0] as number) - (free.at(-1) as number) < OPENINGS << 20, free.join(", "));
});
