/**
 * A whole MoE layer in float64: what any device's output is checked against. It
 * reads the same spec and the same weight source as the layer proper, and shares
 * no code with it beyond the decoding of float16.
 */

import type { LayerSpec } from "../data/spec.ts";
import type { LayerWeights } from "../data/weights.ts";
import { multiply, referenceExpert } from "./expert.ts";
import { decodeMatrix } from "./numbers.ts";
import { type ReferenceRouting, referenceRoute, sigmoid } from "./route.ts";

/** A choice of a token that its expert had no room for. */
export interface ReferenceDrop {
  readonly token: number;
  readonly choice: number;
  readonly expert: number;
}

export interface ReferenceResult extends ReferenceRouting {
  /** [T, H], or [T, k * H] for a concatenation. */
  readonly output: Float64Array;
  /** What the capacity factor dropped, by token and choice. */
  readonly dropped: readonly ReferenceDrop[];
}

/**
 * Runs a layer on T tokens.
 *
 * @param hidden [T, H]
 */
export async function referenceLayer(
  spec: LayerSpec,
  weights: LayerWeights,
  hidden: Float32Array | Float64Array,
): Promise<ReferenceResult> {
  const { hiddenSize, router, aggregation } = spec;
  const { experts, topK } = router;
  const input = Float64Array.from(hidden);
  const tokens = input.length / hiddenSize;
  const routing = referenceRoute(
    router.rule,
    await referenceLogits(spec, weights, input),
    experts,
    topK,
    router.selectionBias ? await weights.selectionBias?.() : undefined,
  );
  const { kept, dropped } = applyCapacity(routing.ids, experts, topK, router.capacityFactor);

  // Slot s = token * k + choice; a dropped slot's row stays zero.
  const rows = new Float64Array(tokens * topK * hiddenSize);
  for (let expert = 0; expert < experts; expert++) {
    const slots = kept[expert] as readonly number[];
    if (slots.length === 0) continue;
    const its = new Float64Array(slots.length * hiddenSize);
    slots.forEach((slot, i) => {
      its.set(rowOf(input, Math.floor(slot / topK), hiddenSize), i * hiddenSize);
    });
    const slotWeights = Float64Array.from(slots, (slot) => routing.weights[slot] as number);
    const onInput = aggregation.weightsApplyTo === "input";
    const products = await weights.expert(expert);
    const out = referenceExpert(spec.experts, products, its, onInput ? slotWeights : undefined);
    slots.forEach((slot, i) => {
      const weight = onInput ? 1 : (slotWeights[i] as number);
      rows.set(
        rowOf(out, i, hiddenSize).map((x) => x * weight),
        slot * hiddenSize,
      );
    });
  }

  // Side by side, the rows of a token's slots are the rows in slot order as they stand.
  if (aggregation.mode === "concat") return { output: rows, dropped, ...routing };
  const output = new Float64Array(tokens * hiddenSize);
  const shared = await referenceShared(spec, weights, input);
  for (let i = 0; i < output.length; i++) {
    const token = Math.floor(i / hiddenSize);
    const column = i % hiddenSize;
    let sum = 0;
    for (let j = 0; j < topK; j++) {
      sum += rows[(token * topK + j) * hiddenSize + column] as number;
    }
    sum += shared?.[i] ?? 0;
    if (aggregation.residual) sum += input[i] as number;
    output[i] = sum;
  }
  return { output, dropped, ...routing };
}

/** The router logits [T, E] of hidden states [T, H]. */
export async function referenceLogits(
  spec: LayerSpec,
  weights: LayerWeights,
  hidden: Float64Array,
): Promise<Float64Array> {
  const bias = spec.router.bias ? await weights.gateBias?.() : undefined;
  const gate = await weights.gate?.();
  if (gate === undefined) throw new TypeError("The router's gate is missing.");
  const tokens = hidden.length / spec.hiddenSize;
  return multiply(hidden, decodeMatrix(gate), tokens, spec.router.experts, bias);
}

async function referenceShared(
  spec: LayerSpec,
  weights: LayerWeights,
  input: Float64Array,
): Promise<Float64Array | undefined> {
  if (spec.shared === undefined) return undefined;
  const products = await weights.shared?.();
  if (products === undefined) throw new TypeError("The shared expert's weights are missing.");
  const out = referenceExpert(spec.shared.experts, products, input);
  if (!spec.shared.gate) return out;
  const gate = await weights.sharedGate?.();
  if (gate === undefined) throw new TypeError("The shared expert's gate is missing.");
  const tokens = input.length / spec.hiddenSize;
  const gates = multiply(input, decodeMatrix(gate), tokens, 1);
  return out.map((x, i) => x * sigmoid(gates[Math.floor(i / spec.hiddenSize)] as number));
}

/** The slots each expert computes, ascending, and those it has no room for: the later ones. */
function applyCapacity(
  ids: Int32Array,
  experts: number,
  topK: number,
  capacityFactor: number | undefined,
): { readonly kept: readonly (readonly number[])[]; readonly dropped: readonly ReferenceDrop[] } {
  const most =
    capacityFactor === undefined
      ? Number.POSITIVE_INFINITY
      : Math.ceil((capacityFactor * (ids.length / topK) * topK) / experts);
  const kept = Array.from({ length: experts }, (): number[] => []);
  const dropped: ReferenceDrop[] = [];
  ids.forEach((expert, slot) => {
    const its = kept[expert] as number[];
    if (its.length < most) its.push(slot);
    else dropped.push({ token: Math.floor(slot / topK), choice: slot % topK, expert });
  });
  return { kept, dropped };
}

function rowOf(matrix: Float64Array, row: number, width: number): Float64Array {
  return matrix.subarray(row * width, (row + 1) * width);
}
