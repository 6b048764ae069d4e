/**
 * The other ways onto an emulated GPU: routers and schedules, logits from elsewhere, layers
 * beside each other, and what faulty logits leave behind.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { SliceManager } from "../../../src/control/slices/manager.ts";
import { Experts } from "../../../src/data/experts.ts";
import { Router } from "../../../src/data/router.ts";
import { DisposedError, InvalidLogitsError } from "../../../src/errors.ts";
import { PlainProjection } from "../../../src/execution/cuda/plain-projection.ts";
import { DeviceTensor } from "../../../src/execution/device-tensor.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { schedule } from "../../../src/layer/schedule.ts";
import {
  referenceExpert,
  referenceLayer,
  referenceRoute,
  relativeError,
} from "../../../src/reference/index.ts";
import {
  batch,
  gatedExperts,
  layOut,
  PLAIN_LAYOUT,
  plainSpec,
  productsOf,
  randomExperts,
  randomLayer,
  rowOf,
} from "../../support/layers.ts";
import { RULES } from "../../support/rules.ts";
import { normal, randomFor } from "../../support/seed.ts";
import { tensorOf, valuesOf } from "../../support/tensors.ts";
import { withEmulated } from "./emulator/harness.ts";
import { checkLayer, hiddenFor } from "./emulator/layers.ts";

const BOUND = 2e-5;

describe("Router and schedule on an emulated GPU", () => {
  it("route ready logits by every rule, with counts, offsets, order and inverse", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated router");
      for (const { rule } of RULES) {
        for (const [tokens, experts, topK] of [
          [1, 3, 2],
          [45, 37, 5],
          [100, 8, 2],
        ] as const) {
          using router = new Router({ topK, rule, device });
          const logits = normal(random, tokens * experts, 2);
          const hidden = { data: new Float32Array(tokens * 3), shape: [tokens, 3] };
          const got = await router.route(hidden, { data: logits, shape: [tokens, experts] });
          const want = referenceRoute(rule, Float64Array.from(logits), experts, topK);
          assert.deepEqual(got.ids, want.ids);
          assert.deepEqual(got.counts, want.counts);
          assert.ok(relativeError(got.weights, want.weights) < BOUND);
          let row = 0;
          for (let e = 0; e < experts; e++) {
            assert.equal(got.offsets[e], row);
            got.ids.forEach((id, slot) => {
              if (id !== e) return;
              assert.equal(got.order[row], slot);
              assert.equal(got.inverse[slot], row);
              row += 1;
            });
          }
          assert.equal(got.offsets[experts], tokens * topK);
        }
      }
    }));

  it("run planned batches, whatever the plan and the streams", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated schedule");
      const [H, count, topK] = [20, 6, 2];
      const spec = gatedExperts(H, 30, { bias: true });
      const set = randomExperts(random, spec, count);
      const tensors = layOut(spec, set, PLAIN_LAYOUT);
      using experts = await Experts.fromTensors(spec, count, tensors, { device });
      for (const capacityFactor of [undefined, 0.8]) {
        for (const [tokens, streams] of [
          [1, 1],
          [40, 1],
          [40, 5],
        ] as const) {
          const hidden = normal(random, tokens * H);
          const limit = capacityFactor === undefined ? {} : { capacityFactor };
          using router = new Router({ topK, device, ...limit });
          const buckets = await router.route(
            { data: hidden, shape: [tokens, H] },
            { data: normal(random, tokens * count, 2), shape: [tokens, count] },
          );
          const plan = new SliceManager({ device: device.properties }).allocate(buckets);
          const { output } = await schedule(plan, experts, { streams }).run();
          const expected = new Float64Array(tokens * H);
          buckets.ids.forEach((expert, slot) => {
            if ((buckets.inverse[slot] as number) < 0) return;
            const token = Math.floor(slot / topK);
            const weight = buckets.weights[slot] as number;
            const row = referenceExpert(spec, productsOf(set, expert), rowOf(hidden, token, H));
            row.forEach((value, i) => {
              expected[token * H + i] = (expected[token * H + i] as number) + weight * value;
            });
          });
          assert.ok(relativeError(output.data, expected) < BOUND);
        }
      }
    }));

  it("route through a gate of their own", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated gate");
      const [tokens, H, experts] = [33, 21, 70];
      const gate = { data: normal(random, experts * H), shape: [experts, H] };
      const gateBias = { data: normal(random, experts), shape: [experts] };
      using router = new Router({ topK: 3, gate, gateBias, device });
      const hidden = normal(random, tokens * H);
      const logits = Float64Array.from({ length: tokens * experts }, (_, i) => {
        const [t, e] = [Math.floor(i / experts), i % experts];
        let sum = gateBias.data[e] as number;
        for (let c = 0; c < H; c++) {
          sum += (hidden[t * H + c] as number) * (gate.data[e * H + c] as number);
        }
        return sum;
      });
      const rule = { scoring: "softmax", renormalize: true, scale: 1 } as const;
      const want = referenceRoute(rule, logits, experts, 3);
      const got = await router.route({ data: hidden, shape: [tokens, H] });
      // A tie to the last bit of float32 would be a matter of luck.
      want.margins.forEach((margin, t) => {
        if (margin < 1e-4) return;
        assert.deepEqual(got.ids.slice(3 * t, 3 * t + 3), want.ids.slice(3 * t, 3 * t + 3));
      });
      assert.ok(relativeError(got.weights, want.weights) < 1e-3);
    }));
});

describe("weights on an emulated GPU", () => {
  it("are filled with noise in range, the same for every grid, and padded with zeros", async () => {
    const fill = (multiprocessors: number) =>
      withEmulated(
        async (device, driver) => {
          const [count, inputs, outputs] = [3, 70, 33];
          const spec = { count, inputs, outputs, dtype: "float32", input: "float32" } as const;
          const more = { output: "rows", gated: true, bias: false } as const;
          using projection = device.createProjection({ ...spec, ...more }, "filled");
          assert.ok(projection instanceof PlainProjection);
          await device.fillUniform(projection, 7, 0.25);
          const { address, n, k, weightBytes } = projection;
          const { buffer, byteOffset } = driver.bytesAt(address, weightBytes);
          const weights = new Float32Array(buffer, byteOffset, count * n * k).slice();
          weights.forEach((weight, i) => {
            // [count, k / 64, n, 64]
            const [row, panel] = [Math.floor(i / 64) % n, Math.floor(i / 64 / n) % (k / 64)];
            const column = 64 * panel + (i % 64);
            if (row >= 2 * outputs || column >= inputs) assert.equal(weight, 0);
            else assert.ok(Math.abs(weight) <= 0.25);
          });
          assert.ok(new Set(weights).size > (count * 2 * outputs * inputs) / 2);
          return weights;
        },
        { facts: { multiprocessors } },
      );
    assert.deepEqual(await fill(6), await fill(132));
  });

  it("are filled with the same noise in panels and, a gate's, in rows", () =>
    withEmulated(async (device, driver) => {
      const [inputs, outputs] = [150, 33];
      const spec = { count: 1, inputs, outputs, dtype: "float32", input: "float32" } as const;
      const weights = async (output: "rows" | "float32") => {
        const more = { output, gated: false, bias: false };
        using projection = device.createProjection({ ...spec, ...more }, "filled");
        assert.ok(projection instanceof PlainProjection);
        await device.fillUniform(projection, 7, 0.25);
        const { address, weightBytes } = projection;
        const { buffer, byteOffset } = driver.bytesAt(address, weightBytes);
        return new Float32Array(buffer, byteOffset, weightBytes / 4).slice();
      };
      const [paneled, inRows] = [await weights("rows"), await weights("float32")];
      // n is 64 and k is 192.
      assert.equal(inRows.length, 64 * 192);
      assert.deepEqual(
        paneled,
        inRows.map((_, i) => {
          const [panel, row] = [Math.floor(i / 64 / 64), Math.floor(i / 64) % 64];
          return inRows[row * 192 + 64 * panel + (i % 64)] as number;
        }),
      );
    }));
});

describe("layers on an emulated GPU", () => {
  it("take logits from elsewhere, for host and device tensors", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated logits");
      for (const tokens of [3, 12]) {
        const parts = randomLayer(random, plainSpec(20, 15, 6, 2));
        await using layer = new MoELayer(parts.spec, parts.tensors, { device });
        const hidden = await hiddenFor(random, parts, tokens);
        const logits = { data: normal(random, tokens * 6, 3), shape: [tokens, 6] };
        const { rule } = parts.spec.router;
        const want = referenceRoute(rule, Float64Array.from(logits.data), 6, 2);
        let first: Float32Array | undefined;
        for (let step = 0; step < 4; step++) {
          const given = await layer.forward(batch(hidden, 20), { logits, routing: true });
          assert.deepEqual(given.routing?.ids, want.ids);
          first ??= given.output.data;
          assert.deepEqual(given.output.data, first);
          using input = DeviceTensor.fromHost(device, batch(hidden, 20));
          using output = (await layer.forward(input, { logits })).output;
          assert.deepEqual((await output.toHost()).data, first);
          for (const dtype of ["bfloat16", "float16"] as const) {
            const narrow = tensorOf(logits.data, logits.shape, dtype);
            const wide = { data: valuesOf(narrow), shape: narrow.shape };
            const a = await layer.forward(batch(hidden, 20), { logits: narrow, routing: true });
            const b = await layer.forward(batch(hidden, 20), { logits: wide, routing: true });
            assert.deepEqual(a.routing, b.routing);
            assert.deepEqual(a.output, b.output);
          }
          // Its own gate, in between.
          const own = await layer.forward(batch(hidden, 20));
          const expected = await referenceLayer(parts.spec, parts.source, hidden);
          assert.ok(relativeError(own.output.data, expected.output) < BOUND);
        }
      }
    }));

  for (const [tokens, dtype] of [
    [2, "float32"],
    [2, "bfloat16"],
    [50, "float32"],
  ] as const) {
    it(`name the row whose logits are not finite, and go on, ${tokens} tokens, ${dtype}`, () =>
      withEmulated(async (device) => {
        const random = randomFor("emulated faults");
        const experts = gatedExperts(20, 15, { dtype });
        const parts = randomLayer(random, plainSpec(20, 15, 6, 2, { experts }));
        await using layer = new MoELayer(parts.spec, parts.tensors, { device, streams: 3 });
        const hidden = await hiddenFor(random, parts, tokens);
        const good = batch(hidden, 20);
        const { output } = await layer.forward(good);
        const bad = (...rows: number[]) => {
          const data = hidden.slice();
          for (const row of rows) data[row * 20 + 3] = Number.NaN;
          return { data, shape: [tokens, 20] };
        };
        const last = tokens - 1;
        for (let step = 0; step < 4; step++) {
          await assert.rejects(
            layer.forward(bad(last)),
            (error) => error instanceof InvalidLogitsError && error.message.includes(`${last}`),
          );
          await assert.rejects(
            layer.forward(bad(last, 0)),
            (error) => error instanceof InvalidLogitsError && /\b0\b/.test(error.message),
          );
          assert.deepEqual((await layer.forward(good)).output.data, output.data);
        }
      }));
  }

  it("share a device, at the same time", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated two");
      const one = randomLayer(random, plainSpec(20, 15, 6, 2));
      const other = randomLayer(random, {
        ...plainSpec(33, 1, 9, 3),
        experts: gatedExperts(33, 20, { dtype: "bfloat16", bias: true }),
      });
      await Promise.all([
        checkLayer(device, random.fork("one"), one, [3, 20, 7], { streams: 3 }),
        checkLayer(device, random.fork("other"), other, [9, 2, 40], { streams: 2 }),
      ]);
    }));

  it("in a row on the device, each fed by the one before", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated chain");
      const stack = [0, 1, 2].map(() => randomLayer(random, plainSpec(16, 16, 4, 2)));
      const layers = stack.map(({ spec, tensors }) => new MoELayer(spec, tensors, { device }));
      let onHost = batch(normal(random, 6 * 16), 16);
      let onDevice = DeviceTensor.fromHost(device, onHost);
      for (const layer of layers) {
        onHost = (await layer.forward(onHost)).output;
        const next = (await layer.forward(onDevice)).output;
        onDevice[Symbol.dispose]();
        onDevice = next;
      }
      assert.deepEqual((await onDevice.toHost()).data, onHost.data);
      onDevice[Symbol.dispose]();
      for (const layer of layers) await layer.close();
    }));

  it("leave nothing behind when the device is closed under them", async () => {
    const random = randomFor("emulated close");
    const parts = randomLayer(random, plainSpec(20, 15, 6, 2));
    await withEmulated(async (device) => {
      const before = device.memory().allocations;
      const first = new MoELayer(parts.spec, parts.tensors, { device });
      for (const tokens of [3, 30, 3, 30]) {
        await first.forward(batch(normal(random, tokens * 20), 20));
      }
      await first.close();
      // Staging for weights stays.
      assert.ok(device.memory().allocations <= before + 2);
      const open = await new MoELayer(parts.spec, parts.tensors, { device }).ready();
      const late = assert.rejects(open.forward(batch(normal(random, 60), 20)), DisposedError);
      await device.close();
      await late;
      await open.close();
    });
  });
});
