/** What a layer tells its device and its control plane with each step, on a device that takes it down. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { GROUP_OF_SLICE, UNBUDGETED_GROUP } from "../../src/control/plan.ts";
import type { Measurement, SlicePolicy } from "../../src/control/slices/policy.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { leavesNothing, withCpu } from "../support/device.ts";
import { dividingByUse } from "../support/dividing-by-use.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "../support/layers.ts";
import { type RecordingBuffer, RecordingDevice } from "../support/recording-device.ts";
import { randomFor } from "../support/seed.ts";

const HIDDEN = 16;
const EXPERTS = 8;
const spec: LayerSpec = plainSpec(HIDDEN, 12, EXPERTS, 2);
const { tensors } = randomLayer(randomFor("layer engine"), spec);
const zeros = (tokens: number) => batch(new Float32Array(tokens * HIDDEN), HIDDEN);

/** Labels of the buffers written since the last call, without their sizes. */
const written = (device: RecordingDevice) =>
  device.writes.splice(0).map((label) => label.replace(/ of .*/, ""));

test("larger buffers are told the token count and the lanes anew, a decoded step no lanes", async () => {
  const device = new RecordingDevice({ recommendedStreams: 3 });
  await using layer = new MoELayer(spec, tensors, { device });
  await layer.ready();
  written(device);
  // The most that are decoded: there are no lanes to tell.
  await layer.forward(zeros(4));
  assert.deepEqual(written(device), ["hidden states", "token count"]);
  for (let i = 0; i < 3; i++) await layer.forward(zeros(9));
  written(device);
  await layer.forward(zeros(40));
  assert.deepEqual(written(device), ["hidden states", "token count", "lane table"]);
  await layer.forward(zeros(40));
  assert.deepEqual(written(device), ["hidden states"]);
});

test("a decoded step as large as can be tells no plan from another", async () => {
  const heard: Measurement[] = [];
  const policy: SlicePolicy = {
    ...dividingByUse(),
    observe: (_division, measurement) => heard.push(measurement),
  };
  const device = new RecordingDevice({ recommendedStreams: 3 });
  await using layer = new MoELayer(spec, tensors, { device, slices: { policy } });
  for (let i = 0; i < 3; i++) await layer.forward(zeros(4));
  assert.equal((await layer.statistics()).graphs.replays, 1);
  assert.deepEqual(
    heard.map(({ comparable }) => comparable),
    [false, false, false],
  );
  // The device has no energy counter: no later reading will cover these steps.
  assert.ok(heard.every(({ joules }) => joules === "lost"));
});

test("times of experts are in units of 100 ns", async () => {
  class TimingDevice extends RecordingDevice {
    override async synchronize(): Promise<void> {
      await super.synchronize();
      const times = this.buffers.find(({ label }) => label.startsWith("expert times"));
      new Int32Array((times as RecordingBuffer).bytes.buffer).set([25, 3]);
    }
  }
  const device = new TimingDevice({ timesExperts: { available: true } });
  await using layer = new MoELayer(spec, tensors, { device });
  await layer.forward(zeros(9));
  const { experts } = (await layer.control).profiler.report();
  assert.deepEqual(
    experts.slice(0, 3).map(({ seconds }) => seconds),
    [25e-7, 3e-7, 0],
  );
});

test("the shared expert is charged to slice D, each lane to its slice, with its priority", async () => {
  const shared = { experts: gatedExperts(HIDDEN, 6), gate: false };
  const parts = randomLayer(randomFor("layer engine shared"), { ...spec, shared });
  const device = new RecordingDevice({ recommendedStreams: 3 });
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  const { assignment } = await layer.control;
  await layer.forward(zeros(9));
  const streamsOf = (matches: (rows: "all" | "bucket", lane: number) => boolean) => {
    const entries = device.runs.at(-1)?.entries ?? [];
    const streams = entries.flatMap((entry) => {
      if (!("operator" in entry) || entry.operator.kind !== "project") return [];
      const { rows } = entry.operator;
      return matches(rows.from, rows.from === "bucket" ? rows.lane : -1) ? [entry.stream] : [];
    });
    return [...new Set(streams)];
  };
  const [main, aux] = streamsOf((from) => from === "all").sort((a, b) => b.priority - a.priority);
  assert.deepEqual([main?.group, aux?.group], [UNBUDGETED_GROUP, GROUP_OF_SLICE.D]);
  const priorities = assignment.priorityOfLane;
  assert.ok((main?.priority as number) > Math.max(...priorities));
  for (const [lane, slice] of assignment.sliceOfLane.entries()) {
    const streams = streamsOf((_, of) => of === lane);
    assert.deepEqual(
      streams.map(({ group, priority }) => [group, priority]),
      [[GROUP_OF_SLICE[slice], priorities[lane]]],
    );
  }
});

test("the bytes of weights are those of experts and shared expert", async () => {
  const shared = { experts: gatedExperts(HIDDEN, 6), gate: false };
  const bytesOf = async (more: Partial<LayerSpec>) => {
    const parts = randomLayer(randomFor("layer engine bytes"), { ...spec, ...more });
    const device = new RecordingDevice();
    await using layer = new MoELayer(parts.spec, parts.tensors, { device });
    return (await layer.statistics()).weightBytes;
  };
  // Two products, of which the device says that they take two bytes an element.
  assert.equal((await bytesOf({ shared })) - (await bytesOf({})), 2 * HIDDEN * 6 * 2);
});

test("cache reserved for a slice limits its experts to those that fit", async () => {
  const device = new RecordingDevice();
  await using layer = new MoELayer(spec, tensors, { device });
  const control = await layer.control;
  const hot = Int32Array.from({ length: EXPERTS }, (_, e) => (e < 2 ? 100 : 1));
  control.replan(hot);
  assert.deepEqual((await layer.plan).slices.A.experts, [0, 1]);
  const { experts } = await layer.modules.then(({ parts }) => parts);
  const bytes = experts.byteLength / EXPERTS;
  control.slices.reserve("A", { cacheBytes: 1.5 * bytes });
  control.replan(hot);
  assert.equal((await layer.plan).slices.A.experts.length, 1);
  assert.match(
    (await layer.plan).explain(1).reason,
    new RegExp(`enough for 1 experts of ${bytes} bytes`),
  );
});

test("a layer whose first plan fails leaves no weights behind", () =>
  withCpu(1, (device) =>
    leavesNothing(device, async () => {
      const policy = dividingByUse(() => {
        throw new Error("no plan today");
      });
      await using layer = new MoELayer(spec, tensors, { device, slices: { policy } });
      await assert.rejects(layer.ready(), /no plan today/);
    }),
  ));
