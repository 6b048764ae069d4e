/**
 * A layer's life once it has its weights: many calls at once, closing while calls are
 * in flight, use after closing, bad input and bad logits. What failed leaves nothing
 * behind and the layer as usable as before.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { LayerWeights } from "../../src/data/weights.ts";
import {
  DisposedError,
  InvalidArgumentError,
  InvalidLogitsError,
  OutOfDeviceMemoryError,
  ShapeError,
} from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import type { TensorLike } from "../../src/tensor.ts";
import { holdings, leavesNothing, openCpu, withCpu } from "../support/device.ts";
import {
  batch,
  plainSpec,
  type RandomLayerParts,
  randomHidden,
  randomLayer,
  rowOf,
} from "../support/layers.ts";
import { between, normal, randomFor } from "../support/seed.ts";

const device = await openCpu(2);
after(() => device.close());

const HIDDEN = 12;

function smallLayer(name: string): RandomLayerParts {
  return randomLayer(randomFor(name), plainSpec(HIDDEN, 9, 5, 2));
}

test("calls that are not awaited each get their own result, in order", () =>
  leavesNothing(device, async () => {
    const random = randomFor("lifecycle calls");
    const parts = smallLayer("lifecycle calls");
    await using layer = new MoELayer(parts.spec, parts.tensors, { device });
    const inputs: Float32Array[] = [];
    for (let i = 0; i < 40; i++) {
      inputs.push(await randomHidden(random, parts, between(random, 0, 70)));
    }
    const results = await Promise.all(inputs.map((each) => layer.forward(batch(each, HIDDEN))));
    for (const [i, { output, stats }] of results.entries()) {
      const hidden = inputs[i] as Float32Array;
      assert.equal(stats.step, i + 1);
      assert.equal(stats.tokens, hidden.length / HIDDEN);
      const expected = await referenceLayer(parts.spec, parts.source, hidden);
      assert.ok(relativeError(output.data, expected.output) < 1e-5);
    }
  }));

test("layers on one device run side by side", () =>
  leavesNothing(device, async () => {
    const random = randomFor("lifecycle side by side");
    const all = Array.from({ length: 4 }, (_, i) => smallLayer(`lifecycle layer ${i}`));
    const layers = all.map(({ spec, tensors }) => new MoELayer(spec, tensors, { device }));
    const inputs = await Promise.all(all.map((parts) => randomHidden(random, parts, 20)));
    const calls: Promise<void>[] = [];
    for (let round = 0; round < 10; round++) {
      layers.forEach((layer, i) => {
        const hidden = inputs[i] as Float32Array;
        const { spec, source } = all[i] as RandomLayerParts;
        const check = async () => {
          const { output } = await layer.forward(batch(hidden, HIDDEN));
          const expected = await referenceLayer(spec, source, hidden);
          assert.ok(relativeError(output.data, expected.output) < 1e-5, `layer ${i}`);
        };
        calls.push(check());
      });
    }
    await Promise.all(calls);
    await Promise.all(layers.map((layer) => layer.close()));
  }));

test("closing waits for all calls before it; what comes after it is refused", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle close");
    const layer = await new MoELayer(spec, tensors, { device }).ready();
    const hidden = batch(normal(randomFor("lifecycle close"), 50 * HIDDEN), HIDDEN);
    const expected = (await layer.forward(hidden)).output.data;
    const calls = Array.from({ length: 8 }, () => layer.forward(hidden));
    let ended = 0;
    for (const call of calls) void call.then(() => ended++);
    const closing = layer.close();
    await assert.rejects(layer.forward(hidden), DisposedError);
    await closing;
    assert.equal(ended, calls.length);
    for (const { output } of await Promise.all(calls)) assert.deepEqual(output.data, expected);
  }));

test("a call that fails holds up neither those after it nor closing", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle close bad");
    const layer = new MoELayer(spec, tensors, { device });
    const hidden = batch(normal(randomFor("lifecycle close bad"), 3 * HIDDEN), HIDDEN);
    const bad = { data: hidden.data.map(() => Number.NaN), shape: hidden.shape };
    const calls = [hidden, bad, hidden].map((each) => layer.forward(each));
    const settled = Promise.allSettled(calls);
    await layer.close();
    assert.deepEqual(
      (await settled).map(({ status }) => status),
      ["fulfilled", "rejected", "fulfilled"],
    );
  }));

test("a closed layer refuses everything by name; closing again is harmless", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle closed");
    const layer = new MoELayer(spec, tensors, { device });
    await layer.forward({ data: new Float32Array(HIDDEN), shape: [HIDDEN] });
    await Promise.all([layer.close(), layer.close()]);
    await layer.close();
    const closed = { name: "DisposedError", message: /MoE layer is closed/ };
    await assert.rejects(
      layer.forward({ data: new Float32Array(HIDDEN), shape: [HIDDEN] }),
      closed,
    );
    await assert.rejects(layer.ready(), closed);
    await assert.rejects(layer.plan, closed);
    await assert.rejects(layer.control, closed);
    await assert.rejects(layer.modules, closed);
    await assert.rejects(layer.statistics(), closed);
  }));

test("a layer that was never used closes, and one that is still loading", () =>
  leavesNothing(device, async () => {
    const { spec, tensors, source } = smallLayer("lifecycle loading");
    await new MoELayer(spec, tensors, { device }).close();
    const slow: LayerWeights = {
      ...source,
      expert: async (i) => {
        await delay(5);
        return source.expert(i);
      },
    };
    const layer = new MoELayer(spec, slow, { device });
    const ready = layer.ready();
    const call = layer.forward({ data: new Float32Array(HIDDEN), shape: [HIDDEN] });
    await layer.close();
    await ready;
    assert.deepEqual((await call).output.shape, [HIDDEN]);

    const idle = new MoELayer(spec, slow, { device });
    const loading = idle.ready();
    await Promise.all([idle.close(), idle.close()]);
    await loading;

    const failing: LayerWeights = { ...slow, expert: () => Promise.reject(new Error("no disk")) };
    const broken = new MoELayer(spec, failing, { device });
    const refused = assert.rejects(
      broken.forward({ data: new Float32Array(HIDDEN), shape: [HIDDEN] }),
      /no disk/,
    );
    await broken.close();
    await refused;
  }));

test("closing a layer that is loading waits until it has loaded and is freed", () =>
  leavesNothing(device, async () => {
    const { spec, source } = smallLayer("lifecycle close loading");
    const expert = async (i: number) => {
      await delay(1);
      return source.expert(i);
    };
    const layer = new MoELayer(spec, { ...source, expert }, { device });
    void layer.ready();
    await layer.close();
  }));

test("bad logits name the token, and the layer stays usable, eager and replayed", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle nan");
    await using layer = new MoELayer(spec, tensors, { device });
    const hidden = normal(randomFor("lifecycle nan"), 9 * HIDDEN);
    const bad = hidden.slice();
    bad[6 * HIDDEN + 3] = Number.NaN;
    bad[8 * HIDDEN] = Number.POSITIVE_INFINITY;
    let expected: Float32Array | undefined;
    for (let round = 0; round < 4; round++) {
      await assert.rejects(layer.forward(batch(bad, HIDDEN)), (error) => {
        assert.ok(error instanceof InvalidLogitsError);
        assert.equal(error.row, 6);
        return true;
      });
      const { output, stats } = await layer.forward(batch(hidden, HIDDEN));
      assert.deepEqual(output.data, expected ?? output.data);
      expected = output.data;
      // A step that failed teaches the control loop nothing.
      assert.ok(stats.counts.reduce((a, b) => a + b, 0) === 18);
    }
  }));

test("a bad call among others fails alone", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle one bad");
    await using layer = new MoELayer(spec, tensors, { device });
    const hidden = normal(randomFor("lifecycle one bad"), 4 * HIDDEN);
    const expected = (await layer.forward(batch(hidden, HIDDEN))).output.data;
    const bad = hidden.map((x, i) => (i === 2 * HIDDEN ? Number.NaN : x));
    const results = await Promise.allSettled(
      Array.from({ length: 12 }, (_, i) =>
        layer.forward(batch(i % 4 === 2 ? bad : hidden, HIDDEN)),
      ),
    );
    results.forEach((result, i) => {
      if (i % 4 === 2) {
        assert.ok(result.status === "rejected");
        assert.equal(result.reason.row, 2);
      } else {
        assert.ok(result.status === "fulfilled");
        assert.deepEqual(result.value.output.data, expected);
      }
    });
  }));

test("input that does not fit is refused before any work", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle input");
    await using layer = await new MoELayer(spec, tensors, { device }).ready();
    const before = holdings(device);
    const refuses = (input: unknown, kind: new (message: string) => Error, message: RegExp) =>
      assert.rejects(layer.forward(input as TensorLike), (error) => {
        assert.ok(error instanceof kind, String(error));
        assert.match(error.message, message);
        return true;
      });
    const zeros = new Float32Array(24);
    await refuses({ data: zeros, shape: [3, 8] }, ShapeError, /\[3, 8\].*hidden size, 12/);
    await refuses({ data: zeros.slice(0, 1), shape: [] }, ShapeError, /\[\]/);
    await refuses({ data: zeros, shape: [3, 12] }, ShapeError, /36 elements.*has 24/);
    await refuses({ data: zeros, shape: [-2, -12] }, ShapeError, /whole number/);
    await refuses({ data: new Int32Array(24), shape: [2, 12] }, ShapeError, /int32.*float32/);
    await refuses({ data: new Uint16Array(24), shape: [2, 12] }, InvalidArgumentError, /16-bit/);
    const list = { data: Array.from(zeros), shape: [2, 12] };
    await refuses(list, InvalidArgumentError, /^hidden\.data is \[ 0, 0, .*a typed array/);
    await refuses(null, InvalidArgumentError, /^hidden is null; a tensor is/);
    await refuses(undefined, InvalidArgumentError, /^hidden is undefined; a tensor is/);
    assert.deepEqual(holdings(device), before);
    assert.equal((await layer.statistics()).steps, 0);
  }));

test("device tensors: of another device, and closed ones", async () => {
  const { spec, tensors } = smallLayer("lifecycle device tensors");
  await using layer = new MoELayer(spec, tensors, { device });
  const other = await openCpu(1);
  const elsewhere = DeviceTensor.fromHost(other, batch(new Float32Array(24), HIDDEN));
  await assert.rejects(layer.forward(elsewhere), {
    name: "InvalidArgumentError",
    message: /another device.*toHost/,
  });
  await other.close();
  const wide = DeviceTensor.fromHost(device, { data: new Float32Array(13), shape: [1, 13] });
  await assert.rejects(layer.forward(wide), { name: "ShapeError", message: /\[1, 13\]/ });
  wide[Symbol.dispose]();
  const closed = DeviceTensor.fromHost(device, batch(new Float32Array(24), HIDDEN));
  closed[Symbol.dispose]();
  await assert.rejects(layer.forward(closed), { name: "DisposedError", message: /device tensor/ });
  await layer.forward({ data: new Float32Array(24), shape: [2, HIDDEN] });
});

test("a batch too large for the device is refused, and smaller ones still run", () =>
  withCpu(1, async (small) => {
    const { spec, tensors } = smallLayer("lifecycle oom");
    await using layer = new MoELayer(spec, tensors, { device: small });
    const hidden = normal(randomFor("lifecycle oom"), 3 * HIDDEN);
    const expected = (await layer.forward(batch(hidden, HIDDEN))).output.data;
    // Others have taken all of the device's memory but a little.
    const { usedBytes, limitBytes } = small.memory();
    using _others = small.allocate(limitBytes - usedBytes - (1 << 20), "others");
    const large = batch(new Float32Array(20_000 * HIDDEN), HIDDEN);
    await assert.rejects(layer.forward(large), OutOfDeviceMemoryError);
    assert.deepEqual((await layer.forward(batch(hidden, HIDDEN))).output.data, expected);
  }));

test("a row keeps its bits whatever calls run beside it", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle mixed");
    await using layer = new MoELayer(spec, tensors, { device });
    const random = randomFor("lifecycle mixed");
    const hidden = normal(random, 30 * HIDDEN);
    const whole = (await layer.forward(batch(hidden, HIDDEN))).output.data;
    const rows = random.permutation(30);
    const results = await Promise.all(
      rows.map((t) => layer.forward(batch(rowOf(hidden, t, HIDDEN), HIDDEN))),
    );
    results.forEach(({ output }, i) => {
      assert.deepEqual(output.data, rowOf(whole, rows[i] as number, HIDDEN));
    });
  }));

test("memory that is transferred or resized before a step's turn fails that step alone", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle moved");
    await using layer = new MoELayer(spec, tensors, { device });
    const hidden = () => batch(normal(randomFor("lifecycle moved"), 2 * HIDDEN), HIDDEN);
    const expected = (await layer.forward(hidden())).output.data;
    const moved = hidden();
    const logits = {
      data: new Float32Array(2 * spec.router.experts),
      shape: [2, spec.router.experts],
    };
    const waiting = [layer.forward(moved), layer.forward(hidden(), { logits })];
    for (const { data } of [moved, logits])
      structuredClone(data, { transfer: [data.buffer as ArrayBuffer] });
    for (const step of waiting) await assert.rejects(step, ShapeError);
    assert.deepEqual((await layer.forward(hidden())).output.data, expected);
  }));

test("a spec that is changed for another layer stays what it was for the first", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle spec");
    const hidden = batch(normal(randomFor("lifecycle spec"), HIDDEN), HIDDEN);
    await using first = new MoELayer(spec, tensors, { device });
    const expected = (await first.forward(hidden)).output.data;
    const shared = structuredClone(spec);
    await using second = new MoELayer(shared, tensors, { device });
    Object.assign(shared.router.rule, { scale: 3 });
    assert.deepEqual((await second.forward(hidden)).output.data, expected);
  }));
