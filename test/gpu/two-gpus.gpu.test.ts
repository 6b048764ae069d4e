/**
 * Two GPUs of one host in one process: layers side by side that do not get in each other's way, the same
 * bits from both, energy of the card that was meant. Skipped where there is one.
 */

import assert from "node:assert/strict";
import { after, type TestContext } from "node:test";
import { EnergyMonitor } from "../../src/control/energy-monitor.ts";
import { DeviceUnavailableError } from "../../src/errors.ts";
import type { Device } from "../../src/execution/device.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { openDevice } from "../../src/execution/open.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { layerSpecOf } from "../../src/workload/presets.ts";
import { RandomLayer } from "../../src/workload/random-layer.ts";
import { batch } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";

const SHAPE = { hiddenSize: 1024, intermediateSize: 512, experts: 32, topK: 4, renormalize: true };
const SPEC = layerSpecOf(SHAPE, "bfloat16");
const WEIGHTS = new RandomLayer(SHAPE, "bfloat16", 1);
/** Decode, then buckets, and back, each often enough to be captured and replayed. */
const TOKENS = [1, 300, 1, 300, 2, 1, 300, 64, 64, 1, 300, 64, 64];
/** How much more than the idle card a busy one must draw for nobody to mix them up. */
const CLEARLY = 1.5;
const WINDOW_MS = 1600;
const BUSY_TOKENS = 4096;

const second = await openDevice({ kind: "cuda", ordinal: 1 }).catch((error: unknown) => {
  if (error instanceof DeviceUnavailableError) return undefined;
  throw error;
});
after(() => second?.close());

function twoGpuTest(
  name: string,
  body: (first: Device, other: Device, t: TestContext) => Promise<void> | void,
): void {
  gpuTest(name, async (device, t) =>
    second === undefined ? t.skip("there is one GPU, not two") : body(device, second, t),
  );
}

function inputs(): Float32Array[] {
  const random = randomFor("two GPUs");
  return TOKENS.map((tokens) => normal(random, tokens * SHAPE.hiddenSize));
}

async function outputs(device: Device, streams: number): Promise<Float32Array[]> {
  const slices = { realisation: "partitioned", policy: "proportional" } as const;
  const options = { device, streams, ...(streams > 1 && { slices }) };
  await using layer = new MoELayer(SPEC, WEIGHTS, options);
  const found: Float32Array[] = [];
  for (const hidden of inputs()) {
    found.push((await layer.forward(batch(hidden, SHAPE.hiddenSize))).output.data as Float32Array);
  }
  return found;
}

for (const streams of [1, 3]) {
  twoGpuTest(`layers on both at once, ${streams} streams`, async (first, other) => {
    const alone = await outputs(first, streams);
    const [one, two] = await Promise.all([outputs(first, streams), outputs(other, streams)]);
    assert.deepEqual(one, alone, "the first GPU's outputs changed beside the second");
    assert.deepEqual(two, alone, "the GPUs' outputs differ");
    // It keeps by now what it made at first use.
    const { usedBytes } = other.memory();
    await outputs(other, streams);
    assert.equal(other.memory().usedBytes, usedBytes, "memory of the second GPU is left behind");
  });
}

twoGpuTest("a tensor of one is refused by a layer on the other", async (first, other) => {
  await using layer = new MoELayer(SPEC, WEIGHTS, { device: first });
  const { hiddenSize } = SHAPE;
  const layout = other.rowLayout(hiddenSize, "bfloat16");
  using buffer = other.allocate(4 * layout.pitch * 4, "rows");
  const tensor = new DeviceTensor(other, buffer, [4, hiddenSize], layout.dtype);
  await assert.rejects(layer.forward(tensor), /another device/);
  const hidden = normal(randomFor("after a refusal"), 4 * hiddenSize);
  const { output } = await layer.forward(batch(hidden, hiddenSize));
  assert.equal(output.shape[0], 4);
});

twoGpuTest("one is closed while the other works", async (first) => {
  const passing = await openDevice({ kind: "cuda", ordinal: 1 });
  const [expected, closed] = await Promise.all([
    outputs(first, 1),
    outputs(passing, 1).then(async (found) => {
      await passing.close();
      return found;
    }),
  ]);
  assert.deepEqual(closed, expected);
  assert.deepEqual(await outputs(first, 1), expected);
});

twoGpuTest("joules are those of the card that works", async (first, other, t) => {
  if (!(first.energy.available && other.energy.available)) return t.skip("no energy is counted");
  const { hiddenSize } = SHAPE;
  await using layer = new MoELayer(SPEC, WEIGHTS, { device: other });
  const layout = other.rowLayout(hiddenSize, "bfloat16");
  using buffer = other.allocate(BUSY_TOKENS * layout.pitch * 4, "rows");
  const values = normal(randomFor("joules"), BUSY_TOKENS * hiddenSize);
  other.writeRows(buffer, layout, {
    dtype: "float32",
    shape: [BUSY_TOKENS, hiddenSize],
    data: values,
  });
  const hidden = new DeviceTensor(other, buffer, [BUSY_TOKENS, hiddenSize], layout.dtype);
  const step = async () => (await layer.forward(hidden)).output[Symbol.dispose]();
  for (let i = 0; i < 5; i++) await step();
  const windows = [first, other].map(({ energy }) => new EnergyMonitor(energy).begin());
  const until = performance.now() + WINDOW_MS;
  while (performance.now() < until) await step();
  const [idle, busy] = await Promise.all(windows.map((window) => window.end({ tokens: 1 })));
  assert.ok(idle?.available && busy?.available);
  assert.ok(
    busy.joules > CLEARLY * idle.joules,
    `${busy.joules} J where it worked, ${idle.joules} J where it did not`,
  );
});
