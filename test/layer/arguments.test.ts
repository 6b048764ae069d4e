/**
 * Arguments that a type checker would have refused: every public entry point
 * answers them with a typed error that names the argument and what it must be.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { EnergyMonitor } from "../../src/control/energy-monitor.ts";
import { GraphManager } from "../../src/control/graph-manager.ts";
import { ExpertProfiler } from "../../src/control/profiler.ts";
import { SliceManager } from "../../src/control/slices/manager.ts";
import { AdaptivePolicy } from "../../src/control/slices/policies/adaptive.ts";
import { StaticPolicy } from "../../src/control/slices/policies/static.ts";
import { StreamScheduler } from "../../src/control/stream-scheduler.ts";
import { Experts } from "../../src/data/experts.ts";
import { Router } from "../../src/data/router.ts";
import { NexusError } from "../../src/errors.ts";
import { MigWorker, openMigPool } from "../../src/execution/cuda/mig/pool.ts";
import { openDevice } from "../../src/execution/open.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { schedule } from "../../src/layer/schedule.ts";
import { toTensor } from "../../src/tensor.ts";
import { openCpu } from "../support/device.ts";
import { plainSpec, randomLayer } from "../support/layers.ts";
import { rejectsWith } from "../support/rejects.ts";
import { randomFor } from "../support/seed.ts";

const device = await openCpu(1);
after(() => device.close());

/** Whatever a caller without types may pass. */
// biome-ignore lint/suspicious/noExplicitAny: the point of these tests
const as = (value: unknown): any => value;

const { spec, tensors } = randomLayer(randomFor("arguments"), plainSpec(4, 3, 4, 2));
const load = { counts: Int32Array.of(4, 3, 2, 1) };
const experts = await Experts.fromTensors(spec.experts, 4, tensors.experts, { device });

/** What is called with each of the values, and the name the message must begin with. */
const ENTRIES: Readonly<Record<string, readonly [name: string, call: (value: never) => unknown]>> =
  {
    "MoELayer weights": ["weights", (value) => new MoELayer(spec, value)],
    "MoELayer options": ["options", (value) => new MoELayer(spec, tensors, value)],
    "MoELayer device": [
      "options.device",
      (value) => new MoELayer(spec, tensors, { device: value }),
    ],
    "load directory": ["directory", (value) => MoELayer.load(value, { layer: 0, device })],
    "load options": ["options", (value) => MoELayer.load("no/such/directory", value)],
    "load layer": [
      "options.layer",
      (value) => MoELayer.load("no/such/directory", { layer: value }),
    ],
    "forward options": [
      "options",
      (value) =>
        new MoELayer(spec, tensors, { device }).forward(as({ data: [], shape: [] }), value),
    ],
    "Router options": ["options", (value) => new Router(value)],
    "Router device": ["options.device", (value) => new Router({ topK: 1, device: value })],
    "Router gate": ["gate", (value) => new Router({ topK: 1, gate: value })],
    "Router gateBias": [
      "gateBias",
      (value) => new Router({ topK: 1, gate: as(tensors.gate), gateBias: value }),
    ],
    "Router selectionBias": [
      "selectionBias",
      (value) => new Router({ topK: 1, selectionBias: value }),
    ],
    "Experts tensors": [
      "experts",
      (value) => Experts.fromTensors(spec.experts, 4, value, { device }),
    ],
    "Experts options": [
      "options",
      (value) => Experts.fromTensors(spec.experts, 4, tensors.experts, value),
    ],
    "SliceManager options": ["options", (value) => new SliceManager(value)],
    "SliceManager device": ["options.device", (value) => new SliceManager({ device: value })],
    "SliceManager priorities": ["priorities", (value) => new SliceManager({ priorities: value })],
    "SliceManager maxExperts": ["maxExperts", (value) => new SliceManager({ maxExperts: value })],
    "allocate load": ["load", (value) => new SliceManager().allocate(value)],
    "allocate profile": ["profile", (value) => new SliceManager().allocate(load, value)],
    "observe measurement": ["measurement", (value) => new SliceManager().observe(value)],
    "observe plan": [
      "measurement.plan",
      (value) => new SliceManager().observe(as({ plan: value })),
    ],
    reserve: ["minimum", (value) => new SliceManager().reserve("A", value)],
    "StreamScheduler options": ["options", (value) => new StreamScheduler(value)],
    "assign plan": ["plan", (value) => new StreamScheduler().assign(value)],
    "assign load": [
      "expectedLoad",
      (value) => new StreamScheduler().assign(new SliceManager().allocate(load), value),
    ],
    "ExpertProfiler options": ["options", (value) => new ExpertProfiler(value)],
    "ExpertProfiler step": ["step", (value) => new ExpertProfiler({ experts: 4 }).observe(value)],
    "schedule plan": ["plan", (value) => schedule(value, experts)],
    "schedule experts": ["experts", (value) => schedule(new SliceManager().allocate(load), value)],
    "schedule options": [
      "options",
      (value) => schedule(new SliceManager().allocate(load), experts, value),
    ],
    setComputeBudgets: ["budgets", (value) => device.setComputeBudgets(value)],
    "GraphManager options": ["options", (value) => new GraphManager(value)],
    "GraphManager device": ["options.device", (value) => new GraphManager({ device: value })],
    "EnergyMonitor source": ["source", (value) => new EnergyMonitor(value)],
    "EnergyMonitor end": ["work", (value) => new EnergyMonitor(device.energy).begin().end(value)],
    openDevice: ["options", (value) => openDevice(value)],
  };

for (const [title, [name, call]] of Object.entries(ENTRIES)) {
  test(`${title}: what is not an object is refused by name`, async () => {
    for (const value of title === "load directory" ? [null, 5, {}] : [null, "abc"]) {
      await assert.rejects(
        async () => await call(value as never),
        (error) => {
          assert.ok(error instanceof NexusError, String(error));
          assert.ok(error.message.startsWith(`${name} `), error.message);
          return true;
        },
      );
    }
  });
}

const refuses = (call: () => unknown, message: RegExp) => rejectsWith(call, message, NexusError);

test("what has no default is refused when it is left out", async () => {
  await refuses(() => MoELayer.load(as(undefined), { layer: 0 }), /^directory is undefined/);
  await refuses(() => MoELayer.load("no/such/directory", as(undefined)), /^options is undefined/);
  await refuses(() => new MoELayer(spec, as(undefined)), /^weights is undefined/);
  await refuses(() => new EnergyMonitor(as(undefined)), /^source is undefined.*device\.energy/);
  await refuses(() => new Router(as(undefined)), /^options is undefined/);
});

test("what is an object but no device is shown", async () => {
  await refuses(
    () => new MoELayer(spec, tensors, as({ device: {} })),
    /^options\.device is \{\}.*openDevice/,
  );
  await refuses(() => new Router(as({ topK: 1, device: {} })), /^options\.device is \{\}/);
  await refuses(
    () => new SliceManager(as({ device: {} })),
    /^options\.device is \{\}.*device\.properties/,
  );
  await refuses(() => new SliceManager(as({ device })), /without name.*device\.properties/);
});

test("a tensor without a usable shape or data says what it has", async () => {
  const data = new Float32Array(4);
  await refuses(() => toTensor(as({ data }), "gate"), /^gate has no shape.*\[4\]/);
  await refuses(() => toTensor({ data, shape: [2, -2] }, "gate"), /^gate has shape \[2, -2\]/);
  const view = new DataView(data.buffer);
  await refuses(
    () => toTensor(as({ data: view, shape: [4] }), "gate"),
    /^gate has its data in a DataView.*Float32Array/,
  );
  const bytes = new Uint8Array(4);
  await refuses(() => toTensor(as({ data: bytes, shape: [4] }), "gate"), /in a Uint8Array/);
});

test("experts are asked for by their index", async () => {
  const manager = new SliceManager();
  manager.release(99);
  const plan = manager.allocate(load);
  for (const expert of ["1", 99, -1, 1.5, null]) {
    await refuses(() => plan.explain(as(expert)), /There is no expert .*0 to 3/);
  }
  assert.equal(plan.explain(1).expert, 1);
  await refuses(() => manager.release(99), /There is no expert 99.*0 to 3/);
  await refuses(() => manager.release(1.5), /1\.5/);
  manager.release(3);
});

test("what no text can be made of is refused by name, too", async () => {
  const circular: Record<string, unknown> = {};
  circular["self"] = circular;
  const detached = new Int32Array(4);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  const data = new Float32Array(4);
  const manager = new SliceManager();
  for (const odd of [Symbol("x"), 1n, circular, Object.create(null), detached].map(as)) {
    const rule = { scoring: odd, renormalize: true, scale: 1 };
    await refuses(() => new Router({ topK: 1, rule }), /^rule\.scoring is /);
    await refuses(() => toTensor({ data, shape: [2, odd] }, "gate"), /^gate has shape \[2, /);
    await refuses(() => toTensor({ data, shape: [4], dtype: odd }, "gate"), /^gate says it is /);
    await refuses(() => manager.migrate(0, odd), /^Slice .* takes no experts by hand/);
    await refuses(() => manager.release(odd), /^Expert .* is not an expert index/);
    await refuses(() => manager.reserve("A", { cacheBytes: odd }), /^Slice A cannot reserve /);
    await refuses(() => new SliceManager({ realisation: odd }), /^There is no realisation /);
    await refuses(() => openDevice({ kind: odd }), /^Unknown device /);
  }
  await refuses(
    () => toTensor({ data, shape: Object.assign(new Array(2), { 1: 4 }) }, "gate"),
    /\[undefined, 4\]/,
  );
});

test("text, lists and BigInts are not taken for the numbers they compare as", async () => {
  const counts = new Int32Array(4);
  const profiler = new ExpertProfiler({ experts: 4 });
  const monitor = new EnergyMonitor(device.energy);
  const manager = new SliceManager();
  const plan = manager.allocate(load);
  const heat = { hotEnter: 2, hotLeave: 1.5, coldEnter: 0.5, coldLeave: 0.75 };
  for (const odd of ["1", [[1]], 1n, null, true, Symbol("x")].map(as)) {
    const thresholds = { ...heat, coldEnter: odd };
    const source = { available: true, joules: async () => 0, minimumWindowSeconds: odd };
    await refuses(() => new ExpertProfiler({ experts: 4, halfLife: odd }), /^halfLife is /);
    await refuses(() => new ExpertProfiler({ experts: 4, thresholds }), /^Heat thresholds are /);
    await refuses(() => profiler.observe({ counts, seconds: odd }), /^seconds is /);
    await refuses(() => monitor.sample(1, odd), /^seconds is /);
    await refuses(() => new EnergyMonitor(as(source)), /^source is /);
    await refuses(() => new SliceManager({ expertBytes: odd }), /^expertBytes is /);
    await refuses(() => manager.observe({ plan, seconds: odd, tokens: 1, joules: null }), /^sec/);
    await refuses(
      () => device.setComputeBudgets({ realisation: "shared", units: [odd] }),
      /^Group 0 asks for .* compute units/,
    );
    await refuses(() => device.createStream({ group: 0, priority: odd }), /priority is /);
  }
  await refuses(() => profiler.observe({ counts, seconds: 1, joules: as("1") }), /^joules is "1"/);
  assert.equal(profiler.steps, 0);
});

test("what is an object of another kind is refused, not asked for what it has not", async () => {
  const profile = { experts: 4, steps: 1 };
  await refuses(() => new SliceManager().allocate(load, as(profile)), /^profile is .*ExpertProf/);
  await refuses(() => new StreamScheduler().assign(as(load)), /^plan is .*SliceManager.allocate/);
  await refuses(() => schedule(as({ load }), experts), /^plan is .*SliceManager.allocate/);
  await refuses(() => new GraphManager({ device: as({}) }), /^options\.device is \{\}.*openDevice/);
  const graphs = new GraphManager({ device });
  await refuses(() => graphs.run("key", as(undefined)), /^step is undefined/);
  await refuses(() => graphs.run("key", as({ record: 1 })), /^step is \{ record: 1 \}/);
  await refuses(
    () => new MoELayer(spec, tensors, { device }).forward(as({ data: [] }), as({ routing: "no" })),
    /^options\.routing is "no"; it must be one of true, false/,
  );
});

test("policies refuse options that there are not, and rankings that are none", async () => {
  await refuses(() => new StaticPolicy(as({ rankings: [0] })), /^options\.rankings is unknown/);
  await refuses(() => new AdaptivePolicy(as({ sed: 2 })), /^options\.sed is unknown; use seed/);
  await refuses(() => new StaticPolicy(as(null)), /^options is null/);
  await refuses(() => new StaticPolicy(as({ ranking: 4 })), /^ranking is 4; .*a list/);
  const sparse = Object.assign(new Array(2), { 1: 1 });
  await refuses(
    () => new StaticPolicy({ ranking: sparse }),
    /^The ranking has undefined at place 0/,
  );
});

test("MIG instances are checked before any process is started", async () => {
  await refuses(() => openMigPool(as({ instances: 2 })), /^options\.instances is 2; .*a list/);
  await refuses(() => openMigPool(as({ instances: [{}], device: "cpu" })), /instance is \{\}/);
  await refuses(() => MigWorker.open(as(undefined), "cpu"), /instance is undefined/);
});
