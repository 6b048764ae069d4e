/** Layers on an emulated GPU against the float64 reference. */

import assert from "node:assert/strict";
import { rowWeightsOf } from "../../../../src/data/step-buffers.ts";
import type { CudaDevice } from "../../../../src/execution/cuda/device.ts";
import type { LayerOptions } from "../../../../src/layer/forward.ts";
import { MoELayer } from "../../../../src/layer/moe-layer.ts";
import {
  referenceLayer,
  referenceLogits,
  referenceRoute,
  relativeError,
} from "../../../../src/reference/index.ts";
import type { DType } from "../../../../src/tensor.ts";
import type { Random } from "../../../../src/workload/random.ts";
import { batch, type RandomLayerParts } from "../../../support/layers.ts";
import { normal } from "../../../support/seed.ts";
import { tensorOf, valuesOf } from "../../../support/tensors.ts";

/**
 * Relative errors by the type of the rows, which are rounded to it between two products:
 * 2^-9 and 2^-12 at most each time. Sums are in float32 throughout.
 */
const BOUNDS: Partial<Record<DType, number>> = { bfloat16: 6e-3, float16: 8e-4, float32: 2e-5 };

/** Of few outputs, as one layer of width 1 has, a single one that cancels is all of the error. */
const FEW_OUTPUTS = 200;
const FEW_FACTOR = 4;

/** Routing works in float32 whatever the rows are. */
const ROUTING_BOUND = 2e-5;

/** Below this the choice between two experts would be up to the rounding of float32. */
const LEAST_MARGIN = 1e-4;

/** Random hidden states that the rows' type holds exactly, and whose routing float32 can tell. */
export async function hiddenFor(
  random: Random,
  { spec, source }: RandomLayerParts,
  tokens: number,
): Promise<Float32Array> {
  const { hiddenSize, router } = spec;
  const dtype = rowWeightsOf(spec);
  const draw = (rows: number) =>
    valuesOf(tensorOf(normal(random, rows * hiddenSize), [rows, hiddenSize], dtype)).slice();
  const hidden = draw(tokens);
  const bias = router.selectionBias ? await source.selectionBias?.() : undefined;
  for (let attempt = 0; attempt < 30; attempt++) {
    const logits = await referenceLogits(spec, source, Float64Array.from(hidden));
    const { margins } = referenceRoute(router.rule, logits, router.experts, router.topK, bias);
    const unclear = [...margins.keys()].filter((t) => (margins[t] as number) < LEAST_MARGIN);
    if (unclear.length === 0) return hidden;
    for (const t of unclear) hidden.set(draw(1), t * hiddenSize);
  }
  throw new Error("No hidden states with a clear routing were found.");
}

export interface CheckOptions extends Omit<LayerOptions, "device"> {
  /** Instead of that of the rows' type. */
  readonly bound?: number;
}

/**
 * Runs batches of these sizes, each until it was eager, captured and replayed, and holds
 * every step against the reference and the first of its batch.
 */
export async function checkLayer(
  device: CudaDevice,
  random: Random,
  parts: RandomLayerParts,
  sizes: readonly number[],
  { bound, ...options }: CheckOptions = {},
): Promise<void> {
  const { spec } = parts;
  await using layer = new MoELayer(spec, parts.tensors, { device, ...options });
  for (const tokens of sizes) {
    const what = `T=${tokens} ${JSON.stringify(spec)}`;
    const hidden = await hiddenFor(random, parts, tokens);
    const expected = await referenceLayer(spec, parts.source, hidden);
    const factor = expected.output.length < FEW_OUTPUTS ? FEW_FACTOR : 1;
    const most = bound ?? factor * (BOUNDS[rowWeightsOf(spec)] as number);
    let first: Float32Array | undefined;
    const modes = new Set<string>();
    for (let step = 0; step < 8 && !modes.has("replayed"); step++) {
      const { output, routing, stats } = await layer.forward(batch(hidden, spec.hiddenSize), {
        routing: true,
      });
      modes.add(stats.mode);
      assert.deepEqual(routing?.ids, expected.ids, what);
      const weightError = relativeError(routing?.weights ?? [], expected.weights);
      assert.ok(weightError < ROUTING_BOUND, `weights are off by ${weightError}: ${what}`);
      const error = relativeError(output.data, expected.output);
      assert.ok(error < most, `${stats.mode} output is off by ${error}: ${what}`);
      assert.deepEqual(stats.counts, expected.counts, what);
      assert.deepEqual(stats.dropped, expected.dropped, what);
      first ??= output.data;
      assert.deepEqual(output.data, first, `${stats.mode} and eager bits differ: ${what}`);
    }
    assert.ok(modes.has("replayed"), `never replayed: ${what}`);
  }
}
