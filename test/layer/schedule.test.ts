/**
 * The short way in the README: route, plan, schedule, run. Every expert form,
 * activation, element type and weight layout against the float64 reference.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { SliceManager } from "../../src/control/slices/manager.ts";
import { Experts } from "../../src/data/experts.ts";
import { Router } from "../../src/data/router.ts";
import type { ExpertsSpec } from "../../src/data/spec.ts";
import { InvalidArgumentError, OutOfDeviceMemoryError, ShapeError } from "../../src/errors.ts";
import type { Device } from "../../src/execution/device.ts";
import { type ScheduleOptions, schedule } from "../../src/layer/schedule.ts";
import { referenceExpert, relativeError } from "../../src/reference/index.ts";
import type { Random } from "../../src/workload/random.ts";
import { leavesNothing, openCpu, withCpu } from "../support/device.ts";
import { withoutMemoryFor } from "../support/failing-streams.ts";
import {
  CLAMPED,
  type ExpertSet,
  gatedExperts,
  LAYOUTS,
  layOut,
  PLAIN_ACTIVATIONS,
  PLAIN_LAYOUT,
  productsOf,
  randomExperts,
  rowOf,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { RecordingDevice } from "../support/recording-device.ts";
import { between, normal, pick, randomFor } from "../support/seed.ts";

const device = await openCpu(2);
after(() => device.close());

const TOP_K = 2;
const BOUND = 1e-5;

async function route(on: Device, random: Random, experts: number, hidden: Float32Array, H: number) {
  const tokens = hidden.length / H;
  using router = new Router({ topK: TOP_K, device: on });
  return await router.route(
    { data: hidden, shape: [tokens, H] },
    { data: normal(random, tokens * experts, 2), shape: [tokens, experts] },
  );
}

type Routed = Awaited<ReturnType<typeof route>>;

/** What the buckets' experts make of the batch, in float64: [T, k, H], weighted. */
function expectedRows(spec: ExpertsSpec, set: ExpertSet, buckets: Routed, onInput = false) {
  const H = spec.hiddenSize;
  const hidden = buckets.hidden.data as Float32Array;
  const rows = new Float64Array(buckets.ids.length * H);
  buckets.ids.forEach((expert, slot) => {
    if ((buckets.inverse[slot] as number) < 0) return;
    const weight = buckets.weights[slot] as number;
    const row = referenceExpert(
      spec,
      productsOf(set, expert),
      rowOf(hidden, Math.floor(slot / TOP_K), H),
      onInput ? Float64Array.of(weight) : undefined,
    );
    rows.set(onInput ? row : row.map((x) => x * weight), slot * H);
  });
  return rows;
}

function expectedSum(spec: ExpertsSpec, set: ExpertSet, buckets: Routed, onInput = false) {
  const H = spec.hiddenSize;
  const rows = expectedRows(spec, set, buckets, onInput);
  return Float64Array.from({ length: buckets.tokens * H }, (_, i) => {
    const first = Math.floor(i / H) * TOP_K * H + (i % H);
    return (rows[first] as number) + (rows[first + H] as number);
  });
}

async function check(spec: ExpertsSpec, random: Random, layout = PLAIN_LAYOUT) {
  const count = between(random, 2, 6);
  const set = randomExperts(random, spec, count);
  using experts = await Experts.fromTensors(spec, count, layOut(spec, set, layout), { device });
  const H = spec.hiddenSize;
  const hidden = normal(random, between(random, 1, 40) * H);
  const buckets = await route(device, random, count, hidden, H);
  const plan = new SliceManager({ device: device.properties }).allocate(buckets);
  const { output, expertsPerStream } = await schedule(plan, experts).run();
  assert.deepEqual(output.shape, [buckets.tokens, H]);
  const error = relativeError(output.data, expectedSum(spec, set, buckets));
  assert.ok(error < BOUND, `off by ${error}: ${JSON.stringify({ spec, layout })}`);
  assert.equal(
    expertsPerStream.reduce((a, b) => a + b, 0),
    count,
  );
}

const size = (random: Random) => pick(random, [1, 2, 5, 16, 33, between(random, 1, 90)]);

test("the three lines of the README, on the default device", async () => {
  const random = randomFor("schedule readme");
  const spec = gatedExperts(12, 20);
  const set = randomExperts(random, spec, 4);
  using experts = await Experts.fromTensors(spec, 4, layOut(spec, set, PLAIN_LAYOUT));
  const tokens = { data: normal(random, 9 * 12), shape: [9, 12] };
  const logits = { data: normal(random, 9 * 4), shape: [9, 4] };

  using router = new Router({ topK: 2 });
  const buckets = await router.route(tokens, logits);
  const plan = new SliceManager().allocate(buckets);
  const { output } = await schedule(plan, experts).run();

  assert.ok(relativeError(output.data, expectedSum(spec, set, buckets)) < BOUND);
});

for (const dtype of WEIGHT_DTYPES) {
  test(`gated experts, every activation, with and without biases, ${dtype}`, async () => {
    const random = randomFor(`schedule gated ${dtype}`);
    for (const activation of [...PLAIN_ACTIVATIONS, CLAMPED]) {
      for (const bias of [false, true]) {
        await check(gatedExperts(size(random), size(random), { activation, bias, dtype }), random);
      }
    }
  });

  test(`plain MLPs of two and three layers, every activation, ${dtype}`, async () => {
    const random = randomFor(`schedule mlp ${dtype}`);
    for (const activation of PLAIN_ACTIVATIONS) {
      for (const depth of [2, 3] as const) {
        const bias = pick(random, [false, true]);
        const sizes = gatedExperts(size(random), size(random), { activation, bias, dtype });
        await check({ ...sizes, form: "mlp", depth }, random);
      }
    }
  });

  test(`every weight layout, ${dtype}`, async () => {
    const random = randomFor(`schedule layouts ${dtype}`);
    for (const layout of LAYOUTS) {
      for (const form of ["gated", "mlp"] as const) {
        const spec = gatedExperts(size(random), size(random), { bias: true, dtype });
        await check(form === "gated" ? spec : { ...spec, form, depth: 3 }, random, layout);
      }
    }
  });
}

test("concatenation, weights on the input, residual, dropped tokens", async () => {
  const random = randomFor("schedule aggregation");
  const [count, H] = [4, 10];
  const spec = gatedExperts(H, 14);
  const set = randomExperts(random, spec, count);
  using experts = await Experts.fromTensors(spec, count, layOut(spec, set, PLAIN_LAYOUT), {
    device,
  });
  const hidden = normal(random, 20 * H);
  using router = new Router({ topK: TOP_K, capacityFactor: 0.6, device });
  const buckets = await router.route(
    { data: hidden, shape: [20, H] },
    { data: normal(random, 20 * count, 2), shape: [20, count] },
  );
  assert.ok(buckets.dropped.length > 0);
  const plan = new SliceManager({ device: device.properties }).allocate(buckets);
  const run = async (aggregation: ScheduleOptions["aggregation"]) =>
    (await schedule(plan, experts, aggregation && { aggregation }).run()).output;

  const sum = await run(undefined);
  assert.ok(relativeError(sum.data, expectedSum(spec, set, buckets)) < BOUND);
  const concat = await run({ mode: "concat", weightsApplyTo: "output", residual: false });
  assert.deepEqual(concat.shape, [20, TOP_K * H]);
  assert.ok(relativeError(concat.data, expectedRows(spec, set, buckets)) < BOUND);
  for (const { token, choice } of buckets.dropped) {
    const row = rowOf(concat.data, token * TOP_K + choice, H);
    assert.deepEqual(row, new Float32Array(H));
  }
  const scaled = await run({ mode: "sum", weightsApplyTo: "input", residual: true });
  const expected = expectedSum(spec, set, buckets, true).map((x, i) => x + (hidden[i] as number));
  assert.ok(relativeError(scaled.data, expected) < BOUND);
});

test("same bits for every number of streams, policy, realisation and thread count", async () => {
  const runs = await Promise.all(
    [1, 3].map((threads) =>
      withCpu(threads, async (on) => {
        const random = randomFor("schedule bits");
        const spec = gatedExperts(33, 50);
        const set = randomExperts(random, spec, 9);
        using experts = await Experts.fromTensors(spec, 9, layOut(spec, set, PLAIN_LAYOUT), {
          device: on,
        });
        const buckets = await route(on, random, 9, normal(random, 70 * 33), 33);
        const outputs: Float32Array[] = [];
        for (const policy of ["static", "dynamic", "proportional", "adaptive"] as const) {
          for (const realisation of ["shared", "partitioned"] as const) {
            if (!on.properties.realisations[realisation].available) continue;
            const manager = new SliceManager({ device: on.properties, policy, realisation });
            const plan = manager.allocate(buckets);
            for (const streams of [1, 2, 8]) {
              const { output, expertsPerStream } = await schedule(plan, experts, {
                streams,
              }).run();
              assert.ok(expertsPerStream.length <= streams);
              outputs.push(output.data);
            }
          }
        }
        return outputs;
      }),
    ),
  );
  const [first, ...rest] = runs.flat();
  assert.ok(rest.length >= 15);
  for (const output of rest) assert.deepEqual(output, first);
});

test("an empty batch, a schedule run twice, and nothing left behind", async () => {
  const random = randomFor("schedule empty");
  const spec = gatedExperts(6, 5);
  const set = randomExperts(random, spec, 3);
  using experts = await Experts.fromTensors(spec, 3, layOut(spec, set, PLAIN_LAYOUT), { device });
  const before = device.memory();
  const empty = await route(device, random, 3, new Float32Array(0), 6);
  const manager = new SliceManager({ device: device.properties });
  const nothing = await schedule(manager.allocate(empty), experts).run();
  assert.deepEqual(nothing.output.shape, [0, 6]);
  const buckets = await route(device, random, 3, normal(random, 30), 6);
  const twice = schedule(manager.allocate(buckets), experts);
  const first = await twice.run();
  assert.deepEqual((await twice.run()).output, first.output);
  assert.equal(device.memory().usedBytes, before.usedBytes);
  assert.equal(device.memory().allocations, before.allocations);
});

test("a run that finds no memory half-way leaves nothing to what others enqueue next", async () => {
  const random = randomFor("schedule without memory");
  const spec = gatedExperts(6, 5);
  const set = randomExperts(random, spec, 3);
  using experts = await Experts.fromTensors(spec, 3, layOut(spec, set, PLAIN_LAYOUT), { device });
  const buckets = await route(device, random, 3, normal(random, 30), 6);
  const planned = schedule(
    new SliceManager({ device: device.properties }).allocate(buckets),
    experts,
  );
  const { output } = await planned.run();
  await leavesNothing(device, async () => {
    {
      using _ = withoutMemoryFor(device, "combine");
      await assert.rejects(planned.run(), OutOfDeviceMemoryError);
    }
    assert.deepEqual((await planned.run()).output, output);
  });
});

test("what does not fit together is refused before any work", async () => {
  const random = randomFor("schedule errors");
  const spec = gatedExperts(6, 5);
  const set = randomExperts(random, spec, 3);
  const tensors = layOut(spec, set, PLAIN_LAYOUT);
  const experts = await Experts.fromTensors(spec, 3, tensors, { device });
  const used = device.memory().usedBytes;
  const plan = (buckets: Routed | { counts: Int32Array }) =>
    new SliceManager({ device: device.properties }).allocate(buckets);
  const buckets = await route(device, random, 3, normal(random, 30), 6);
  const refuses = (make: () => unknown, kind: new (message: string) => Error, message: RegExp) =>
    assert.throws(make, (error) => error instanceof kind && message.test(error.message));

  refuses(
    () => schedule(plan({ counts: Int32Array.of(1, 2, 3) }), experts),
    InvalidArgumentError,
    /not made for routed buckets.*Router\.route/,
  );
  const four = plan(await route(device, random, 4, normal(random, 30), 6));
  refuses(() => schedule(four, experts), ShapeError, /for 4 experts, but 3/);
  const narrow = plan(await route(device, random, 3, normal(random, 30), 5));
  refuses(() => schedule(narrow, experts), ShapeError, /5 columns; the experts take 6/);
  const fine = plan(buckets);
  refuses(
    () =>
      schedule(fine, experts, {
        aggregation: { mode: "concat", weightsApplyTo: "output", residual: true },
      }),
    InvalidArgumentError,
    /residual is true.*mode sum/,
  );
  const larger = new SliceManager({ device: { ...device.properties, computeUnits: 64 } });
  refuses(
    () => schedule(larger.allocate(buckets), experts),
    InvalidArgumentError,
    /64 compute units.*device has 2.*experts\.device\.properties/,
  );
  await assert.rejects(schedule(fine, experts, { streams: 0 }).run(), InvalidArgumentError);
  refuses(
    () => schedule(fine, experts, { stream: 2 } as object),
    InvalidArgumentError,
    /options\.stream is unknown; use streams, aggregation\./,
  );
  assert.equal(device.memory().usedBytes, used);

  const late = schedule(fine, experts);
  experts[Symbol.dispose]();
  experts[Symbol.dispose]();
  await assert.rejects(late.run(), { name: "DisposedError", message: /set of experts/ });
  await assert.doesNotReject(device.synchronize());

  const other = await openCpu(2);
  const elsewhere = await Experts.fromTensors(spec, 3, tensors, { device: other });
  await other.close();
  await assert.rejects(schedule(fine, elsewhere).run(), {
    name: "DisposedError",
    message: /device/,
  });
});

test("packed experts take no routing weights on their input", async () => {
  const random = randomFor("scheduled packed");
  const spec = gatedExperts(8, 6, { dtype: "bfloat16" });
  const tensors = layOut(spec, randomExperts(random, spec, 4), PLAIN_LAYOUT);
  const buckets = await route(device, random, 4, normal(random, 3 * 8), 8);
  const plan = new SliceManager({ device: device.properties }).allocate(buckets);
  const options = { device: new RecordingDevice(), packWeights: true };
  using experts = await Experts.fromTensors(spec, 4, tensors, options);
  const aggregation = { mode: "sum", weightsApplyTo: "input", residual: false } as const;
  assert.throws(() => schedule(plan, experts, { aggregation }), {
    name: "InvalidArgumentError",
    message: /aggregation\.weightsApplyTo is "input", and packed weights take no scaled input/,
  });
  schedule(plan, experts, { aggregation: { ...aggregation, weightsApplyTo: "output" } });
});
