/** Energy through NVML: refused for short windows, plausible for long ones, and shared out among experts. */

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { EnergyMonitor } from "../../src/control/energy-monitor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { layerSpecOf } from "../../src/workload/presets.ts";
import { RandomLayer } from "../../src/workload/random-layer.ts";
import { batch } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";

/** No data-centre GPU idles below the first or is built for more than the second. */
const PLAUSIBLE_WATTS = { least: 15, most: 1500 } as const;
const SHAPE = { hiddenSize: 2048, intermediateSize: 768, experts: 32, topK: 8, renormalize: true };
const TOKENS = 2048;

gpuTest("joules of a window", async (device, t) => {
  const { energy } = device;
  if (!energy.available) return t.skip(energy.reason);
  assert.ok(energy.minimumWindowSeconds >= 1);
  assert.match(energy.domain, /NVML/);
  const monitor = new EnergyMonitor(energy);

  const short = monitor.begin();
  await sleep(300);
  const refused = await short.end({ tokens: 0 });
  assert.equal(refused.available, false);
  assert.match(refused.available ? "" : refused.reason, /shorter than/);

  const resting = monitor.begin();
  await sleep(1500);
  const idle = await resting.end({ tokens: 0 });

  const spec = layerSpecOf(SHAPE, "bfloat16");
  await using layer = new MoELayer(spec, new RandomLayer(SHAPE, "bfloat16", 1), { device });
  const hidden = batch(
    normal(randomFor("gpu energy"), TOKENS * SHAPE.hiddenSize),
    SHAPE.hiddenSize,
  );
  for (let i = 0; i < 3; i++) await layer.forward(hidden);
  const working = monitor.begin();
  const until = performance.now() + 1500;
  let tokens = 0;
  while (performance.now() < until) {
    await layer.forward(hidden);
    tokens += TOKENS;
  }
  const busy = await working.end({ tokens });

  assert.ok(idle.available && busy.available, JSON.stringify({ idle, busy }));
  for (const { watts } of [idle, busy]) {
    assert.ok(watts > PLAUSIBLE_WATTS.least && watts < PLAUSIBLE_WATTS.most, `${watts} W`);
  }
  assert.ok(busy.watts > idle.watts, `${busy.watts} W at work, ${idle.watts} W at rest`);
  assert.equal(busy.tokens, tokens);
  assert.ok(Math.abs(busy.tokensPerJoule - tokens / busy.joules) < 1e-9);
  t.diagnostic(`${idle.watts.toFixed(0)} W at rest, ${busy.watts.toFixed(0)} W at work`);
});

gpuTest("reading the counter does not hold up the event loop", async (device, t) => {
  const { energy } = device;
  if (!energy.available) return t.skip(energy.reason);
  let turns = 0;
  let reading = true;
  const count = () => {
    turns++;
    if (reading) setImmediate(count);
  };
  setImmediate(count);
  const first = await energy.joules();
  const second = await energy.joules();
  reading = false;
  assert.ok(second >= first);
  assert.ok(turns > 2, `the event loop turned ${turns} times`);
});

gpuTest("joules of every expert, which add up to those of the windows", async (device, t) => {
  if (!device.energy.available) return t.skip(device.energy.reason);
  const spec = layerSpecOf(SHAPE, "bfloat16");
  const weights = new RandomLayer(SHAPE, "bfloat16", 1);
  await using layer = new MoELayer(spec, weights, { device });
  const values = normal(randomFor("gpu energy of experts"), TOKENS * SHAPE.hiddenSize);
  const hidden = batch(values, SHAPE.hiddenSize);
  const readings: number[] = [];
  const until = performance.now() + 10_000;
  while (readings.length < 2 && performance.now() < until) {
    const { energy } = (await layer.forward(hidden)).stats;
    if (energy.available) readings.push(energy.joules);
  }
  assert.equal(readings.length, 2, "no two windows in ten seconds of steps");
  const { energyBasis, experts } = (await layer.control).profiler.report();
  const joules = experts.map((each) => each.joules ?? Number.NaN);
  const all = readings.reduce((sum, each) => sum + each, 0);
  const sum = joules.reduce((total, each) => total + each, 0);
  // Shares are in whole microjoules.
  assert.ok(Math.abs(sum - all) < 1e-6 * SHAPE.experts * readings.length, `${sum} of ${all} J`);
  for (const { tokens, joules: own } of experts) assert.equal((own ?? 0) > 0, tokens > 0);
  t.diagnostic(
    `${Math.min(...joules).toFixed(1)} to ${Math.max(...joules).toFixed(1)} J an expert, by ${energyBasis}`,
  );
});
