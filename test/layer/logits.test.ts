/** Router logits given by the caller: the gate is skipped, the rest of the layer is as it was. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { InvalidArgumentError, InvalidLogitsError, ShapeError } from "../../src/errors.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { matrixView, type TensorLike, toTensor } from "../../src/tensor.ts";
import { openCpu } from "../support/device.ts";
import { batch, plainSpec, randomLayer } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { tensorOf, valuesOf } from "../support/tensors.ts";

const device = await openCpu(2);
after(() => device.close());

const EXPERTS = 7;

/** Its gate is the unit matrix, so that hidden states are its logits, to the bit. */
function unitGateLayer(name: string) {
  const parts = randomLayer(randomFor(name), plainSpec(EXPERTS, 9, EXPERTS, 2));
  const unit = Float32Array.from({ length: EXPERTS ** 2 }, (_, i) => (i % (EXPERTS + 1) ? 0 : 1));
  return { ...parts, tensors: { ...parts.tensors, gate: tensorOf(unit, [EXPERTS, EXPERTS]) } };
}

test("the gate's own logits give the same bits as the gate, eager and replayed", async () => {
  const random = randomFor("logits bits");
  const { spec, tensors } = unitGateLayer("logits bits");
  await using gated = new MoELayer(spec, tensors, { device });
  await using ungated = new MoELayer(spec, tensors, { device });
  for (const tokens of [1, 5, 300, 5, 5, 0, 5]) {
    const hidden = batch(normal(random, tokens * EXPERTS), EXPERTS);
    const want = await gated.forward(hidden, { routing: true });
    const got = await ungated.forward(hidden, { routing: true, logits: hidden });
    assert.equal(got.stats.mode, want.stats.mode);
    assert.deepEqual(got.output, want.output);
    assert.deepEqual(got.routing, want.routing);
    assert.deepEqual(got.stats.counts, want.stats.counts);
  }
});

test("other logits route as the reference does, in any float type and with any leading axes", async () => {
  const random = randomFor("logits reference");
  const { spec, tensors, source } = unitGateLayer("logits reference");
  await using layer = new MoELayer(spec, tensors, { device });
  // A gate of zeros whose bias is a token's logits.
  const biased = { ...spec, router: { ...spec.router, bias: true } };
  const zeros = toTensor(tensorOf(new Float32Array(EXPERTS ** 2), [EXPERTS, EXPERTS]), "zeros");
  for (const dtype of ["float32", "bfloat16", "float16"] as const) {
    const shape = [2, 3, EXPERTS];
    const hidden = normal(random, 6 * EXPERTS);
    const logits = tensorOf(normal(random, 6 * EXPERTS, 3), shape, dtype);
    const { output, routing } = await layer.forward(
      { data: hidden, shape },
      { routing: true, logits: dtype === "float32" ? { ...logits, shape: [6, EXPERTS] } : logits },
    );
    assert.deepEqual(output.shape, shape);
    for (let t = 0; t < 6; t++) {
      const row = (values: Float32Array) => values.subarray(t * EXPERTS, (t + 1) * EXPERTS);
      const gateBias = row(valuesOf(logits));
      const weights = {
        ...source,
        gate: async () => matrixView(zeros),
        gateBias: async () => gateBias,
      };
      const want = await referenceLayer(biased, weights, row(hidden));
      assert.deepEqual(routing?.ids.subarray(2 * t, 2 * t + 2), want.ids);
      const error = relativeError(row(output.data), want.output);
      assert.ok(error < 1e-5, `${dtype}, token ${t}: off by ${error}`);
    }
  }
});

test("a layer that is always given its logits needs no gate", async () => {
  const random = randomFor("logits no gate");
  const { spec, tensors, source } = unitGateLayer("logits no gate");
  const { gate: _, ...gateless } = tensors;
  const { gate: __, ...rest } = source;
  await using gated = new MoELayer(spec, tensors, { device });
  const biased = { ...spec, router: { ...spec.router, bias: true } };
  for (const layer of [
    new MoELayer(spec, gateless, { device }),
    new MoELayer(biased, gateless, { device }),
    new MoELayer(spec, rest, { device }),
  ]) {
    await using _layer = layer;
    for (const tokens of [1, 300, 1]) {
      const hidden = batch(normal(random, tokens * EXPERTS), EXPERTS);
      const want = (await gated.forward(hidden, { logits: hidden })).output;
      assert.deepEqual((await layer.forward(hidden, { logits: hidden })).output, want);
      await assert.rejects(layer.forward(hidden), {
        name: "InvalidArgumentError",
        message: /has no gate.*options\.logits/,
      });
    }
  }
  const gateBias = tensorOf(new Float32Array(EXPERTS), [EXPERTS]);
  assert.throws(
    () => new MoELayer(biased, { ...gateless, gateBias }, { device }),
    /gateBias is given but would not be used: gate is not given/,
  );
});

test("logits go with device tensors too", async () => {
  const random = randomFor("logits device tensor");
  const { spec, tensors } = unitGateLayer("logits device tensor");
  await using layer = new MoELayer(spec, tensors, { device });
  const hidden = batch(normal(random, 4 * EXPERTS), EXPERTS);
  const logits = batch(normal(random, 4 * EXPERTS), EXPERTS);
  using input = DeviceTensor.fromHost(device, hidden);
  using output = (await layer.forward(input, { logits })).output;
  const want = (await layer.forward(hidden, { logits })).output;
  assert.deepEqual((await output.toHost()).data, want.data);
  using there = DeviceTensor.fromHost(device, logits);
  assert.deepEqual((await layer.forward(hidden, { logits: there })).output.data, want.data);
});

test("logits that do not fit are refused before any work, bad ones by the row", async () => {
  const { spec, tensors } = unitGateLayer("logits refused");
  await using layer = new MoELayer(spec, tensors, { device });
  const hidden = batch(new Float32Array(2 * EXPERTS), EXPERTS);
  const refused = (logits: unknown, type: new (message: string) => Error, message: RegExp) =>
    assert.rejects(
      layer.forward(hidden, { logits: logits as TensorLike }),
      (error) => error instanceof type && message.test(error.message),
    );
  const of = (data: TensorLike["data"], shape: number[]) => ({ data, shape });
  const fit = /options\.logits has shape .*; 2 tokens and 7 experts need \[2, 7\]/;
  await refused(of(new Float32Array(14), [7, 2]), ShapeError, fit);
  await refused(of(new Float32Array(21), [3, 7]), ShapeError, fit);
  await refused(of(new Float32Array(1), []), ShapeError, fit);
  await refused(of(new Int32Array(14), [2, 7]), ShapeError, /options\.logits is int32/);
  await refused(of(new Uint16Array(14), [2, 7]), InvalidArgumentError, /without a dtype/);
  await refused(null, InvalidArgumentError, /options\.logits is null; a tensor is/);
  assert.equal((await layer.statistics()).steps, 0);
  const bad = new Float32Array(14);
  bad[9] = Number.NaN;
  await assert.rejects(layer.forward(hidden, { logits: batch(bad, EXPERTS) }), (error) => {
    return error instanceof InvalidLogitsError && error.row === 1;
  });
});
