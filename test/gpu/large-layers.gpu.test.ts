/**
 * Layers too large for a float64 reference of everything, at sizes of our choice: tokens drawn
 * from the batch are compared. Where tokens depend on each other (capacity), the whole batch is
 * compared with the CPU device. Steps work in poisoned memory.
 */

import assert from "node:assert/strict";
import type { LayerSpec } from "../../src/data/spec.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { relativeError } from "../../src/reference/index.ts";
import type { DType } from "../../src/tensor.ts";
import { layerSpecOf } from "../../src/workload/presets.ts";
import type { Random } from "../../src/workload/random.ts";
import { RandomLayer } from "../../src/workload/random-layer.ts";
import { withCpu } from "../support/device.ts";
import {
  batch,
  gatedExperts,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
} from "../support/layers.ts";
import { randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";
import { clearHidden, ERROR_BOUND } from "./layers.ts";
import { checkSampled } from "./sampled.ts";
import { poisoned } from "./step-memory.ts";

interface Shape {
  readonly tokens: number;
  readonly experts: number;
  readonly topK: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly dtype: DType;
}

const SHAPES: readonly Shape[] = [
  { tokens: 20_000, experts: 512, topK: 8, hidden: 200, intermediate: 136, dtype: "bfloat16" },
  { tokens: 20_000, experts: 8, topK: 2, hidden: 328, intermediate: 520, dtype: "float16" },
  { tokens: 19_999, experts: 2, topK: 1, hidden: 72, intermediate: 40, dtype: "float32" },
  { tokens: 5001, experts: 64, topK: 32, hidden: 96, intermediate: 72, dtype: "float32" },
  { tokens: 4097, experts: 128, topK: 8, hidden: 513, intermediate: 255, dtype: "bfloat16" },
  { tokens: 1023, experts: 20, topK: 4, hidden: 704, intermediate: 352, dtype: "bfloat16" },
  { tokens: 257, experts: 100, topK: 8, hidden: 333, intermediate: 111, dtype: "float32" },
];

/** Layers of the size of real ones, the last two with sizes that no tile divides. */
const REAL_SHAPES: readonly Shape[] = [
  { tokens: 65, experts: 128, topK: 8, hidden: 2048, intermediate: 768, dtype: "bfloat16" },
  { tokens: 1000, experts: 8, topK: 2, hidden: 4096, intermediate: 14_336, dtype: "bfloat16" },
  { tokens: 3, experts: 64, topK: 8, hidden: 2048, intermediate: 1024, dtype: "float16" },
  { tokens: 700, experts: 60, topK: 4, hidden: 2047, intermediate: 1409, dtype: "bfloat16" },
  { tokens: 1300, experts: 60, topK: 4, hidden: 2047, intermediate: 1409, dtype: "float16" },
];
/** Tokens of them computed in float64; an expert of theirs takes up to a second. */
const REAL_SAMPLES = 1;

function specOf({ experts, topK, hidden, intermediate, dtype }: Shape): LayerSpec {
  return {
    ...plainSpec(hidden, intermediate, experts, topK),
    experts: gatedExperts(hidden, intermediate, { dtype, bias: true }),
    shared: { experts: gatedExperts(hidden, 56, { dtype }), gate: true },
  };
}

/** A layer whose router adds `bias` to each expert's logit: which experts tokens go to is up to it. */
function biasedLayer(
  random: Random,
  spec: LayerSpec,
  biasOf: (expert: number) => number,
): RandomLayerParts {
  const wanted = { ...spec, router: { ...spec.router, bias: true } };
  const { tensors, source } = randomLayer(random, wanted);
  const bias = Float32Array.from({ length: spec.router.experts }, (_, e) => biasOf(e));
  return {
    spec: wanted,
    tensors: { ...tensors, gateBias: { data: bias, shape: [bias.length] } },
    source: { ...source, gateBias: async () => bias },
  };
}

for (const shape of SHAPES) {
  const { tokens, experts, topK, hidden, intermediate, dtype } = shape;
  const name = `${tokens} tokens, ${experts} experts, top ${topK}, ${hidden} x ${intermediate}`;
  gpuTest(`${name}, ${dtype}`, async (device, t) => {
    const random = randomFor(`gpu large ${name}`);
    const parts = randomLayer(random, specOf(shape));
    await using layer = new MoELayer(parts.spec, parts.tensors, {
      device: poisoned(device, parts.spec),
    });
    const { worst } = await checkSampled(layer, parts, random, tokens);
    t.diagnostic(`relative error ${worst.toExponential(2)}`);
  });
}

for (const shape of REAL_SHAPES) {
  const { tokens, experts, topK, hidden, intermediate, dtype } = shape;
  const name = `${tokens} tokens, ${experts} experts, top ${topK}, ${hidden} x ${intermediate}`;
  gpuTest(`${name}, ${dtype}`, async (device, t) => {
    const random = randomFor(`gpu real ${name}`);
    const sizes = { hiddenSize: hidden, intermediateSize: intermediate, experts, topK };
    const layerShape = { ...sizes, renormalize: true };
    const source = new RandomLayer(layerShape, dtype, random.bits());
    const spec = layerSpecOf(layerShape, dtype);
    await using layer = new MoELayer(spec, source, { device: poisoned(device, spec) });
    const parts = { spec, source };
    const { worst } = await checkSampled(layer, parts, random, tokens, REAL_SAMPLES);
    t.diagnostic(`relative error ${worst.toExponential(2)}`);
  });
}

for (const dtype of ["bfloat16", "float32"] as const) {
  gpuTest(`all tokens on one expert, ${dtype}`, async (device) => {
    const random = randomFor(`gpu one expert ${dtype}`);
    const shape = { tokens: 0, experts: 128, topK: 1, hidden: 136, intermediate: 200, dtype };
    const parts = biasedLayer(random, specOf(shape), (e) => (e === 77 ? 1000 : 0));
    await using layer = new MoELayer(parts.spec, parts.tensors, {
      device: poisoned(device, parts.spec),
    });
    for (const tokens of [1, 4, 17, 129, 4097]) {
      const { counts } = await checkSampled(layer, parts, random, tokens);
      assert.equal(counts[77], tokens);
    }
  });

  gpuTest(`most experts without a token, ${dtype}`, async (device) => {
    const random = randomFor(`gpu empty experts ${dtype}`);
    const shape = { tokens: 0, experts: 256, topK: 4, hidden: 72, intermediate: 104, dtype };
    const parts = biasedLayer(random, specOf(shape), (e) => (e % 50 === 3 ? 1000 : 0));
    await using layer = new MoELayer(parts.spec, parts.tensors, {
      device: poisoned(device, parts.spec),
    });
    for (const tokens of [2, 64, 3001]) {
      const { counts } = await checkSampled(layer, parts, random, tokens);
      counts.forEach((count, e) => {
        if (e % 50 !== 3) assert.equal(count, 0, `expert ${e}`);
      });
    }
  });
}

gpuTest("a capacity limit on thousands of tokens drops what the CPU drops", async (device) => {
  const random = randomFor("gpu capacity");
  const base = plainSpec(64, 48, 12, 3);
  const spec = { ...base, router: { ...base.router, capacityFactor: 0.8 } };
  const parts = biasedLayer(random, spec, (e) => 0.3 * e);
  const tokens = 3001;
  const hidden = await clearHidden(random, parts, tokens);
  const run = async (on: typeof device) => {
    await using layer = new MoELayer(parts.spec, parts.tensors, {
      device: poisoned(on, parts.spec),
    });
    return await layer.forward(batch(hidden, 64), { routing: true });
  };
  const expected = await withCpu(2, run);
  const got = await run(device);
  assert.ok(expected.stats.dropped.length > 100);
  assert.deepEqual(got.routing?.ids, expected.routing?.ids);
  assert.deepEqual(got.stats.dropped, expected.stats.dropped);
  const error = relativeError(got.output.data, expected.output.data);
  assert.ok(error < ERROR_BOUND.float32, `the output is off by ${error}`);
});
