/**
 * Two thousand forward passes leave no growth: not on the device, not in the
 * graph cache, not in the process.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { median } from "../../src/cli/statistics.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { openCpu } from "../support/device.ts";
import { batch, plainSpec, randomLayer } from "../support/layers.ts";
import { normal, randomFor, SEED } from "../support/seed.ts";
import type { SteadyState } from "../support/steady-state.ts";

const device = await openCpu(2);
after(() => device.close());

const HIDDEN = 8;

/** An engine that neither compiles anew nor moves its young generation about. */
const STEADY_FLAGS = [
  "--no-opt",
  "--no-maglev",
  "--no-sparkplug",
  "--no-flush-bytecode",
  "--max-semi-space-size=1",
];

/**
 * Bytes a step may leave in the process, in the median window: a table that doubles
 * or an arena that is opened shows in one window, what every step leaves in all of
 * them. Any object kept takes more than the first, any array buffer more than the
 * second, any step buffers more than the third.
 */
const BOUNDS = { heap: 16, external: 16, resident: 2048 } as const;

test("2,000 forward passes leave no growth", () => {
  const script = fileURLToPath(new URL("../support/steady-state.js", import.meta.url));
  const { stdout, stderr, status } = spawnSync(process.execPath, [...STEADY_FLAGS, script], {
    encoding: "utf8",
    env: { ...process.env, NEXUS_TEST_SEED: String(SEED) },
  });
  assert.equal(status, 0, stderr);
  const report = JSON.parse(stdout.trim().split("\n").at(-1) as string) as SteadyState;
  const { before, after: left, readings, statistics, stepsPerWindow } = report;
  const windows = readings.length - 1;
  assert.ok(windows * stepsPerWindow >= 2000);

  for (const { device: held } of readings) assert.deepEqual(held, readings[0]?.device);
  assert.equal(left.usedBytes, before.usedBytes);
  assert.equal(left.allocations, before.allocations);

  const { graphs, steps } = statistics;
  assert.ok(graphs.graphs <= 4, `${graphs.graphs} graphs are kept`);
  assert.equal(graphs.warmups + graphs.captures + graphs.replays, steps);
  assert.equal(graphs.captures - graphs.evictions, graphs.graphs);

  for (const name of ["heap", "external", "resident"] as const) {
    const growth = readings
      .slice(1)
      .map((now, i) => (now[name] - (readings[i] as typeof now)[name]) / stepsPerWindow);
    assert.ok(
      median(growth) < BOUNDS[name],
      `${name} memory grows by ${growth.join(", ")} bytes a step`,
    );
  }
});

test("device tensors handed out are the caller's, and all there is", async () => {
  const random = randomFor("memory device tensors");
  const { spec, tensors } = randomLayer(random, plainSpec(HIDDEN, 6, 4, 2));
  await using layer = new MoELayer(spec, tensors, { device });
  using input = DeviceTensor.fromHost(device, batch(normal(random, 7 * HIDDEN), HIDDEN));
  for (let i = 0; i < 20; i++) (await layer.forward(input)).output[Symbol.dispose]();
  const before = device.memory();
  const kept: DeviceTensor[] = [];
  for (let i = 0; i < 10; i++) kept.push((await layer.forward(input)).output);
  const held = device.memory();
  assert.equal(held.allocations - before.allocations, 10);
  for (const tensor of kept) {
    tensor[Symbol.dispose]();
    tensor[Symbol.dispose]();
  }
  assert.equal(device.memory().usedBytes, before.usedBytes);
  assert.equal(device.memory().allocations, before.allocations);
});

test("layers opened and closed, one after the other", async () => {
  const random = randomFor("memory layers");
  const { spec, tensors } = randomLayer(random, plainSpec(HIDDEN, 6, 4, 2));
  const before = device.memory();
  for (let i = 0; i < 60; i++) {
    await using layer = new MoELayer(spec, tensors, { device });
    for (const tokens of [3, 40]) {
      for (let step = 0; step < 3; step++) {
        await layer.forward(batch(normal(random, tokens * HIDDEN), HIDDEN));
      }
    }
  }
  assert.equal(device.memory().usedBytes, before.usedBytes);
  assert.equal(device.memory().allocations, before.allocations);
});
