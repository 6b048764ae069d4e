/**
 * Random layers: specs of every form, their weights once as plain [outputs, inputs]
 * matrices (what the reference reads) and once laid out as a checkpoint might hold
 * them, and hidden states whose routing does not turn on a rounding error.
 */

import type { ExpertTensors, LayerTensors } from "../../src/data/host-weights.ts";
import type { ExpertsSpec, LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights, ProductWeights } from "../../src/data/weights.ts";
import type { Activation } from "../../src/execution/operators.ts";
import {
  referenceLayer,
  referenceLogits,
  referenceRoute,
  relativeError,
} from "../../src/reference/index.ts";
import {
  type DType,
  matrixView,
  type Tensor,
  type TensorLike,
  toTensor,
} from "../../src/tensor.ts";
import type { Random } from "../../src/workload/random.ts";
import { randomRule } from "./rules.ts";
import { between, chance, normal, pick } from "./seed.ts";
import { tensorOf, valuesOf } from "./tensors.ts";

export const WEIGHT_DTYPES: readonly DType[] = ["float32", "bfloat16", "float16"];

const PLAIN_KINDS = ["none", "relu", "silu", "gelu", "gelu-tanh", "sigmoid"] as const;

export const PLAIN_ACTIVATIONS: readonly Activation[] = PLAIN_KINDS.map((kind) => ({ kind }));
/** The limit is low enough that random numbers reach it. */
export const CLAMPED: Activation = { kind: "swiglu-clamped", alpha: 1.702, limit: 1.5 };

// ---------------------------------------------------------------------------
// Experts

/** One matrix product of one expert, as tensors of their own. */
interface Product {
  readonly value: Tensor;
  readonly gate?: Tensor;
  readonly valueBias?: Float32Array;
  readonly gateBias?: Float32Array;
}

/** The weights of a set of experts: expert, then product. */
export type ExpertSet = readonly (readonly Product[])[];

export function randomExperts(random: Random, spec: ExpertsSpec, count: number): ExpertSet {
  const depth = spec.form === "gated" ? 2 : (spec.depth ?? 2);
  return Array.from({ length: count }, () =>
    Array.from({ length: depth }, (_, i): Product => {
      const inputs = i === 0 ? spec.hiddenSize : spec.intermediateSize;
      const outputs = i === depth - 1 ? spec.hiddenSize : spec.intermediateSize;
      const matrix = () =>
        toTensor(
          tensorOf(
            normal(random, outputs * inputs, 1 / Math.sqrt(inputs)),
            [outputs, inputs],
            spec.dtype,
          ),
          "weights",
        );
      const gated = spec.form === "gated" && i === 0;
      return {
        value: matrix(),
        ...(gated && { gate: matrix() }),
        ...(spec.bias && { valueBias: normal(random, outputs) }),
        ...(spec.bias && gated && { gateBias: normal(random, outputs) }),
      };
    }),
  );
}

/** As LayerWeights.expert() gives them. */
export function productsOf(set: ExpertSet, expert: number): readonly ProductWeights[] {
  return (set[expert] ?? []).map(({ value, gate, ...biases }) => ({
    value: matrixView(value),
    ...(gate && { gate: matrixView(gate) }),
    ...biases,
  }));
}

export interface Layout {
  readonly packed: boolean;
  readonly transposed: boolean;
  /** Gate and up: two tensors, or one in two halves, or one with the outputs interleaved. */
  readonly gateUp: "apart" | "halves" | "interleaved";
}

export const PLAIN_LAYOUT: Layout = { packed: false, transposed: false, gateUp: "apart" };

export const LAYOUTS: readonly Layout[] = [false, true].flatMap((packed) =>
  [false, true].flatMap((transposed) =>
    (["apart", "halves", "interleaved"] as const).map((gateUp) => ({ packed, transposed, gateUp })),
  ),
);

/** The set as tensors in the given layout. */
export function layOut(spec: ExpertsSpec, set: ExpertSet, layout: Layout): ExpertTensors {
  const stored = layout.transposed ? { transposed: true } : {};
  const matrices = (of: (products: readonly Product[]) => Tensor) => {
    const each = set.map((products) => {
      const matrix = of(products);
      return layout.transposed ? transpose(matrix) : matrix;
    });
    return layout.packed ? pack(each) : each;
  };
  const biases = (of: (products: readonly Product[]) => Float32Array | undefined) => {
    const each = set.map((products) => {
      const bias = of(products) as Float32Array;
      return tensorOf(bias, [bias.length]);
    });
    return layout.packed ? pack(each) : each;
  };
  const product = (products: readonly Product[], i: number) => products[i] as Product;

  if (spec.form === "mlp") {
    const indices = Array.from({ length: spec.depth ?? 2 }, (_, i) => i);
    return {
      ...stored,
      layers: indices.map((i) => matrices((p) => product(p, i).value)),
      ...(spec.bias && {
        layerBiases: indices.map((i) => biases((p) => product(p, i).valueBias)),
      }),
    };
  }
  const down = {
    ...stored,
    down: matrices((p) => product(p, 1).value),
    ...(spec.bias && { downBias: biases((p) => product(p, 1).valueBias) }),
  };
  if (layout.gateUp === "apart") {
    return {
      ...down,
      gate: matrices((p) => product(p, 0).gate as Tensor),
      up: matrices((p) => product(p, 0).value),
      ...(spec.bias && {
        gateBias: biases((p) => product(p, 0).gateBias),
        upBias: biases((p) => product(p, 0).valueBias),
      }),
    };
  }
  const interleaved = layout.gateUp === "interleaved";
  return {
    ...down,
    ...(interleaved && { gateUpLayout: "interleaved" as const }),
    gateUp: matrices((p) =>
      joinRows(product(p, 0).gate as Tensor, product(p, 0).value, interleaved),
    ),
    ...(spec.bias && {
      gateUpBias: biases((p) => {
        const { gateBias, valueBias } = product(p, 0);
        const column = (bias: Float32Array | undefined) =>
          toTensor(tensorOf(bias as Float32Array, [spec.intermediateSize, 1]), "bias");
        return joinRows(column(gateBias), column(valueBias), interleaved).data as Float32Array;
      }),
    }),
  };
}

function transpose(matrix: Tensor): Tensor {
  const [rows, columns] = matrix.shape as [number, number];
  const data = matrix.data.slice();
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) data[c * rows + r] = matrix.data[r * columns + c] as number;
  }
  return { dtype: matrix.dtype, shape: [columns, rows], data };
}

/** Two [rows, columns] matrices as one [2 rows, columns]. */
function joinRows(first: Tensor, second: Tensor, interleaved: boolean): Tensor {
  const [rows, columns] = first.shape as [number, number];
  const data =
    first.data instanceof Float32Array
      ? new Float32Array(2 * rows * columns)
      : new Uint16Array(2 * rows * columns);
  for (let r = 0; r < rows; r++) {
    const [a, b] = interleaved ? [2 * r, 2 * r + 1] : [r, rows + r];
    data.set(first.data.subarray(r * columns, (r + 1) * columns), a * columns);
    data.set(second.data.subarray(r * columns, (r + 1) * columns), b * columns);
  }
  return { dtype: first.dtype, shape: [2 * rows, columns], data };
}

function pack(tensors: readonly TensorLike[]): TensorLike {
  const each = tensors.map((like) => toTensor(like, "tensor"));
  const first = each[0] as Tensor;
  const length = first.data.length;
  const data =
    first.data instanceof Float32Array
      ? new Float32Array(length * each.length)
      : new Uint16Array(length * each.length);
  each.forEach((tensor, i) => {
    data.set(tensor.data, i * length);
  });
  return { dtype: first.dtype, shape: [each.length, ...first.shape], data };
}

// ---------------------------------------------------------------------------
// Layers

/** A layer's spec and its weights, in both forms. */
export interface RandomLayerParts {
  readonly spec: LayerSpec;
  readonly tensors: LayerTensors;
  /** The same weights as the reference reads them; shares no code with hostLayerWeights(). */
  readonly source: LayerWeights;
}

export function randomLayer(
  random: Random,
  spec: LayerSpec,
  layout: Layout = PLAIN_LAYOUT,
): RandomLayerParts {
  const { hiddenSize, router } = spec;
  const count = router.experts;
  // Logits of a few units, as trained routers have.
  const gate = tensorOf(
    normal(random, count * hiddenSize, 2 / Math.sqrt(hiddenSize)),
    [count, hiddenSize],
    spec.experts.dtype,
  );
  const gateBias = normal(random, count);
  const selectionBias = normal(random, count, 0.2);
  const experts = randomExperts(random, spec.experts, count);
  const shared = spec.shared && randomExperts(random, spec.shared.experts, 1);
  const sharedGate = tensorOf(normal(random, hiddenSize, 1 / Math.sqrt(hiddenSize)), [
    1,
    hiddenSize,
  ]);
  const view = (tensor: TensorLike) => matrixView(toTensor(tensor, "matrix"));
  return {
    spec,
    tensors: {
      gate,
      ...(router.bias && { gateBias: tensorOf(gateBias, [count]) }),
      ...(router.selectionBias && { selectionBias: tensorOf(selectionBias, [count]) }),
      experts: layOut(spec.experts, experts, layout),
      ...(spec.shared && shared && { shared: layOut(spec.shared.experts, shared, layout) }),
      ...(spec.shared?.gate && { sharedGate }),
    },
    source: {
      gate: async () => view(gate),
      gateBias: async () => gateBias,
      selectionBias: async () => selectionBias,
      expert: async (i) => productsOf(experts, i),
      shared: async () => productsOf(shared ?? [], 0),
      sharedGate: async () => view(sharedGate),
    },
  };
}

export function gatedExperts(
  hiddenSize: number,
  intermediateSize: number,
  more: Partial<ExpertsSpec> = {},
): ExpertsSpec {
  return {
    form: "gated",
    hiddenSize,
    intermediateSize,
    activation: { kind: "silu" },
    bias: false,
    dtype: "float32",
    ...more,
  };
}

export function randomExpertsSpec(random: Random, hiddenSize: number): ExpertsSpec {
  const form = pick(random, ["gated", "gated", "mlp"] as const);
  return {
    form,
    ...(form === "mlp" && { depth: pick(random, [2, 3] as const) }),
    hiddenSize,
    intermediateSize: between(random, 1, 70),
    activation: form === "gated" && chance(random, 0.3) ? CLAMPED : pick(random, PLAIN_ACTIVATIONS),
    bias: chance(random, 0.5),
    dtype: pick(random, WEIGHT_DTYPES),
  };
}

/** A layer of a random form, small enough for the reference to be quick. */
export function randomSpec(random: Random, hiddenSize: number): LayerSpec {
  const experts = between(random, 1, 12);
  const topK = between(random, 1, Math.min(4, experts));
  const rule = randomRule(random, experts, topK);
  const scoresAll = rule.scoring === "softmax" || rule.scoring === "sigmoid";
  const mode = chance(random, 0.2) ? "concat" : "sum";
  const sum = mode === "sum";
  return {
    hiddenSize,
    router: {
      experts,
      topK,
      rule,
      bias: chance(random, 0.3),
      selectionBias: scoresAll && chance(random, 0.3),
      ...(chance(random, 0.25) && { capacityFactor: 0.5 + random.uniform() }),
    },
    experts: randomExpertsSpec(random, hiddenSize),
    ...(sum &&
      chance(random, 0.4) && {
        shared: { experts: randomExpertsSpec(random, hiddenSize), gate: chance(random, 0.5) },
      }),
    aggregation: {
      mode,
      weightsApplyTo: chance(random, 0.3) ? "input" : "output",
      residual: sum && chance(random, 0.3),
    },
  };
}

/** A plain layer: Mixtral's rule, gated SiLU experts. */
export function plainSpec(
  hiddenSize: number,
  intermediateSize: number,
  experts: number,
  topK: number,
  more: Partial<LayerSpec> = {},
): LayerSpec {
  return {
    hiddenSize,
    router: { experts, topK, rule: { scoring: "softmax", renormalize: true, scale: 1 } },
    experts: gatedExperts(hiddenSize, intermediateSize),
    aggregation: { mode: "sum", weightsApplyTo: "output", residual: false },
    ...more,
  };
}

/**
 * Logits are float32 sums of float32 products: good to about 1e-6. Tokens whose
 * selection turns on less than this would make ids a matter of luck.
 */
const LEAST_MARGIN = 2e-5;

/** Random hidden states [tokens, H] whose routing float32 can tell. */
export async function randomHidden(
  random: Random,
  { spec, source }: Pick<RandomLayerParts, "spec" | "source">,
  tokens: number,
): Promise<Float32Array> {
  const { hiddenSize, router } = spec;
  const hidden = normal(random, tokens * hiddenSize);
  const bias = router.selectionBias ? await source.selectionBias?.() : undefined;
  for (let attempt = 0; attempt < 20; attempt++) {
    const logits = await referenceLogits(spec, source, Float64Array.from(hidden));
    const { margins } = referenceRoute(router.rule, logits, router.experts, router.topK, bias);
    if (margins.every((margin) => margin >= LEAST_MARGIN)) return hidden;
    margins.forEach((margin, t) => {
      if (margin < LEAST_MARGIN) hidden.set(normal(random, hiddenSize), t * hiddenSize);
    });
  }
  throw new Error("No hidden states with a clear routing were found in 20 draws.");
}

type Numbers = ArrayLike<number> & Iterable<number>;

/** Of so few numbers all can cancel: of one, with 3 of 7 experts, one in 150 does to a hundredth of its terms. */
const FEW = 4;

/**
 * What a layer's output is added up from, the experts' weighted rows, where it is so few numbers that errors are better
 * held against them than against the output; else nothing.
 */
export async function termsOfFew(
  { spec, source }: Pick<RandomLayerParts, "spec" | "source">,
  hidden: Float32Array,
): Promise<Numbers> {
  if (hidden.length >= FEW) return [];
  const aggregation = { ...spec.aggregation, mode: "concat" as const };
  return (await referenceLayer({ ...spec, aggregation }, source, hidden)).output;
}

/** The relative error of an output, of which these terms are a part: what is added up can cancel to less than they are. */
export function errorAmong(terms: Numbers, output: Numbers, expected: Numbers): number {
  // Outputs can be long, and mostly there are no terms.
  if (terms.length === 0) return relativeError(output, expected);
  return relativeError([...output, ...terms], [...expected, ...terms]);
}

/** Row `t` of a [T, width] matrix. */
export function rowOf(matrix: Float32Array, t: number, width: number): Float32Array {
  return matrix.slice(t * width, (t + 1) * width);
}

/** Normal hidden states [T, H] that all lean to one vector [H], and so to the same experts. */
export function leaning(random: Random, tokens: number, lean: Float32Array): Float32Array {
  const width = lean.length;
  return normal(random, tokens * width).map((x, i) => x + (lean[i % width] as number));
}

/** A matrix [T, H] as the tensor forward() takes. */
export function batch(hidden: Float32Array, hiddenSize: number): TensorLike {
  return { data: hidden, shape: [hidden.length / hiddenSize, hiddenSize] };
}

export { valuesOf };
