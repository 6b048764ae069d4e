/**
 * The poisoned memory of the GPU tests, where there is no GPU: layers, routers and schedules on a CPU and
 * on an emulated GPU have the bits that they have in clean memory, and a step that leaves something out shows it.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { SliceManager } from "../../src/control/slices/manager.ts";
import { Experts } from "../../src/data/experts.ts";
import { Router } from "../../src/data/router.ts";
import { StepBuffers } from "../../src/data/step-buffers.ts";
import type { Device, DeviceBuffer } from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { schedule } from "../../src/layer/schedule.ts";
import { withEmulated } from "../execution/cuda/emulator/harness.ts";
import { withCpu } from "../support/device.ts";
import {
  batch,
  gatedExperts,
  layOut,
  PLAIN_LAYOUT,
  plainSpec,
  randomExperts,
  randomLayer,
  randomSpec,
} from "../support/layers.ts";
import { GROUPED_RULES, limited, RULES } from "../support/rules.ts";
import { between, chance, normal, randomFor } from "../support/seed.ts";
import { NAN_WORD, NONSENSE, poisoned, StepMemory } from "./step-memory.ts";

const DEVICES: Readonly<
  Record<string, (body: (device: Device) => Promise<void>) => Promise<void>>
> = {
  "a CPU": (body) => withCpu(2, body),
  "an emulated GPU": (body) => withEmulated(body),
};

const HIDDEN = 20;
const SPEC = {
  ...plainSpec(HIDDEN, 1, 6, 2),
  experts: gatedExperts(HIDDEN, 13, { dtype: "bfloat16" as const }),
  shared: { experts: gatedExperts(HIDDEN, 9, { dtype: "bfloat16" as const }), gate: true },
};

async function wordsOf(device: Device, buffer: DeviceBuffer): Promise<Int32Array> {
  const words = new Int32Array(buffer.byteLength / 4);
  await device.read(buffer, words);
  return words;
}

/** What the layer puts out of each batch, eager, captured and replayed. */
async function outputs(
  device: Device,
  parts: ReturnType<typeof randomLayer>,
  batches: readonly Float32Array[],
): Promise<Float32Array[]> {
  const all: Float32Array[] = [];
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  for (const hidden of batches) {
    for (let step = 0; step < 3; step++) {
      all.push((await layer.forward(batch(hidden, parts.spec.hiddenSize))).output.data);
    }
  }
  return all;
}

for (const [name, withDevice] of Object.entries(DEVICES)) {
  describe(`poisoned memory of ${name}`, () => {
    it("holds nonsense in everything that a step writes, and zeros between rows", () =>
      withDevice(async (device) => {
        const memory = new StepMemory(device, SPEC);
        using buffers = StepBuffers.ofLayer(memory.device, SPEC, 5, false);
        assert.ok((await wordsOf(device, buffers.ids)).every((word) => word === 0));
        memory.poison();
        const { ids, counts, logits, weights, output, buckets, shared, layouts } = buffers;
        for (const buffer of [ids, counts, buckets.offsets, buckets.order, buckets.inverse]) {
          assert.ok(
            (await wordsOf(device, buffer)).every((word) => word === NONSENSE),
            buffer.label,
          );
        }
        for (const buffer of [logits, weights, output, shared?.scale as DeviceBuffer]) {
          assert.ok(
            (await wordsOf(device, buffer)).every((word) => word === NAN_WORD),
            buffer.label,
          );
        }
        const { hidden, inner, sharedInner = hidden } = layouts;
        for (const [buffer, { dtype, width, pitch }] of [
          [buffers.rows, hidden],
          [buffers.inner[0], inner],
          [shared?.rows, hidden],
          [shared?.inner[0], sharedInner],
        ] as const) {
          const bits = new Uint16Array((await wordsOf(device, buffer as DeviceBuffer)).buffer);
          const halves = dtype === "float32" ? 2 : 1;
          const isNan = bits.every((word, i) => {
            return word === (i % (halves * pitch) < halves * width ? NAN_WORD & 0xffff : 0);
          });
          assert.ok(isNan, buffer?.label);
        }
        for (const buffer of [buffers.tokens, buffers.hidden, buckets.laneOf]) {
          assert.ok(
            (await wordsOf(device, buffer)).every((word) => word === 0),
            buffer.label,
          );
        }
      }));

    it("changes no bit of layers of every form", () =>
      withDevice(async (device) => {
        const random = randomFor(`poisoned layers on ${name}`);
        const grouped = GROUPED_RULES.map(({ rule }) => limited(random, rule, 12, 4));
        const rules = [...RULES.map(({ rule }) => rule), ...grouped].map((rule) => ({
          ...plainSpec(HIDDEN, 13, 12, 4),
          router: { experts: 12, topK: 4, rule },
        }));
        const forms = Array.from({ length: 20 }, () => randomSpec(random, between(random, 1, 70)));
        for (const spec of [...rules, ...forms]) {
          const parts = randomLayer(random, spec);
          const sizes = [between(random, 1, 4), between(random, 5, 40), between(random, 1, 20)];
          const batches = sizes.map((tokens) => normal(random, tokens * spec.hiddenSize));
          const clean = await outputs(device, parts, batches);
          const got = await outputs(poisoned(device, spec), parts, batches);
          assert.deepEqual(got, clean, JSON.stringify(spec));
        }
      }));

    it("changes nothing of routers and schedules", () =>
      withDevice(async (device) => {
        const random = randomFor(`poisoned schedules on ${name}`);
        for (let i = 0; i < 8; i++) {
          const [tokens, count] = [between(random, 1, 60), between(random, 2, 9)];
          const spec = gatedExperts(HIDDEN, 13, { dtype: "bfloat16" });
          const set = layOut(spec, randomExperts(random, spec, count), PLAIN_LAYOUT);
          const gated = chance(random, 0.5);
          const gate = { data: normal(random, count * HIDDEN), shape: [count, HIDDEN] };
          const logits = { data: normal(random, tokens * count), shape: [tokens, count] };
          const hidden = batch(normal(random, tokens * HIDDEN), HIDDEN);
          const run = async (on: Device) => {
            using experts = await Experts.fromTensors(spec, count, set, { device: on });
            using router = new Router({ topK: 2, device: on, ...(gated && { gate }) });
            const buckets = await router.route(hidden, gated ? undefined : logits);
            const plan = new SliceManager({ device: on.properties }).allocate(buckets);
            const { output } = await schedule(plan, experts, { streams: 3 }).run();
            return { buckets, output };
          };
          const clean = await run(device);
          assert.deepEqual(
            await run(poisoned(device, { hiddenSize: HIDDEN, experts: spec })),
            clean,
          );
        }
      }));

    it("shows what a step leaves out, in every step", () =>
      withDevice(async (device) => {
        const random = randomFor(`poisoned steps on ${name}`);
        const parts = randomLayer(random, SPEC);
        const hidden = batch(normal(random, 9 * HIDDEN), HIDDEN);
        const memory = poisoned(device, SPEC);
        const left: Operator["kind"][] = [];
        const { createStream } = device;
        device.createStream = (options) => {
          const stream = createStream.call(device, options);
          const { enqueue } = stream;
          stream.enqueue = (operator) => {
            if (!left.includes(operator.kind)) enqueue.call(stream, operator);
          };
          return stream;
        };
        await using layer = new MoELayer(parts.spec, parts.tensors, {
          device: memory,
          graphs: { warmup: 1_000_000 },
        });
        const whole = (await layer.forward(hidden)).output.data;
        assert.ok(whole.every(Number.isFinite));
        // All that it would read is there from the step before, but for the poison.
        left.push("combine");
        const { output } = await layer.forward(hidden);
        assert.ok(output.data.every(Number.isNaN));
      }));
  });
}

describe("poisoned memory", () => {
  it("is refused where nobody says what a buffer holds, or how wide rows are", () =>
    withCpu(1, async (device) => {
      assert.throws(() => poisoned(device).allocate(4, "something new"), /something new/);
      assert.throws(() => poisoned(device).allocate(4, "expert outputs"), /how wide/);
    }));
});
