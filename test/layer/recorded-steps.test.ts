/**
 * What a layer asks of a device that is not the CPU's: one with rows of 16 bits, an
 * operator for a handful of tokens, a single stream and no times of experts. The
 * device computes nothing; what it was asked to do is looked at.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { UNBUDGETED_GROUP } from "../../src/control/plan.ts";
import type { SlicePolicy } from "../../src/control/slices/policy.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import { type DeviceProperties, MAX_GROUPS } from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";
import { PLAN_INTERVAL, PLAN_SECONDS } from "../../src/layer/control-loop.ts";
import { LayerModules } from "../../src/layer/layer-modules.ts";
import { dividingByUse } from "../support/dividing-by-use.ts";
import { gatedExperts } from "../support/layers.ts";
import { RecordingDevice } from "../support/recording-device.ts";
import { base, bfloat16, EXPERTS, HIDDEN, kinds, layerOn, only, TOP_K } from "./recorded-layer.ts";

const IN_LANES = ["project", "route", "bucket", "project", "project", "combine"];
const DECODED = ["project", "decode"];

test("a handful of tokens is decoded, more go through buckets", async () => {
  const { device, forward } = layerOn();
  for (const [tokens, mostTokens] of [
    [0, 1],
    [1, 1],
    [3, 4],
    [4, 4],
  ] as const) {
    await forward(tokens);
    assert.deepEqual(kinds(device.operators), DECODED, `${tokens} tokens`);
    const decode = only(device.operators, "decode");
    assert.equal(decode.routing?.bucketed, false);
    assert.equal(decode.mostTokens, mostTokens);
    assert.equal(decode.outputType, "float32");
    assert.deepEqual([decode.first.spec.gated, decode.second.spec.gated], [true, false]);
    assert.deepEqual(decode.activation, { kind: "silu" });
    assert.ok(decode.weights !== undefined && decode.inputScale === undefined);
  }
  await forward(5);
  assert.deepEqual(kinds(device.operators), IN_LANES);
  assert.equal(only(device.operators, "route").bucketed, true);
  assert.equal(only(device.operators, "bucket").routed, true);
});

test("decode does the routing along, but for a shared expert, which it waits for and routing need not", async () => {
  const { device, forward } = layerOn();
  for (const logits of [false, true]) {
    await forward(2, { logits });
    const { routing, ids, weights } = only(device.operators, "decode");
    assert.deepEqual([routing?.ids, routing?.weights], [ids, weights]);
    assert.deepEqual([routing?.mostTokens, routing?.topK, routing?.experts], [2, TOP_K, EXPERTS]);
  }
  const shared = { experts: gatedExperts(HIDDEN, 30, { dtype: "bfloat16" }), gate: false };
  const other = layerOn({}, { ...bfloat16, shared });
  await other.forward(2);
  assert.equal(only(other.device.operators, "route").bucketed, false);
  assert.equal(only(other.device.operators, "decode").routing, undefined);
});

test("the sum is told what is spent: its rows and those between the products", async () => {
  const { device, forward } = layerOn();
  await forward(9);
  const { spent, rows } = only(device.operators, "combine");
  const [first, second] = device.operators.flatMap((operator) =>
    operator.kind === "project" && operator.rows.from === "bucket" ? [operator] : [],
  );
  assert.equal(second?.output, rows);
  assert.equal(spent?.inner, first?.output);
  const weightBytes = EXPERTS * 3 * HIDDEN * 70 * 2;
  const { innerWidth, experts } = spent ?? {};
  assert.deepEqual([innerWidth, experts, spent?.weightBytes], [70, EXPERTS, weightBytes]);
});

test("what decode cannot do goes through buckets however few tokens there are", async () => {
  const plain = gatedExperts(HIDDEN, 70, { dtype: "bfloat16" });
  const cases: Record<string, LayerSpec> = {
    "a capacity limit": { ...bfloat16, router: { ...base.router, capacityFactor: 1 } },
    concatenation: { ...bfloat16, aggregation: { ...base.aggregation, mode: "concat" } },
    "three products": { ...bfloat16, experts: { ...plain, form: "mlp", depth: 3 } },
  };
  for (const [name, spec] of Object.entries(cases)) {
    const { device, forward } = layerOn({}, spec);
    await forward(1);
    only(device.operators, "combine");
    assert.ok(!kinds(device.operators).includes("decode"), name);
  }
  const { device, forward } = layerOn({ decodeTokens: 0 });
  await forward(1);
  assert.deepEqual(kinds(device.operators), IN_LANES);
});

test("packed weights are the routed experts' alone, decode, and go through buckets with the bytes that they take", async () => {
  const shared = { experts: gatedExperts(HIDDEN, 30, { dtype: "bfloat16" }), gate: true };
  const { device, forward } = layerOn({}, { ...bfloat16, shared }, { packWeights: true });
  await forward(1);
  only(device.operators, "decode");
  await forward(9);
  const packed = device.projections.map(({ count, output, packed = false }) => [
    `${count} to ${output}`,
    packed,
  ]);
  assert.deepEqual(packed, [
    ["1 to float32", false],
    [`${EXPERTS} to rows`, true],
    [`${EXPERTS} to rows`, true],
    ["1 to rows", false],
    ["1 to rows", false],
    ["1 to float32", false],
  ]);
  const { weightBytes } = only(device.operators, "bucket").buckets;
  assert.equal(weightBytes, EXPERTS * 3 * HIDDEN * 70 * 1.5);
});

test("packed weights that cannot be are refused when the layer is made, or before anything is allocated", async () => {
  const refused = (spec: LayerSpec, message: RegExp, properties?: Partial<DeviceProperties>) => {
    assert.throws(() => layerOn(properties, spec, { packWeights: true }), message);
  };
  refused(base, /experts\.dtype is "float32", and only bfloat16 weights can be packed/);
  const aggregation = { ...base.aggregation, weightsApplyTo: "input" } as const;
  refused({ ...bfloat16, aggregation }, /aggregation\.weightsApplyTo is "input"/);
  const shared = { experts: gatedExperts(HIDDEN, 30), gate: false };
  refused({ ...bfloat16, shared }, /the shared expert makes rows float32/);
  const none = { available: false, reason: "No kernels." } as const;
  refused(bfloat16, /packWeights is set\. No kernels\. Leave packWeights out/, {
    packsWeights: none,
  });
  assert.throws(() => layerOn({}, bfloat16, { packWeights: 1 as never }), {
    name: "InvalidArgumentError",
    message: /options\.packWeights is 1/,
  });
  const device = new RecordingDevice({ packsWeights: none });
  const source = { expert: async () => [] };
  await assert.rejects(LayerModules.load(device, bfloat16, source, true), /No kernels/);
  assert.deepEqual([device.buffers, device.projections], [[], []]);
});

test("a decoded step waits for the shared expert and adds it, with weights on the input", async () => {
  const experts = gatedExperts(HIDDEN, 30, { dtype: "bfloat16" });
  const { device, forward } = layerOn(
    {},
    {
      ...bfloat16,
      shared: { experts, gate: true },
      aggregation: { mode: "sum", weightsApplyTo: "input", residual: true },
    },
  );
  await forward(2);
  const entries = device.runs.at(-1)?.entries ?? [];
  const decodeAt = entries.findIndex((e) => "operator" in e && e.operator.kind === "decode");
  const waits = entries.slice(0, decodeAt).filter((entry) => "wait" in entry);
  assert.ok(waits.some((entry) => "wait" in entry && entry.wait === "shared expert done"));
  const { shared, sharedScale, residual, inputScale, weights } = only(device.operators, "decode");
  assert.ok(shared && sharedScale && residual && inputScale && weights === undefined);
  const sharedProducts = device.operators.filter(
    (operator) => operator.kind === "project" && operator.rows.from === "all",
  );
  // Router gate, two products and the gate of the shared expert.
  assert.equal(sharedProducts.length, 4);
});

test("a small step does not depend on the largest batch ever seen", async () => {
  const { device, forward } = layerOn();
  await forward(300);
  await forward(7);
  const mostTokens = device.operators.map((operator) =>
    operator.kind === "project" ? operator.rows.mostTokens : operator.mostTokens,
  );
  assert.deepEqual(mostTokens, new Array(IN_LANES.length).fill(8));
  await forward(600);
  assert.equal(only(device.operators, "combine").mostTokens, 768);
});

test("logits that are given replace the gate, in a graph of their own", async () => {
  const { device, layer, forward } = layerOn();
  for (let i = 0; i < 3; i++) await forward(9);
  assert.equal((await forward(9, { logits: true })).stats.mode, "eager");
  assert.deepEqual(kinds(device.operators), IN_LANES.slice(1));
  assert.equal((await forward(9, { logits: true })).stats.mode, "captured");
  assert.equal((await forward(9)).stats.mode, "replayed");
  assert.deepEqual(kinds(device.operators), IN_LANES);
  assert.equal((await forward(9, { logits: true })).stats.mode, "replayed");
  await forward(1, { logits: true });
  assert.deepEqual(kinds(device.operators), DECODED.slice(1));
  assert.equal((await layer.statistics()).graphs.captures, 2);
});

test("graphs are captured again for other partitions, not for other shares", async () => {
  for (const [realisation, captures] of [
    ["shared", 1],
    ["partitioned", 2],
  ] as const) {
    const { device, layer, forward } = layerOn({}, bfloat16, { slices: { realisation } });
    const control = await layer.control;
    for (let i = 0; i < 4; i++) await forward(9);
    const before = device.budgets.at(-1);
    control.slices.resize("D", 60);
    control.replan(new Int32Array(EXPERTS).fill(1));
    for (let i = 0; i < 3; i++) await forward(9);
    assert.notDeepEqual(device.budgets.at(-1), before);
    assert.equal(device.budgets.at(-1)?.units[3], 60);
    assert.equal((await layer.statistics()).graphs.captures, captures, realisation);
  }
});

test("lanes are part of a graph unless the step has none", async () => {
  const { layer, forward } = layerOn({ recommendedStreams: 4 });
  const control = await layer.control;
  const hot = (expert: number) =>
    Int32Array.from({ length: EXPERTS }, (_, e) => (e === expert ? 1000 : 1));
  for (let i = 0; i < 4; i++) await forward(9);
  for (let i = 0; i < 3; i++) await forward(2);
  const { laneKey } = control.assignment;
  control.slices.resize("A", 100);
  control.replan(hot(1));
  assert.notEqual(control.assignment.laneKey, laneKey);
  assert.equal((await forward(2)).stats.mode, "replayed");
  assert.notEqual((await forward(9)).stats.mode, "replayed");
});

test("budgets are made once a plan and in force at every launch", async () => {
  const { device, layer, forward } = layerOn({ recommendedStreams: 3 });
  for (let i = 0; i < 6; i++) await forward(1);
  // The first step is measured and gets a plan of its own.
  assert.equal(device.budgets.length, 6);
  assert.equal(new Set(device.budgets).size, 2);
  assert.ok(device.budgets.every(({ cacheBytes }) => cacheBytes === undefined));
  const control = await layer.control;
  control.slices.reserve("B", { cacheBytes: 4096 });
  control.replan(new Int32Array(EXPERTS).fill(1));
  await forward(1);
  assert.deepEqual(device.budgets.at(-1)?.cacheBytes, [0, 4096, 0, 0, 0, 0]);
});

test("a single lane has no cache set aside, which no slice would have to itself", async () => {
  const { device, layer, forward } = layerOn({ recommendedStreams: 1 });
  const control = await layer.control;
  control.slices.reserve("B", { cacheBytes: 4096 });
  control.replan(new Int32Array(EXPERTS).fill(1));
  await forward(9);
  assert.deepEqual(device.budgets.at(-1)?.cacheBytes, [0, 0, 0, 0, 0, 0]);
});

test("a plan is made once the step after those that it rests on is launched", async () => {
  const launches: number[] = [];
  const policy = dividingByUse(() => {
    launches.push(device.budgets.length);
    return {};
  });
  const { device, forward } = layerOn({ recommendedStreams: 3 }, bfloat16, { slices: { policy } });
  // Shorter steps are planned for less often.
  device.runMilliseconds = (2 * PLAN_SECONDS * 1000) / PLAN_INTERVAL;
  for (let i = 0; i < 3 * PLAN_INTERVAL; i++) {
    const { stats } = await forward(9);
    // The caller may do with them what it likes.
    stats.counts.fill(-1);
  }
  assert.deepEqual(launches, [0, 2, 2 + PLAN_INTERVAL, 2 + 2 * PLAN_INTERVAL]);
});

test("a policy hears which steps tell plans apart: those in lanes, replayed", async () => {
  const heard: { tokens: number; comparable: boolean | undefined }[] = [];
  const policy: SlicePolicy = {
    ...dividingByUse(),
    observe: (_division, { tokens, comparable }) => heard.push({ tokens, comparable }),
  };
  const { forward } = layerOn({ recommendedStreams: 3 }, bfloat16, { slices: { policy } });
  const modes: string[] = [];
  for (const tokens of [9, 9, 9, 2, 2, 2]) modes.push((await forward(tokens)).stats.mode);
  assert.deepEqual(modes, ["eager", "captured", "replayed", "eager", "captured", "replayed"]);
  assert.deepEqual(
    heard.map(({ comparable }) => comparable),
    [false, false, true, false, false, false],
  );
  assert.deepEqual(
    heard.map(({ tokens }) => tokens),
    [9, 9, 9, 2, 2, 2],
  );
});

test("routing, aggregation and a single lane are charged to no budget", async () => {
  assert.ok(UNBUDGETED_GROUP < MAX_GROUPS);
  const groups = async (streams: number) => {
    const { device, forward } = layerOn({ recommendedStreams: streams });
    await forward(9);
    const entries = device.runs.at(-1)?.entries ?? [];
    return entries.flatMap((e) =>
      "operator" in e ? [`${e.operator.kind} ${e.stream.group}`] : [],
    );
  };
  const none = UNBUDGETED_GROUP;
  assert.deepEqual(
    await groups(1),
    IN_LANES.map((kind) => `${kind} ${none}`),
  );
  const several = await groups(3);
  for (const kind of ["route", "bucket", "combine"]) {
    assert.ok(several.includes(`${kind} ${none}`), `${several}`);
  }
  const products = several.filter((entry) => entry.startsWith("project"));
  assert.equal(products.length, 1 + 3 * 2);
  assert.equal(products.filter((entry) => entry === `project ${none}`).length, 1);
  const { device, forward } = layerOn({ recommendedStreams: 3 });
  await forward(9);
  assert.equal(only(device.operators, "bucket").lanes, 3);
});

test("a single lane is the main stream, several are not", async () => {
  const streamsOf = async (streams: number) => {
    const { device, forward } = layerOn({ recommendedStreams: streams });
    await forward(9);
    const entries = device.runs.at(-1)?.entries ?? [];
    return new Set(entries.flatMap((entry) => ("operator" in entry ? [entry.stream] : []))).size;
  };
  assert.deepEqual([await streamsOf(1), await streamsOf(3)], [1, 4]);
});

test("a replayed step writes its input and nothing that is there already", async () => {
  const { device, forward } = layerOn();
  // The second plan, after the first step, comes with a lane table of its own.
  for (let i = 0; i < 3; i++) await forward(9);
  device.writes.length = 0;
  device.reads.length = 0;
  device.runMilliseconds = 1;
  assert.equal((await forward(9)).stats.mode, "replayed");
  assert.deepEqual(
    device.writes.map((label) => label.replace(/ of .*/, "")),
    ["hidden states"],
  );
  // The output is asked for as soon as the step is launched, counts when it is over.
  assert.deepEqual(
    device.reads.map(({ label, meanwhile }) => [label.replace(/ of .*/, ""), meanwhile]),
    [
      ["layer output", true],
      ["expert counts", false],
    ],
  );
  device.writes.length = 0;
  await forward(10);
  assert.deepEqual(
    device.writes.map((label) => label.replace(/ of .*/, "")),
    ["hidden states", "token count"],
  );
});

test("times of experts take no memory, no write and no read where there are none", async () => {
  const times = (device: RecordingDevice) =>
    [...device.writes, ...device.buffers.map(({ label }) => label)].filter((label) =>
      label.startsWith("expert times"),
    );
  const without = layerOn();
  await without.forward(9);
  assert.deepEqual(times(without.device), []);
  const busy = (operators: readonly Operator[]) =>
    operators.some((o) => o.kind === "project" && o.rows.from === "bucket" && o.rows.busy);
  assert.equal(busy(without.device.operators), false);
  const withTimes = layerOn({ timesExperts: { available: true } });
  await withTimes.forward(9);
  assert.equal(times(withTimes.device).length, 2);
  assert.equal(busy(withTimes.device.operators), true);
  // A decoded step has no operator that could take them.
  withTimes.device.writes.length = 0;
  await withTimes.forward(1);
  assert.ok(!withTimes.device.writes.some((label) => label.startsWith("expert times")));
});

test("counts are the buffer that the host looks at after every step", async () => {
  const { device, forward } = layerOn();
  await forward(9);
  assert.deepEqual(
    device.buffers.filter(({ mirrored }) => mirrored).map(({ label }) => label),
    ["expert counts of 16 tokens"],
  );
});
