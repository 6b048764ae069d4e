/**
 * Layers and hidden states for the GPU: inputs that every element type can hold,
 * routing that float32 can tell, and how far 16-bit arithmetic may be off.
 */

import assert from "node:assert/strict";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights, ProductWeights } from "../../src/data/weights.ts";
import { referenceLogits, referenceRoute } from "../../src/reference/index.ts";
import { type DType, type MatrixView, toFloat32 } from "../../src/tensor.ts";
import type { Random } from "../../src/workload/random.ts";
import type { RandomLayerParts } from "../support/layers.ts";
import { normal } from "../support/seed.ts";
import { tensorOf, valuesOf } from "../support/tensors.ts";

/**
 * Largest relative error of a layer's output by the element type of its rows. An
 * element rounded to bfloat16 is off by 1.1e-3 in the root mean square, float16 by an
 * eighth of that; between input and output rows are rounded two to four times.
 * float32 is what sums of a few thousand products leave (`ieee`).
 */
export const ERROR_BOUND: Readonly<Record<DType, number>> = {
  bfloat16: 6e-3,
  float16: 1e-3,
  float32: 2e-5,
  int32: 0,
};

/**
 * Least distance of a token's selection from another one for its expert ids to be
 * certain, relative to the scores: float32 sums in another order are off by less.
 */
export const CLEAR_MARGIN = 1e-4;

/** The numbers, rounded to an element type. */
export function rounded(values: Float32Array, dtype: DType): Float32Array {
  return valuesOf(tensorOf(values, [values.length], dtype));
}

/** Normal hidden states [tokens, H] that bfloat16 holds exactly, and nearly always float16 too. */
export function exactHidden(random: Random, tokens: number, hiddenSize: number): Float32Array {
  return rounded(normal(random, tokens * hiddenSize), "bfloat16");
}

/** As exactHidden, and every token's routing is clear. */
export async function clearHidden(
  random: Random,
  { spec, source }: Pick<RandomLayerParts, "spec" | "source">,
  tokens: number,
): Promise<Float32Array> {
  const { hiddenSize } = spec;
  const hidden = exactHidden(random, tokens, hiddenSize);
  for (let attempt = 0; attempt < 40; attempt++) {
    const margins = await marginsOf(spec, source, hidden);
    if (margins.every((margin) => margin >= CLEAR_MARGIN)) return hidden;
    margins.forEach((margin, t) => {
      if (margin < CLEAR_MARGIN) hidden.set(exactHidden(random, 1, hiddenSize), t * hiddenSize);
    });
  }
  throw new Error("No hidden states with a clear routing were found in 40 draws.");
}

async function marginsOf(spec: LayerSpec, source: LayerWeights, hidden: Float32Array) {
  const { experts, topK, rule, selectionBias } = spec.router;
  const logits = await referenceLogits(spec, source, Float64Array.from(hidden));
  const bias = selectionBias ? await source.selectionBias?.() : undefined;
  return referenceRoute(rule, logits, experts, topK, bias).margins;
}

/** The rows of a [T, width] matrix that are named, one after the other. */
export function rowsOf(
  matrix: Float32Array,
  tokens: readonly number[],
  width: number,
): Float32Array {
  const rows = new Float32Array(tokens.length * width);
  tokens.forEach((t, i) => {
    rows.set(matrix.subarray(t * width, (t + 1) * width), i * width);
  });
  return rows;
}

/** The same layer with all its weights converted to float32, which is exact. */
export function inFloat32(
  spec: LayerSpec,
  source: LayerWeights,
): { readonly spec: LayerSpec; readonly source: LayerWeights } {
  const product = ({ value, gate, ...biases }: ProductWeights): ProductWeights => ({
    value: widened(value),
    ...(gate && { gate: widened(gate) }),
    ...biases,
  });
  const wide: LayerSpec = {
    ...spec,
    experts: { ...spec.experts, dtype: "float32" },
    ...(spec.shared && {
      shared: { ...spec.shared, experts: { ...spec.shared.experts, dtype: "float32" } },
    }),
  };
  const { gate, gateBias, selectionBias, shared, sharedGate } = source;
  return {
    spec: wide,
    source: {
      expert: async (i) => (await source.expert(i)).map(product),
      ...(gate && { gate: async () => widened(await gate.call(source)) }),
      ...(gateBias && { gateBias: () => gateBias.call(source) }),
      ...(selectionBias && { selectionBias: () => selectionBias.call(source) }),
      ...(shared && { shared: async () => (await shared.call(source)).map(product) }),
      ...(sharedGate && { sharedGate: async () => widened(await sharedGate.call(source)) }),
    },
  };
}

/** Only the elements that the view shows: packed tensors hold those of all experts. */
function widened(view: MatrixView): MatrixView {
  const { rows, columns, offset, rowStride, columnStride } = view;
  const length = (rows - 1) * rowStride + (columns - 1) * columnStride + 1;
  const data = view.data.subarray(offset, offset + length);
  return {
    ...view,
    dtype: "float32",
    offset: 0,
    data: toFloat32({ dtype: view.dtype, shape: [length], data }),
  };
}

/**
 * Every token's ids must be the wanted ones, except where the wanted selection turns on
 * less than float32 can tell.
 *
 * @returns the tokens whose ids agree
 */
export function agreeingTokens(
  got: Int32Array,
  want: { readonly ids: Int32Array; readonly margins: Float64Array },
  topK: number,
  what: string,
): number[] {
  const tokens = [...want.margins.keys()];
  return tokens.filter((t) => {
    const mine = got.slice(t * topK, (t + 1) * topK);
    const theirs = want.ids.slice(t * topK, (t + 1) * topK);
    const agrees = mine.every((id, j) => id === theirs[j]);
    const margin = want.margins[t] as number;
    assert.ok(
      agrees || margin < CLEAR_MARGIN,
      `token ${t} goes to ${mine.join()}, not ${theirs.join()} (margin ${margin}): ${what}`,
    );
    return agrees;
  });
}
