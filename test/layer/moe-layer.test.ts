/**
 * MoELayer against the float64 reference: random specs of every form, every batch
 * shape, host and device tensors.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { LayerSpec } from "../../src/data/spec.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { openCpu } from "../support/device.ts";
import {
  batch,
  errorAmong,
  gatedExperts,
  LAYOUTS,
  plainSpec,
  type RandomLayerParts,
  randomHidden,
  randomLayer,
  randomSpec,
  rowOf,
  termsOfFew,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { between, normal, pick, randomFor } from "../support/seed.ts";
import { tensorOf, valuesOf } from "../support/tensors.ts";

const device = await openCpu(2);
after(() => device.close());

const BOUND = 1e-5;

async function check(layer: MoELayer, parts: RandomLayerParts, hidden: Float32Array) {
  const { spec } = parts;
  const { hiddenSize, router } = spec;
  const tokens = hidden.length / hiddenSize;
  const what = `T=${tokens} ${JSON.stringify(spec)}`;
  const { output, routing, stats } = await layer.forward(batch(hidden, hiddenSize), {
    routing: true,
  });
  const expected = await referenceLayer(spec, parts.source, hidden);
  assert.deepEqual(routing?.ids, expected.ids, what);
  const weightError = relativeError(routing?.weights ?? [], expected.weights);
  assert.ok(weightError < BOUND, `weights are off by ${weightError}: ${what}`);
  // What is added up can cancel: with a residual, errors are those of its terms.
  const terms = [
    ...(spec.aggregation.residual ? hidden : []),
    ...(await termsOfFew(parts, hidden)),
  ];
  const error = errorAmong(terms, output.data, expected.output);
  assert.ok(error < BOUND, `output is off by ${error}: ${what}`);
  const width = spec.aggregation.mode === "concat" ? router.topK * hiddenSize : hiddenSize;
  assert.deepEqual(output.shape, [tokens, width]);
  assert.equal(output.dtype, "float32");
  assert.deepEqual(stats.counts, expected.counts);
  assert.deepEqual(stats.dropped, expected.dropped);
  assert.equal(stats.tokens, tokens);
  return output;
}

test("random specs, with batches that grow and shrink", async () => {
  const random = randomFor("layer specs");
  for (let i = 0; i < 40; i++) {
    const hiddenSize = pick(random, [1, 2, 3, 8, 65, 100, between(random, 4, 90)]);
    const parts = randomLayer(random, randomSpec(random, hiddenSize), pick(random, LAYOUTS));
    await using layer = new MoELayer(parts.spec, parts.tensors, { device });
    for (const tokens of [between(random, 1, 8), between(random, 9, 60), between(random, 1, 8)]) {
      await check(layer, parts, await randomHidden(random, parts, tokens));
    }
  }
});

for (const dtype of WEIGHT_DTYPES) {
  test(`hidden sizes that no vector width divides, ${dtype}`, async () => {
    const random = randomFor(`layer hidden ${dtype}`);
    for (const hiddenSize of [1, 3, 65, 100, 257]) {
      const experts = gatedExperts(hiddenSize, between(random, 1, 150), { dtype, bias: true });
      const spec: LayerSpec = {
        ...plainSpec(hiddenSize, 1, 7, 3),
        experts,
        shared: { experts: gatedExperts(hiddenSize, 37, { dtype }), gate: true },
      };
      const parts = randomLayer(random, spec);
      await using layer = new MoELayer(spec, parts.tensors, { device });
      for (const tokens of [1, 5, 40]) {
        await check(layer, parts, await randomHidden(random, parts, tokens));
      }
    }
  });
}

test("batches of 0, 1, 2, 33 and 300 tokens, up and down", async () => {
  const random = randomFor("layer batches");
  const parts = randomLayer(random, plainSpec(48, 40, 6, 2));
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  for (const tokens of [0, 1, 2, 33, 300, 33, 2, 0, 1, 300]) {
    await check(layer, parts, await randomHidden(random, parts, tokens));
  }
});

test("an empty batch is a step like any other, for every aggregation", async () => {
  const random = randomFor("layer empty");
  for (const mode of ["sum", "concat"] as const) {
    const base = plainSpec(5, 4, 3, 2);
    const spec: LayerSpec = {
      ...base,
      router: { ...base.router, capacityFactor: 1 },
      aggregation: { ...base.aggregation, mode },
    };
    const parts = randomLayer(random, spec);
    await using layer = new MoELayer(spec, parts.tensors, { device });
    const { output, stats, routing } = await layer.forward(
      { data: new Float32Array(0), shape: [2, 0, 5] },
      { routing: true },
    );
    assert.deepEqual(output.shape, [2, 0, mode === "sum" ? 5 : 10]);
    assert.equal(output.data.length, 0);
    assert.equal(routing?.ids.length, 0);
    assert.equal(stats.tokens, 0);
    assert.deepEqual(stats.counts, new Int32Array(3));
    await check(layer, parts, await randomHidden(random, parts, 3));
  }
});

test("[H], [B, S, H] and deeper batches keep their shape and give the same rows", async () => {
  const random = randomFor("layer shapes");
  const parts = randomLayer(random, plainSpec(20, 12, 5, 2));
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  const hidden = await randomHidden(random, parts, 12);
  const flat = await check(layer, parts, hidden);
  for (const shape of [
    [3, 4, 20],
    [2, 1, 6, 20],
  ]) {
    const { output } = await layer.forward({ data: hidden, shape });
    assert.deepEqual(output.shape, shape);
    assert.deepEqual(output.data, flat.data);
  }
  const one = await layer.forward({ data: rowOf(hidden, 7, 20), shape: [20] });
  assert.deepEqual(one.output.shape, [20]);
  assert.deepEqual(one.output.data, rowOf(flat.data, 7, 20));
  assert.equal(one.stats.tokens, 1);
});

test("hidden states in bfloat16, float16 and float64", async () => {
  const random = randomFor("layer input dtypes");
  const parts = randomLayer(random, plainSpec(20, 12, 5, 2));
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  for (const dtype of ["bfloat16", "float16"] as const) {
    const hidden = tensorOf(normal(random, 80), [4, 20], dtype);
    const { output } = await layer.forward(hidden);
    const same = await layer.forward({ data: valuesOf(hidden), shape: [4, 20] });
    assert.deepEqual(output.data, same.output.data);
  }
  const hidden = await randomHidden(random, parts, 4);
  const double = await layer.forward({ data: Float64Array.from(hidden), shape: [4, 20] });
  assert.deepEqual(double.output.data, (await check(layer, parts, hidden)).data);
});

test("a device tensor in gives a device tensor out, with the same bits", async () => {
  const random = randomFor("layer device tensors");
  for (const mode of ["sum", "concat"] as const) {
    const base = plainSpec(24, 12, 5, 2);
    const spec = { ...base, aggregation: { ...base.aggregation, mode } };
    const parts = randomLayer(random, spec);
    await using layer = new MoELayer(spec, parts.tensors, { device });
    for (const shape of [[9, 24], [3, 3, 24], [24], [0, 24]]) {
      const data = normal(
        random,
        shape.reduce((a, b) => a * b),
      );
      using input = DeviceTensor.fromHost(device, { data, shape });
      const { output: onDevice, stats } = await layer.forward(input);
      using output = onDevice;
      assert.ok(output instanceof DeviceTensor);
      assert.equal(stats.tokens, data.length / 24);
      const expected = (await layer.forward({ data, shape })).output;
      const got = await output.toHost();
      assert.deepEqual(got.shape, expected.shape);
      assert.deepEqual(got.data, expected.data);
    }
  }
});

test("layers in a row on the device, each fed by the one before", async () => {
  const random = randomFor("layer chain");
  const stack = [0, 1, 2].map(() => randomLayer(random, plainSpec(16, 16, 4, 2)));
  const layers = stack.map(({ spec, tensors }) => new MoELayer(spec, tensors, { device }));
  try {
    const hidden = normal(random, 6 * 16);
    let onHost = batch(hidden, 16);
    for (const layer of layers) onHost = (await layer.forward(onHost)).output;
    let onDevice = DeviceTensor.fromHost(device, batch(hidden, 16));
    for (const layer of layers) {
      const next = (await layer.forward(onDevice)).output;
      onDevice[Symbol.dispose]();
      onDevice = next;
    }
    assert.deepEqual((await onDevice.toHost()).data, onHost.data);
    onDevice[Symbol.dispose]();
  } finally {
    for (const layer of layers) await layer.close();
  }
});

test("weights given by a source give the same bits as weights given as tensors", async () => {
  const random = randomFor("layer source");
  const parts = randomLayer(random, randomSpec(random, 30));
  await using fromTensors = new MoELayer(parts.spec, parts.tensors, { device });
  await using fromSource = new MoELayer(parts.spec, parts.source, { device });
  const hidden = batch(normal(random, 90), 30);
  const [a, b] = await Promise.all([fromTensors.forward(hidden), fromSource.forward(hidden)]);
  assert.deepEqual(a.output.data, b.output.data);
});

test("many experts: 1024, and a token bucket beyond 256 with top_k 32", async () => {
  const random = randomFor("layer many experts");
  const parts = randomLayer(random, plainSpec(9, 5, 1024, 32));
  await using layer = new MoELayer(parts.spec, parts.tensors, { device });
  await check(layer, parts, await randomHidden(random, parts, 3));
  const few = randomLayer(random, plainSpec(9, 5, 33, 32));
  await using wide = new MoELayer(few.spec, few.tensors, { device });
  await check(wide, few, await randomHidden(random, few, 260));
});

test("the default device serves layers that are given none", async () => {
  const random = randomFor("layer default device");
  const parts = randomLayer(random, plainSpec(6, 5, 3, 1));
  await using layer = new MoELayer(parts.spec, parts.tensors);
  await check(layer, parts, await randomHidden(random, parts, 4));
});
