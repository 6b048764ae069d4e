/**
 * Layers of every form on the GPU against the float64 reference: random specs, sizes
 * that are no multiple of anything, every activation and element type. Steps work in poisoned memory.
 */

import assert from "node:assert/strict";
import type { LayerSpec } from "../../src/data/spec.ts";
import { rowWeightsOf } from "../../src/data/step-buffers.ts";
import type { Device } from "../../src/execution/device.ts";
import { openDevice } from "../../src/execution/open.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, referenceRoute, relativeError } from "../../src/reference/index.ts";
import {
  batch,
  CLAMPED,
  errorAmong,
  gatedExperts,
  LAYOUTS,
  PLAIN_ACTIVATIONS,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
  randomSpec,
  termsOfFew,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { between, normal, pick, randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";
import { agreeingTokens, clearHidden, ERROR_BOUND } from "./layers.ts";
import { poisoned } from "./step-memory.ts";

/** Weights of a few float32 operations, from logits that are float32 sums. */
const WEIGHT_BOUND = 1e-4;

/**
 * Runs one batch and compares everything the layer says about it.
 *
 * @param slack times the error bound: narrow rows can cancel to less than their parts, and
 *   three products in a row round once more
 * @returns the relative error of the output
 */
async function check(
  layer: MoELayer,
  parts: RandomLayerParts,
  hidden: Float32Array,
  slack = 1,
): Promise<number> {
  const { spec } = parts;
  const { hiddenSize, router } = spec;
  const tokens = hidden.length / hiddenSize;
  const what = `T=${tokens} ${JSON.stringify(spec)}`;
  const { output, routing, stats } = await layer.forward(batch(hidden, hiddenSize), {
    routing: true,
  });
  const expected = await referenceLayer(spec, parts.source, hidden);
  assert.ok(routing !== undefined);
  assert.equal(agreeingTokens(routing.ids, expected, router.topK, what).length, tokens);
  const weightError = relativeError(routing.weights, expected.weights);
  assert.ok(weightError < WEIGHT_BOUND, `weights are off by ${weightError}: ${what}`);
  const error = errorAmong(await termsOfFew(parts, hidden), output.data, expected.output);
  const bound = slack * ERROR_BOUND[rowWeightsOf(spec)];
  assert.ok(error < bound, `output is off by ${error}, bound ${bound}: ${what}`);
  assert.deepEqual(stats.counts, expected.counts, what);
  assert.deepEqual(stats.dropped, expected.dropped, what);
  return error;
}

async function checkSpec(
  device: Device,
  purpose: string,
  spec: LayerSpec,
  batches: readonly number[],
  slack?: number,
): Promise<number> {
  const random = randomFor(purpose);
  const parts = randomLayer(random, spec);
  await using layer = new MoELayer(spec, parts.tensors, { device: poisoned(device, spec) });
  let worst = 0;
  for (const tokens of batches) {
    const hidden = await clearHidden(random, parts, tokens);
    worst = Math.max(worst, await check(layer, parts, hidden, slack));
  }
  return worst;
}

gpuTest("random specs, with batches that grow and shrink", async (device, t) => {
  const random = randomFor("gpu layer specs");
  const worst = { float32: 0, float16: 0, bfloat16: 0 };
  for (let i = 0; i < 60; i++) {
    const hiddenSize = pick(random, [8, 65, 100, 128, between(random, 4, 200)]);
    const parts = randomLayer(random, randomSpec(random, hiddenSize), pick(random, LAYOUTS));
    await using layer = new MoELayer(parts.spec, parts.tensors, {
      device: poisoned(device, parts.spec),
    });
    const dtype = rowWeightsOf(parts.spec) as keyof typeof worst;
    for (const tokens of [between(random, 1, 8), between(random, 9, 90), between(random, 1, 8)]) {
      const hidden = await clearHidden(random, parts, tokens);
      worst[dtype] = Math.max(worst[dtype], await check(layer, parts, hidden, 2));
    }
  }
  t.diagnostic(`worst relative errors ${JSON.stringify(worst)}`);
});

for (const dtype of WEIGHT_DTYPES) {
  gpuTest(`hidden sizes that no tile divides, ${dtype}`, async (device) => {
    for (const hiddenSize of [1, 3, 65, 100, 257]) {
      const random = randomFor(`gpu intermediate ${dtype} ${hiddenSize}`);
      const spec: LayerSpec = {
        ...plainSpec(hiddenSize, 1, 7, 3),
        experts: gatedExperts(hiddenSize, between(random, 1, 300), { dtype, bias: true }),
        shared: { experts: gatedExperts(hiddenSize, 37, { dtype }), gate: true },
      };
      const slack = hiddenSize < 8 ? 4 : 1.5;
      await checkSpec(device, `gpu hidden ${dtype} ${hiddenSize}`, spec, [1, 5, 40, 130], slack);
    }
  });

  gpuTest(`every activation, gated and not, depth 2 and 3, ${dtype}`, async (device) => {
    for (const bias of [false, true]) {
      for (const activation of [...PLAIN_ACTIVATIONS, CLAMPED]) {
        const experts = gatedExperts(72, 50, { dtype, bias, activation });
        const spec = { ...plainSpec(72, 50, 5, 2), experts };
        // On both sides of the handful of tokens that have kernels of their own.
        await checkSpec(
          device,
          `gpu gated ${dtype} ${activation.kind} ${bias}`,
          spec,
          [3, 33],
          1.5,
        );
      }
      for (const activation of PLAIN_ACTIVATIONS) {
        for (const depth of [2, 3] as const) {
          const experts = gatedExperts(72, 50, { dtype, bias, activation });
          const spec = {
            ...plainSpec(72, 50, 5, 2),
            experts: { ...experts, form: "mlp" as const, depth },
          };
          await checkSpec(device, `gpu mlp ${dtype} ${activation.kind} ${depth}`, spec, [2, 33], 2);
        }
      }
    }
  });

  gpuTest(`concatenation, weighted inputs, residual, capacity, ${dtype}`, async (device) => {
    const base = plainSpec(100, 60, 9, 3);
    const experts = gatedExperts(100, 60, { dtype, bias: true });
    const modes: readonly LayerSpec["aggregation"][] = [
      { mode: "concat", weightsApplyTo: "output", residual: false },
      { mode: "concat", weightsApplyTo: "input", residual: false },
      { mode: "sum", weightsApplyTo: "input", residual: false },
      { mode: "sum", weightsApplyTo: "output", residual: true },
    ];
    for (const [i, aggregation] of modes.entries()) {
      for (const capacityFactor of [undefined, 1, 0.4]) {
        const router = { ...base.router, ...(capacityFactor && { capacityFactor }) };
        const spec = { ...base, experts, aggregation, router };
        await checkSpec(device, `gpu modes ${dtype} ${i} ${capacityFactor}`, spec, [4, 77], 1.5);
      }
    }
  });
}

gpuTest("batches of 0, 1, 2, 4, 5, 33 and 300 tokens, up and down", async (device) => {
  for (const dtype of WEIGHT_DTYPES) {
    const experts = gatedExperts(96, 80, { dtype });
    const spec = { ...plainSpec(96, 80, 6, 2), experts };
    await checkSpec(device, `gpu batches ${dtype}`, spec, [1, 2, 4, 5, 33, 300, 33, 5, 4, 2, 1]);
    const { tensors } = randomLayer(randomFor(`gpu empty ${dtype}`), spec);
    await using layer = new MoELayer(spec, tensors, { device: poisoned(device, spec) });
    for (let step = 0; step < 3; step++) {
      const { output, stats } = await layer.forward({ data: new Float32Array(0), shape: [0, 96] });
      assert.deepEqual(output.shape, [0, 96]);
      assert.deepEqual(stats.counts, new Int32Array(6));
    }
  }
});

gpuTest("top_k of 32, and 1024 experts", async (device) => {
  for (const [experts, topK] of [
    [33, 32],
    [1024, 32],
    [32, 32],
    [1, 1],
    [2, 1],
  ] as const) {
    const spec = {
      ...plainSpec(40, 24, experts, topK),
      experts: gatedExperts(40, 24, { dtype: "bfloat16" }),
    };
    // So many neighbouring ranks are seldom all clear in a larger batch.
    await checkSpec(device, `gpu experts ${experts} ${topK}`, spec, topK === 32 ? [1, 6] : [4, 70]);
  }
});

gpuTest("float32 as tf32, where it is asked for, is cut to its mantissa and no more", async () => {
  await using device = await openDevice({ kind: "cuda", float32: "tf32" });
  const base = plainSpec(256, 192, 8, 2);
  const random = randomFor("gpu tf32");
  const parts = randomLayer(random, base);
  await using layer = new MoELayer(base, parts.tensors, { device: poisoned(device, base) });
  for (const tokens of [40, 300]) {
    const hidden = await clearHidden(random, parts, tokens);
    const expected = await referenceLayer(base, parts.source, hidden);
    const { output } = await layer.forward(batch(hidden, 256));
    const error = relativeError(output.data, expected.output);
    // Ten bits of mantissa, and the tensor cores drop the rest of both factors instead of rounding:
    // up to 1e-3 for each, half of it in the mean, and all in one direction.
    assert.ok(error > ERROR_BOUND.float32 && error < 2.5e-3, `off by ${error}`);
  }
});

gpuTest("logits from elsewhere take the place of the gate's", async (device) => {
  const random = randomFor("gpu given logits");
  for (const dtype of WEIGHT_DTYPES) {
    const spec = { ...plainSpec(72, 50, 20, 4), experts: gatedExperts(72, 50, { dtype }) };
    const parts = randomLayer(random, spec);
    await using layer = new MoELayer(spec, parts.tensors, { device: poisoned(device, spec) });
    for (const tokens of [2, 70]) {
      const hidden = await clearHidden(random, parts, tokens);
      const logits = { data: normal(random, tokens * 20, 2), shape: [tokens, 20] };
      const want = referenceRoute(spec.router.rule, logits.data, 20, 4);
      // Eager, captured, replayed; and the gate's own in between.
      for (let step = 0; step < 3; step++) {
        const given = await layer.forward(batch(hidden, 72), { logits, routing: true });
        agreeingTokens(given.routing?.ids as Int32Array, want, 4, dtype);
        assert.ok(relativeError(given.routing?.weights ?? [], want.weights) < WEIGHT_BOUND);
        const own = await layer.forward(batch(hidden, 72));
        const expected = await referenceLayer(spec, parts.source, hidden);
        assert.ok(relativeError(own.output.data, expected.output) < 2 * ERROR_BOUND[dtype]);
        assert.ok(relativeError(given.output.data, own.output.data) > 0.1);
      }
    }
  }
});
