/**
 * An MoE layer in plain loops and float64, straight from its spec and weights: the
 * slow answer that shows whether a family's conventions were read right. It shares
 * no code with the layer it stands in for.
 */

import type { AggregationSpec, ExpertsSpec, LayerSpec, RouterSpec } from "../../src/data/spec.ts";
import type { LayerWeights, ProductWeights } from "../../src/data/weights.ts";
import { type MatrixView, toFloat32 } from "../../src/tensor.ts";

type Vector = readonly number[];

export interface ReferenceResult {
  readonly output: Float64Array;
  readonly ids: number[];
  readonly weights: number[];
}

/** Runs a layer on [tokens, hidden] values. */
export async function referenceForward(
  spec: LayerSpec,
  source: LayerWeights,
  input: Float32Array,
): Promise<ReferenceResult> {
  const { hiddenSize, router } = spec;
  const gate = dense((await source.gate?.()) as MatrixView);
  const gateBias = router.bias ? await source.gateBias?.() : undefined;
  const selectionBias = router.selectionBias ? await source.selectionBias?.() : undefined;
  const experts: Product[][] = [];
  for (let e = 0; e < router.experts; e++) experts.push((await source.expert(e)).map(product));
  const shared = spec.shared && (await source.shared?.())?.map(product);
  const sharedGate = spec.shared?.gate ? await source.sharedGate?.() : undefined;

  const output = new Float64Array(input.length);
  const ids: number[] = [];
  const weights: number[] = [];
  for (let start = 0; start < input.length; start += hiddenSize) {
    const x = Array.from(input.subarray(start, start + hiddenSize));
    const logits = multiply(gate, x).map((z, e) => z + (gateBias?.[e] ?? 0));
    const chosen = route(router, logits, selectionBias);
    for (const { id, weight } of chosen) {
      ids.push(id);
      weights.push(weight);
      const y = weighted(spec.aggregation, spec.experts, experts[id] as Product[], x, weight);
      y.forEach((value, i) => {
        output[start + i] = (output[start + i] as number) + value;
      });
    }
    if (spec.shared && shared) {
      const scale = sharedGate ? sigmoid(multiply(dense(sharedGate), x)[0] as number) : 1;
      apply(spec.shared.experts, shared, x).forEach((value, i) => {
        output[start + i] = (output[start + i] as number) + scale * value;
      });
    }
  }
  return { output, ids, weights };
}

// ---------------------------------------------------------------------------
// Routing

function route(spec: RouterSpec, logits: Vector, selectionBias: Float32Array | undefined) {
  const { rule, topK } = spec;
  if (rule.scoring === "sparsemixer") return sparsemixer(logits, rule.jitter as number);
  if (rule.scoring === "topk-softmax" || rule.scoring === "topk-sigmoid") {
    const ids = best(logits, topK);
    const values = ids.map((id) => logits[id] as number);
    const weights = rule.scoring === "topk-softmax" ? softmax(values) : values.map(sigmoid);
    return ids.map((id, i) => ({ id, weight: rule.scale * (weights[i] as number) }));
  }
  const scores = rule.scoring === "softmax" ? softmax(logits) : logits.map(sigmoid);
  let selection = scores.map((score, e) => score + (selectionBias?.[e] ?? 0));
  if (rule.groupLimit) {
    const { groups, keep, score } = rule.groupLimit;
    const members = scores.length / groups;
    const groupScores = Array.from({ length: groups }, (_, g) => {
      const sorted = selection.slice(g * members, (g + 1) * members).sort((a, b) => b - a);
      return score === "max"
        ? (sorted[0] as number)
        : (sorted[0] as number) + (sorted[1] as number);
    });
    const kept = best(groupScores, keep);
    selection = selection.map((value, e) =>
      kept.includes(Math.floor(e / members)) ? value : Number.NEGATIVE_INFINITY,
    );
  }
  const ids = best(selection, topK);
  const sum = ids.reduce((total, id) => total + (scores[id] as number), 0);
  const divisor = rule.renormalize ? sum : 1;
  return ids.map((id) => ({ id, weight: (rule.scale * (scores[id] as number)) / divisor }));
}

function sparsemixer(logits: Vector, jitter: number) {
  const taken = new Set<number>();
  return [0, 1].map(() => {
    const rest = logits.map((z, e) => (taken.has(e) ? Number.NEGATIVE_INFINITY : z));
    const [id] = best(rest, 1) as [number];
    const top = rest[id] as number;
    // For an expert already taken this is NaN, which is not above the bound; it stays -Infinity.
    const band = rest.map((z) =>
      (top - z) / Math.max(Math.abs(z), top) > 2 * jitter ? Number.NEGATIVE_INFINITY : z,
    );
    const weight = softmax(band)[id] as number;
    taken.add(id);
    return { id, weight };
  });
}

/** Indices of the `k` largest, best first; of equals the first. */
function best(values: Vector, k: number): number[] {
  return [...values.keys()]
    .sort((a, b) => (values[b] as number) - (values[a] as number) || a - b)
    .slice(0, k);
}

function softmax(values: Vector): number[] {
  const max = Math.max(...values);
  const exps = values.map((z) => Math.exp(z - max));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((e) => e / sum);
}

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

// ---------------------------------------------------------------------------
// Experts

interface Product {
  readonly value: number[][];
  readonly gate: number[][] | undefined;
  readonly valueBias: Float32Array | undefined;
  readonly gateBias: Float32Array | undefined;
}

function product({ value, gate, valueBias, gateBias }: ProductWeights): Product {
  return { value: dense(value), gate: gate && dense(gate), valueBias, gateBias };
}

function weighted(
  { weightsApplyTo }: AggregationSpec,
  form: ExpertsSpec,
  products: readonly Product[],
  x: Vector,
  weight: number,
): number[] {
  return weightsApplyTo === "input"
    ? apply(
        form,
        products,
        x.map((value) => weight * value),
      )
    : apply(form, products, x).map((value) => weight * value);
}

function apply(form: ExpertsSpec, [first, second]: readonly Product[], x: Vector): number[] {
  const { value, gate, valueBias, gateBias } = first as Product;
  const up = multiply(value, x, valueBias);
  const joined = multiply(gate as number[][], x, gateBias).map((g, i) =>
    join(form, g, up[i] as number),
  );
  return multiply((second as Product).value, joined, (second as Product).valueBias);
}

function join({ activation }: ExpertsSpec, g: number, u: number): number {
  switch (activation.kind) {
    case "silu":
      return g * sigmoid(g) * u;
    case "relu":
      return Math.max(g, 0) * u;
    case "gelu":
      return 0.5 * g * (1 + erf(g / Math.SQRT2)) * u;
    case "gelu-tanh":
      return 0.5 * g * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (g + 0.044715 * g ** 3))) * u;
    case "swiglu-clamped": {
      const { alpha, limit } = activation;
      const gate = Math.min(g, limit);
      return (Math.max(-limit, Math.min(u, limit)) + 1) * gate * sigmoid(alpha * gate);
    }
    default:
      throw new Error(`no family uses ${activation.kind}`);
  }
}

/** All terms positive, so nothing cancels (Abramowitz and Stegun 7.1.6). */
function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

function dense(view: MatrixView): number[][] {
  const values = toFloat32({ dtype: view.dtype, shape: [view.data.length], data: view.data });
  return Array.from({ length: view.rows }, (_, r) =>
    Array.from(
      { length: view.columns },
      (_, c) => values[view.offset + r * view.rowStride + c * view.columnStride] as number,
    ),
  );
}

function multiply(rows: readonly Vector[], x: Vector, bias?: Float32Array): number[] {
  return rows.map((row, r) =>
    row.reduce((sum, w, i) => sum + w * (x[i] as number), bias?.[r] ?? 0),
  );
}
