/**
 * The loop that the control plane closes around a layer: what steps show decides
 * the plan of the next ones, and no plan decides the result.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { ExpertProfiler } from "../../src/control/profiler.ts";
import type { LayerTensors } from "../../src/data/host-weights.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { ControlLoop, PLAN_INTERVAL, PLAN_SECONDS } from "../../src/layer/control-loop.ts";
import type { LayerOptions } from "../../src/layer/forward.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import type { TensorLike } from "../../src/tensor.ts";
import { leavesNothing, openCpu } from "../support/device.ts";
import { dividingByUse } from "../support/dividing-by-use.ts";
import { layOut, PLAIN_LAYOUT, plainSpec, randomExperts } from "../support/layers.ts";
import { randomFor } from "../support/seed.ts";
import { tensorOf } from "../support/tensors.ts";

const device = await openCpu(2);
after(() => device.close());

const EXPERTS = 8;
const TOKENS = 32;

/** Channel e of a hidden state is the logit of expert e, so a batch says which experts it goes to. */
const spec: LayerSpec = plainSpec(EXPERTS, 6, EXPERTS, 2);
const tensors: LayerTensors = {
  gate: tensorOf(
    Float32Array.from({ length: EXPERTS ** 2 }, (_, i) => (i % (EXPERTS + 1) === 0 ? 4 : 0)),
    [EXPERTS, EXPERTS],
  ),
  experts: layOut(
    spec.experts,
    randomExperts(randomFor("control loop"), spec.experts, EXPERTS),
    PLAIN_LAYOUT,
  ),
};

const layerWith = (options: LayerOptions = {}) =>
  new MoELayer(spec, tensors, { device, ...options });

/** Three quarters of the tokens go to the two favourites, the others to anyone. */
function skewed(favourites: readonly [number, number], name: string): TensorLike {
  const random = randomFor(name);
  const data = random.fillNormal(new Float32Array(TOKENS * EXPERTS), 0.5);
  for (let t = 0; t < TOKENS * 0.75; t++) {
    for (const e of favourites) data[t * EXPERTS + e] = 4 + random.uniform();
  }
  return { data, shape: [TOKENS, EXPERTS] };
}

const hotExperts = async (layer: MoELayer) =>
  (await layer.plan).placements.filter(({ heat }) => heat === "hot").map(({ expert }) => expert);

for (const policy of ["dynamic", "proportional", "adaptive"] as const) {
  test(`hot experts follow a skew that moves, policy ${policy}`, async () => {
    await using layer = layerWith({ slices: { policy } });
    const versions: number[] = [];
    const run = async (favourites: readonly [number, number], steps: number) => {
      for (let i = 0; i < steps; i++) {
        const { stats } = await layer.forward(skewed(favourites, `skew ${favourites} ${i % 5}`));
        versions.push(stats.planVersion);
        assert.ok((stats.counts[favourites[0]] as number) >= TOKENS * 0.75);
      }
    };
    assert.deepEqual(await hotExperts(layer), []);
    await run([1, 2], 100);
    assert.deepEqual(await hotExperts(layer), [1, 2]);
    const early = await layer.plan;
    assert.equal(early.placements[1]?.slice, "A");
    assert.deepEqual(early.slices.A.experts, [1, 2]);
    await run([5, 6], 200);
    assert.deepEqual(await hotExperts(layer), [5, 6]);
    const late = await layer.plan;
    assert.deepEqual(late.slices.A.experts, [5, 6]);
    assert.ok(late.version > early.version);
    assert.match(late.explain(5).reason, /\S/);
    assert.ok(!late.slices.A.experts.includes(1));
    // Plans come in order. The first measured step gets one of its own, which is made while the second one runs.
    assert.deepEqual(
      versions,
      [...versions].sort((a, b) => a - b),
    );
    assert.deepEqual(versions.slice(0, 3), [1, 1, 2]);
    assert.ok(versions.filter((version) => version === 3).length >= PLAN_INTERVAL);
  });
}

test("short steps are planned for no more often than pays", () => {
  const control = new ControlLoop(EXPERTS, 1e6, device.properties, {});
  const versions = (steps: number, seconds: number) => {
    const before = control.plan.version;
    for (let i = 0; i < steps; i++) {
      const counts = new Int32Array(EXPERTS).fill(4);
      control.observe({
        plan: control.plan,
        tokens: 16,
        counts,
        seconds,
        joules: null,
        comparable: false,
      });
      control.catchUp();
    }
    return control.plan.version - before;
  };
  assert.equal(versions(1, 1e-5), 1);
  const short = PLAN_SECONDS / 100;
  assert.equal(versions(99, short), 0);
  assert.equal(versions(250, short), 3);
  assert.equal(versions(5 * PLAN_INTERVAL, PLAN_SECONDS), 5);
});

test("statistics add up over eager, captured and replayed steps", async () => {
  await using layer = layerWith();
  const modes = { eager: 0, captured: 0, replayed: 0 };
  const totals = new Int32Array(EXPERTS);
  const steps = 40;
  for (let i = 0; i < steps; i++) {
    const { stats } = await layer.forward(skewed([0, 3], `statistics ${i}`));
    assert.equal(stats.step, i + 1);
    assert.equal(stats.tokens, TOKENS);
    assert.equal(stats.dropped.length, 0);
    assert.ok(stats.seconds > 0 && stats.seconds < 60);
    assert.ok(stats.streams >= 1 && stats.streams <= 8);
    assert.equal(
      stats.counts.reduce((a, b) => a + b, 0),
      TOKENS * 2,
    );
    stats.counts.forEach((count, e) => {
      totals[e] = (totals[e] as number) + count;
    });
    modes[stats.mode]++;
    if (stats.energy.available) assert.ok(stats.energy.joules === null || stats.energy.joules >= 0);
    else assert.ok(stats.energy.reason.length > 0);
  }
  const { graphs, steps: counted, weightBytes, tokenCapacity } = await layer.statistics();
  assert.equal(counted, steps);
  assert.equal(graphs.warmups, modes.eager);
  assert.equal(graphs.captures, modes.captured);
  assert.equal(graphs.replays, modes.replayed);
  assert.ok(modes.replayed > steps / 2, JSON.stringify(modes));
  assert.ok(weightBytes >= EXPERTS * 3 * 6 * EXPERTS * 4);
  assert.ok(tokenCapacity >= TOKENS);

  const { profiler } = await layer.control;
  const report = profiler.report();
  assert.equal(report.steps, steps);
  assert.equal(report.tokens, steps * TOKENS);
  assert.deepEqual(
    report.experts.map(({ tokens }) => tokens),
    Array.from(totals),
  );
  if (device.properties.timesExperts.available) {
    const seconds = report.experts.map((expert) => expert.seconds ?? Number.NaN);
    assert.ok((seconds[0] as number) > 0 && (seconds[3] as number) > 0, seconds.join());
    assert.ok(seconds.every((each) => each >= 0 && each <= report.seconds * 2 + 1e-3));
  }
});

test("a step that failed is not learnt from", async () => {
  await using layer = layerWith();
  await layer.forward(skewed([0, 1], "failed"));
  const { profiler } = await layer.control;
  const before = profiler.snapshot();
  const bad = { data: new Float32Array(EXPERTS).fill(Number.NaN), shape: [1, EXPERTS] };
  await assert.rejects(layer.forward(bad), { name: "InvalidLogitsError" });
  assert.deepEqual(profiler.snapshot(), before);
});

test("pins, sizes and plans asked for take effect at the next plan and change no bit", async () => {
  await using layer = layerWith();
  const hidden = skewed([0, 1], "steering");
  const expected = (await layer.forward(hidden)).output.data;
  const control = await layer.control;
  const counts = (await layer.forward(hidden)).stats.counts;
  for (const steer of [
    () => control.slices.migrate(7, "A"),
    () => control.slices.migrate(0, "C"),
    () => control.slices.resize("A", device.properties.computeUnitGranularity),
    () => control.slices.reserve("B", { computeUnits: device.properties.computeUnitGranularity }),
    () => control.slices.release(7),
    () => control.slices.resize("A", null),
  ]) {
    const { version } = await layer.plan;
    steer();
    assert.equal((await layer.plan).version, version);
    control.replan(counts);
    assert.equal((await layer.plan).version, version + 1);
    for (let i = 0; i < 3; i++) {
      const { output, stats } = await layer.forward(hidden);
      assert.ok(stats.planVersion > version);
      assert.deepEqual(output.data, expected);
    }
  }
  const pinned = (await layer.plan).explain(0);
  assert.equal(pinned.slice, "C");
  assert.throws(() => control.slices.migrate(EXPERTS, "A"), InvalidArgumentError);
});

test("plans made while a step is in flight leave it alone", async () => {
  await using layer = layerWith({ slices: { policy: "adaptive" } });
  const hidden = skewed([2, 3], "in flight");
  const expected = (await layer.forward(hidden)).output.data;
  const control = await layer.control;
  const even = new Int32Array(EXPERTS).fill(8);
  for (let i = 0; i < 20; i++) {
    const { version } = await layer.plan;
    const step = layer.forward(hidden);
    // The step has read its plan by now and is on the device.
    await Promise.resolve();
    await Promise.resolve();
    await Promise.resolve();
    control.slices.migrate(i % EXPERTS, "B");
    control.replan(even);
    const { output, stats } = await step;
    assert.ok(stats.planVersion === version || stats.planVersion === version + 1);
    assert.deepEqual(output.data, expected);
    control.slices.release(i % EXPERTS);
  }
});

test("the number of streams is kept to, down to one", async () => {
  for (const streams of [1, 2, 3]) {
    await using layer = layerWith({ streams });
    for (let i = 0; i < 12; i++) {
      const { stats } = await layer.forward(skewed([4, 5], `streams ${i}`));
      assert.ok(stats.streams >= 1 && stats.streams <= streams, `${stats.streams} of ${streams}`);
    }
    const { assignment } = await layer.control;
    for (const lane of assignment.laneOf) assert.ok(lane >= 0 && lane < streams);
  }
});

test("while a plan divides nothing a step has one stream, and its result is the same", async () => {
  let undivided = false;
  const policy = dividingByUse(() => ({ undivided }));
  await using layer = layerWith({ streams: 3, slices: { policy } });
  const hidden = skewed([2, 3], "undivided");
  const expected = (await layer.forward(hidden)).output.data;
  const control = await layer.control;
  for (let i = 0; i < 40; i++) {
    undivided = i % 3 === 0;
    control.replan(new Int32Array(EXPERTS).fill(8));
    const { output, stats } = await layer.forward(hidden);
    assert.equal(stats.streams, undivided ? 1 : 3);
    assert.deepEqual(output.data, expected);
  }
  // Two layouts of lanes, of which each is captured once.
  assert.ok((await layer.statistics()).graphs.captures <= 2);
});

test("a policy that throws takes the step's output with it, and leaves no memory behind", async () => {
  let broken = false;
  const policy = dividingByUse(() => {
    if (broken) throw new Error("no plan today");
    return {};
  });
  await using layer = layerWith({ slices: { policy } });
  using hidden = DeviceTensor.fromHost(device, skewed([2, 3], "broken policy"));
  const step = async () => {
    using output = (await layer.forward(hidden)).output;
    return (await output.toHost()).data;
  };
  for (let i = 0; i < PLAN_INTERVAL; i++) await step();
  const expected = await step();
  await leavesNothing(device, async () => {
    broken = true;
    let failed = 0;
    // However short they are, there is a plan to make before long; and then, with every step.
    for (let i = 0; i < 1000 && failed <= PLAN_INTERVAL; i++) await step().catch(() => failed++);
    assert.ok(failed > PLAN_INTERVAL, `${failed} steps failed`);
    broken = false;
    assert.deepEqual(await step(), expected);
  });
});

test("a profile outlives its layer", async () => {
  const seen = async (layer: MoELayer) => {
    for (let i = 0; i < 12; i++) await layer.forward(skewed([6, 7], `outlive ${i}`));
    return (await layer.control).profiler.snapshot();
  };
  await using layer = layerWith();
  const snapshot = await seen(layer);
  const restored = ExpertProfiler.restore(JSON.parse(JSON.stringify(snapshot)));
  assert.equal(restored.heatOf(6), "hot");
  assert.deepEqual(restored.snapshot(), snapshot);
});

test("empty batches are steps too, and teach nothing about the experts", async () => {
  await using layer = layerWith();
  for (let i = 0; i < 12; i++) await layer.forward(skewed([0, 1], `empty ${i}`));
  const hot = await hotExperts(layer);
  const { profiler } = await layer.control;
  const before = profiler.report();
  for (let i = 0; i < 2 * PLAN_INTERVAL; i++) {
    await layer.forward({ data: new Float32Array(0), shape: [0, EXPERTS] });
  }
  assert.deepEqual(await hotExperts(layer), hot);
  const now = profiler.report();
  assert.equal(now.steps, before.steps + 2 * PLAN_INTERVAL);
  assert.equal(now.tokens, before.tokens);
  // No tokens, no time: what an earlier step took is not counted again.
  const times = (report: typeof now) => report.experts.map(({ seconds }) => seconds);
  assert.deepEqual(times(now), times(before));
});
