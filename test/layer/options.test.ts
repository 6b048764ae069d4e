/**
 * Names that nobody looks at are refused by everything that takes fields by name,
 * and what a layer is made with is checked when it is made, not at its first step.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { EnergyMonitor } from "../../src/control/energy-monitor.ts";
import { GraphManager } from "../../src/control/graph-manager.ts";
import { ExpertProfiler } from "../../src/control/profiler.ts";
import { SliceManager } from "../../src/control/slices/manager.ts";
import { DynamicPolicy } from "../../src/control/slices/policies/dynamic.ts";
import { StreamScheduler } from "../../src/control/stream-scheduler.ts";
import { Experts } from "../../src/data/experts.ts";
import { Router } from "../../src/data/router.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights } from "../../src/data/weights.ts";
import { InvalidArgumentError, ShapeError } from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { openDevice } from "../../src/execution/open.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { holdings, openCpu } from "../support/device.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "../support/layers.ts";
import { rejectsWith } from "../support/rejects.ts";
import { normal, randomFor } from "../support/seed.ts";

const device = await openCpu(1);
after(() => device.close());

/** Whatever a caller without types may pass. */
// biome-ignore lint/suspicious/noExplicitAny: the point of these tests
const as = (value: unknown): any => value;

type ErrorType = typeof InvalidArgumentError | typeof ShapeError;

const HIDDEN = 4;
const { spec, tensors, source } = randomLayer(randomFor("options"), plainSpec(HIDDEN, 3, 4, 2));
const hidden = batch(normal(randomFor("options hidden"), 3 * HIDDEN), HIDDEN);
const layerWith = (options: object) => new MoELayer(spec, tensors, as({ device, ...options }));
const specWith = (part: object) => new MoELayer(as({ ...spec, ...part }), tensors, { device });
const managerWith = (options: object) =>
  new SliceManager({ device: device.properties, ...as(options) });

const rejects = (call: () => unknown, message: RegExp, type: ErrorType = InvalidArgumentError) =>
  rejectsWith(call, message, type);

test("fields that an object inherits are refused, be they a prototype's or a class's", async () => {
  const inheriting = (own: object, inherited: object) =>
    Object.assign(Object.create(inherited), own);
  const { router } = spec;
  class Accessors {
    get capacityFactor() {
      return 0.25;
    }
  }
  const cases: [RegExp, () => unknown][] = [
    [
      /^router\.capacityFactor is inherited, 0\.25; make it a field of the object itself\.$/,
      () => specWith({ router: inheriting(router, { capacityFactor: 0.25 }) }),
    ],
    [
      /^router\.capacityFactor is inherited/,
      () => specWith({ router: Object.assign(new Accessors(), router) }),
    ],
    [/^spec\.\w+ is inherited/, () => new MoELayer(Object.create(spec), tensors, { device })],
    [
      /^options\.streams is inherited, 2/,
      () => new MoELayer(spec, tensors, inheriting({ device }, { streams: 2 })),
    ],
    [
      /^options\.slices\.policy is inherited/,
      () => layerWith({ slices: Object.create({ policy: "static" }) }),
    ],
    [/^options\.policy is inherited/, () => new SliceManager(Object.create({ policy: "static" }))],
    [
      /^options\.capacityFactor is inherited/,
      () => new Router(inheriting({ topK: 1 }, { capacityFactor: 0.25 })),
    ],
  ];
  for (const [message, call] of cases) await rejects(call, message);
});

test("a spec is copied, and the copy is fixed", async () => {
  const own = structuredClone(spec) as LayerSpec & { experts: { activation: { kind: string } } };
  await using layer = new MoELayer(own, tensors, { device });
  own.experts.activation.kind = "relu";
  assert.deepEqual(layer.spec, spec);
  assert.throws(() => as(layer.spec).router.topK++, TypeError);
  const experts = structuredClone(spec.experts) as { hiddenSize: number };
  const loading = Experts.fromTensors(as(experts), 4, tensors.experts, { device });
  experts.hiddenSize = 8;
  using loaded = await loading;
  assert.deepEqual(loaded.spec, spec.experts);
  assert.throws(() => as(loaded.spec).hiddenSize++, TypeError);
});

test("biases that are NaN, or gone by the time they are read, are refused by name", async () => {
  const selection = { ...spec, router: { ...spec.router, selectionBias: true } };
  const bias = Float32Array.of(0, Number.NaN, 0, 0);
  const layer = new MoELayer(
    selection,
    { ...tensors, selectionBias: { data: bias, shape: [4] } },
    { device },
  );
  await rejects(() => layer.ready(), /^The router's selection bias of expert 1 is NaN/);
  const biased = { ...spec, experts: { ...spec.experts, bias: true } };
  const downBias = { data: new Float32Array(4 * HIDDEN), shape: [4, HIDDEN] };
  const inner = new Float32Array(4 * spec.experts.intermediateSize);
  const shape = [4, spec.experts.intermediateSize];
  const experts = {
    ...tensors.experts,
    gateBias: { data: inner, shape },
    upBias: { data: inner, shape },
    downBias,
  };
  const later = new MoELayer(biased, { ...tensors, experts }, { device });
  structuredClone(downBias.data.buffer, { transfer: [downBias.data.buffer] });
  await rejects(() => later.ready(), /but its data now has 0\. Leave its memory/, ShapeError);
});

test("unknown names are refused, with those there are", async () => {
  const { router, experts, aggregation } = spec;
  const clamped = { kind: "silu", beta: 1 };
  const typo = { typo: 1 };
  await using layer = layerWith({});
  const cases: [name: string, known: string, call: () => unknown][] = [
    [
      "options.stream",
      "device, packWeights, graphs, streams, slices, profiler",
      () => layerWith({ stream: 3 }),
    ],
    ["options.policy", "slices", () => layerWith({ policy: "adaptive" })],
    ["options.slices.device", "policy", () => layerWith({ slices: { device: {} } })],
    ["options.graphs.typo", "warmup, capacity", () => layerWith({ graphs: typo })],
    ["options.profiler.experts", "window", () => layerWith({ profiler: { experts: 4 } })],
    ["options.Logits", "routing, logits", () => layer.forward(hidden, as({ Logits: hidden }))],
    ["spec.typo", "hiddenSize", () => specWith(typo)],
    ["router.top_k", "experts, topK", () => specWith({ router: { ...router, top_k: 3 } })],
    [
      "rule.typo",
      "scoring",
      () => specWith({ router: { ...router, rule: { ...router.rule, ...typo } } }),
    ],
    ["experts.typo", "form", () => specWith({ experts: { ...experts, ...typo } })],
    [
      "experts.activation.beta",
      "kind",
      () => specWith({ experts: { ...experts, activation: clamped } }),
    ],
    ["aggregation.typo", "mode", () => specWith({ aggregation: { ...aggregation, ...typo } })],
    ["weights.gaet", "gate", () => new MoELayer(spec, as({ ...tensors, gaet: tensors.gate }))],
    [
      "experts.wdown",
      "down",
      () => new MoELayer(spec, { ...tensors, experts: as({ ...tensors.experts, wdown: 1 }) }),
    ],
    ["options.top_k", "topK", () => new Router(as({ topK: 1, top_k: 1 }))],
    [
      "options.typo",
      "device",
      () => Experts.fromTensors(spec.experts, 4, tensors.experts, as(typo)),
    ],
    ["options.typo", "policy", () => managerWith(typo)],
    ["priorities.Z", "A, B, C, D", () => managerWith({ priorities: { Z: 1 } })],
    [
      "minimum.units",
      "computeUnits, cacheBytes",
      () => managerWith({}).reserve("A", as({ units: 1 })),
    ],
    ["options.stream", "streams", () => new StreamScheduler(as({ stream: 1 }))],
    ["options.typo", "window", () => new ExpertProfiler(as({ experts: 4, ...typo }))],
    [
      "thresholds.hotEntry",
      "hotEnter",
      () => new ExpertProfiler({ experts: 4, thresholds: as({ hotEntry: 3 }) }),
    ],
    ["options.typo", "capacity", () => new GraphManager(as({ device, ...typo }))],
    ["options.thread", "kind, threads", () => openDevice(as({ thread: 1 }))],
  ];
  for (const [name, known, call] of cases) {
    const escaped = name.replaceAll(".", "\\.");
    await rejects(call, new RegExp(`^${escaped} is unknown; use .*${known}`));
  }
  assert.equal((await layer.statistics()).steps, 0);
});

test("options out of range are refused when the layer is made, with a device and without", async () => {
  const cases: [options: object, message: RegExp][] = [
    [{ slices: { policy: "adaptve" } }, /no slice policy "adaptve"; choose one of .*adaptive/],
    [{ slices: { realisation: "green" } }, /no realisation "green"/],
    [{ slices: { maxExperts: { A: -1 } } }, /maxExperts\.A is -1/],
    [{ slices: { maxExperts: { A: "1" } } }, /maxExperts\.A is "1"/],
    [{ streams: 0 }, /streams is 0/],
    [{ streams: "3" }, /streams is "3"; .*a whole number/],
    [{ graphs: { capacity: 0 } }, /capacity is 0/],
    [{ graphs: { capacity: "2" } }, /capacity is "2"; .*a whole number/],
    [{ graphs: { warmup: "1" } }, /warmup is "1"; .*a whole number/],
    [{ graphs: { warmup: -1 } }, /warmup is -1/],
    [{ graphs: null }, /options\.graphs is null/],
    [{ profiler: { window: -5 } }, /window is -5/],
    [{ profiler: { thresholds: { hotEnter: 1 } } }, /Heat thresholds/],
  ];
  for (const [options, message] of cases) {
    assert.throws(() => layerWith(options), message);
    assert.throws(() => new MoELayer(spec, tensors, as(options)), message);
  }
  // A device that is not open yet may be one that can do it.
  new MoELayer(spec, tensors, { slices: { realisation: "partitioned" } });
  // No device can do that.
  const mig = { slices: { realisation: "mig" } } as const;
  assert.throws(() => new MoELayer(spec, tensors, mig), /^InvalidArgumentError: .*openMigPool\(\)/);
  assert.throws(() => layerWith(mig), /^InvalidArgumentError: .*openMigPool\(\)/);
});

test("a policy is a name or an object that can be asked", async () => {
  const observed = { name: "mine", place() {}, divide() {}, observe: 5 };
  for (const policy of [null, {}, 5, { name: "mine" }, { name: "mine", place() {} }, observed]) {
    const message = /^policy is .*; it must be one of static, .*place and divide; observe may/;
    await rejects(() => managerWith({ policy }), message);
    await rejects(() => layerWith({ slices: { policy } }), message);
  }
  assert.equal(managerWith({ policy: new DynamicPolicy() }).policy, "dynamic");
});

test("compute units are numbers, not text", async () => {
  const manager = managerWith({});
  await rejects(() => manager.resize("A", as("1")), /^computeUnits is "1"/);
  await rejects(() => manager.reserve("A", as({ computeUnits: "1" })), /^computeUnits is "1"/);
  await rejects(() => manager.reserve("A", as({ cacheBytes: "1" })), /bytes of cache/);
  manager.resize("A", null);
});

test("an energy source is what a device has, not the device", async () => {
  for (const value of [device, {}, { available: true }, { available: "yes" }]) {
    await rejects(() => new EnergyMonitor(as(value)), /^source is .*device\.energy/);
  }
  new EnergyMonitor(device.energy);
});

test("a device tensor takes a device, its memory and a shape", async () => {
  const buffer = device.allocate(32, "tensor");
  const make = (shape: unknown) => () => new DeviceTensor(device, buffer, as(shape));
  await rejects(make([-1, 8]), /shape \[-1, 8\]; every extent/, ShapeError);
  await rejects(make([0.5, 8]), /shape \[0\.5, 8\]/, ShapeError);
  await rejects(make(undefined), /has no shape.*\[8\]/, ShapeError);
  await rejects(() => new DeviceTensor(device, as(null), [1]), /^buffer is null/);
  await rejects(() => new DeviceTensor(as({}), buffer, [1]), /^device is \{\}.*openDevice/);
  await rejects(() => DeviceTensor.fromHost(as(null), hidden), /^device is null.*openDevice/);
  make([2, 4])()[Symbol.dispose]();
});

test("the router takes no device tensors, and says what to do", async () => {
  using router = new Router({ topK: 1, device });
  using tokens = DeviceTensor.fromHost(device, hidden);
  await rejects(() => router.route(as(tokens), hidden), /^hidden is a device tensor.*toHost\(\)/);
  await rejects(() => router.route(hidden, as(tokens)), /^logits is a device tensor.*toHost\(\)/);
});

test("weights of another element type are refused by tensor and field, with the remedy", async () => {
  const narrow = { ...spec, experts: { ...spec.experts, dtype: "bfloat16" } } as const;
  const message =
    /experts\.\w+.* is float32, and the spec's experts\.dtype is bfloat16\. Set that to "float32"/;
  assert.throws(() => new MoELayer(narrow, tensors, { device }), message);
  await rejects(
    () => Experts.fromTensors(narrow.experts, 4, tensors.experts, { device }),
    message,
    ShapeError,
  );
  const { tensors: both, spec: withShared } = randomLayer(randomFor("options shared"), {
    ...spec,
    shared: { experts: gatedExperts(HIDDEN, 3), gate: false },
  });
  const shared = { ...gatedExperts(HIDDEN, 3), dtype: "float16" } as const;
  assert.throws(
    () => new MoELayer({ ...withShared, shared: { experts: shared, gate: false } }, both),
    /shared\.\w+.* is float32, and the spec's shared\.experts\.dtype is float16/,
  );
  // A source shows its matrices only when they are read.
  await using late = new MoELayer(narrow, source, { device });
  await rejects(
    () => late.ready(),
    /gave "float32" for product 1 of expert 0, .* dtype bfloat16\. Set that to "float32"/,
    ShapeError,
  );
});

test("a weight source has methods, and gives what it should", async () => {
  const before = holdings(device);
  assert.throws(
    () => new MoELayer(spec, as({ ...source, gate: tensors.gate }), { device }),
    /^InvalidArgumentError: weights\.gate is .*must be one too/,
  );
  const broken = async (part: Partial<LayerWeights>, message: RegExp, type?: ErrorType) => {
    await using layer = new MoELayer(spec, { ...source, ...part }, { device });
    await rejects(() => layer.ready(), message, type);
  };
  await broken({ expert: async () => as(undefined) }, /gave undefined for expert 0/);
  await broken({ expert: async () => as([{}, {}]) }, /Expert 0 has no matrix/, ShapeError);
  await broken({ expert: async () => as([null, null]) }, /Expert 0 has no weights/, ShapeError);
  for (const none of [undefined, null]) {
    await broken({ gate: async () => as(none) }, /gate is missing/, ShapeError);
  }
  assert.deepEqual(holdings(device), before);
});

test("a spec that is seen through proxies is copied as it is", async () => {
  const seenThrough = <T extends object>(value: T): T =>
    new Proxy(value, {
      get: (target, key) => {
        const found: unknown = Reflect.get(target, key);
        return typeof found === "object" && found !== null ? seenThrough(found) : found;
      },
    });
  await using layer = new MoELayer(seenThrough(spec), tensors, { device });
  assert.deepEqual(layer.spec, spec);
});
