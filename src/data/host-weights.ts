/**
 * A layer's weights given as tensors in host memory: one tensor per expert, or
 * packed tensors with the experts along the first axis; gate and up apart, or
 * together in one tensor, one after the other or interleaved. Nothing is copied:
 * the layouts differ only in the strides of the views.
 */

import { ShapeError } from "../errors.ts";
import { type Fields, refuseUnknown, requireFields } from "../execution/checks.ts";
import {
  checkDataLength,
  type DType,
  type MatrixView,
  type Tensor,
  type TensorLike,
  toFloat32,
  toTensor,
} from "../tensor.ts";
import type { ExpertsSpec, LayerSpec } from "./spec.ts";
import { productCount } from "./step-buffers.ts";
import { oneOf, yesOrNo } from "./validate.ts";
import type { LayerWeights, ProductWeights } from "./weights.ts";

/** One tensor per expert, each [outputs, inputs], or one packed tensor [experts, outputs, inputs]. */
export type PerExpert = TensorLike | readonly TensorLike[];

/**
 * Weights of a set of experts. Matrices are [outputs, inputs]; with `transposed`
 * they are [inputs, outputs] (gpt-oss, Llama-4). Biases are [outputs] per expert.
 */
export interface ExpertTensors {
  /** Gated experts: gate [I, H] and up [I, H] ... */
  readonly gate?: PerExpert;
  readonly up?: PerExpert;
  /** ... or both in one [2I, H]. */
  readonly gateUp?: PerExpert;
  /** How `gateUp` and its bias hold the two: `halves` (gate first) or `interleaved` (gate at even outputs). Default `halves`. */
  readonly gateUpLayout?: "halves" | "interleaved";
  readonly down?: PerExpert;
  /** Plain MLP: the matrices in order, [I, H], ([I, I],) [H, I]. */
  readonly layers?: readonly PerExpert[];
  readonly transposed?: boolean;
  readonly gateBias?: PerExpert;
  readonly upBias?: PerExpert;
  readonly gateUpBias?: PerExpert;
  readonly downBias?: PerExpert;
  readonly layerBiases?: readonly PerExpert[];
}

/** All weights of a layer as host tensors. */
export interface LayerTensors {
  /** [experts, hidden]; may be left out if every step is given its logits. */
  readonly gate?: TensorLike;
  readonly gateBias?: TensorLike;
  readonly selectionBias?: TensorLike;
  readonly experts: ExpertTensors;
  readonly shared?: ExpertTensors;
  /** [1, hidden]. */
  readonly sharedGate?: TensorLike;
}

const LAYER: Fields<LayerTensors> = {
  gate: true,
  gateBias: true,
  selectionBias: true,
  experts: true,
  shared: true,
  sharedGate: true,
};
const EXPERTS: Fields<ExpertTensors> = {
  gate: true,
  up: true,
  gateUp: true,
  gateUpLayout: true,
  down: true,
  layers: true,
  transposed: true,
  gateBias: true,
  upBias: true,
  gateUpBias: true,
  downBias: true,
  layerBiases: true,
};

/**
 * Wraps host tensors as a weight source.
 *
 * @throws ShapeError naming the tensor that is missing, has another shape or element type than the
 *   spec asks for, or is given though the spec does not ask for it
 * @throws InvalidArgumentError for a tensor of an unknown name or layout
 */
export function hostLayerWeights(spec: LayerSpec, tensors: LayerTensors): LayerWeights {
  const { experts: count, bias, selectionBias } = spec.router;
  refuseUnknown(tensors, "weights", LAYER);
  refuseUnused("", tensors, {
    gateBias: [
      bias || "the spec's router.bias is not true",
      tensors.gate !== undefined || "gate is not given",
    ],
    selectionBias: [selectionBias || "the spec's router.selectionBias is not true"],
    shared: [spec.shared !== undefined || "the spec has no shared"],
    sharedGate: [spec.shared?.gate || "the spec's shared.gate is not true"],
  });
  const experts = hostExpertWeights(
    spec.experts,
    count,
    need(tensors.experts, "experts"),
    "experts",
  );
  const weights: LayerWeights = {
    expert: async (i) => experts(i),
  };
  if (tensors.gate !== undefined) {
    const gate = matrix(tensors.gate, "gate", count, spec.hiddenSize);
    weights.gate = async () => gate;
  }
  if (bias && tensors.gate !== undefined) {
    const values = vector(need(tensors.gateBias, "gateBias"), "gateBias", count);
    weights.gateBias = async () => values;
  }
  if (selectionBias) {
    const values = vector(need(tensors.selectionBias, "selectionBias"), "selectionBias", count);
    weights.selectionBias = async () => values;
  }
  if (spec.shared !== undefined) {
    const shared = hostExpertWeights(
      spec.shared.experts,
      1,
      need(tensors.shared, "shared"),
      "shared",
    );
    weights.shared = async () => shared(0);
    if (spec.shared.gate) {
      const gateView = matrix(
        need(tensors.sharedGate, "sharedGate"),
        "sharedGate",
        1,
        spec.hiddenSize,
      );
      weights.sharedGate = async () => gateView;
    }
  }
  return weights;
}

/**
 * Wraps the tensors of `count` experts; the result gives the products of one of them.
 *
 * @throws ShapeError, InvalidArgumentError as `hostLayerWeights` does
 */
export function hostExpertWeights(
  spec: ExpertsSpec,
  count: number,
  tensors: ExpertTensors,
  name: string,
): (index: number) => readonly ProductWeights[] {
  const { hiddenSize: hidden, intermediateSize: inner, bias } = spec;
  requireFields(tensors, name, "tensors by name, such as { gate, up, down }", EXPERTS);
  refuseUnusedExperts(spec, tensors, name);
  const { gateUpLayout = "halves", transposed = false } = tensors;
  oneOf(`${name}.gateUpLayout`, gateUpLayout, ["halves", "interleaved"]);
  yesOrNo(`${name}.transposed`, transposed);
  const at = (source: PerExpert | undefined, label: string, outputs: number, inputs: number) =>
    expertMatrix(need(source, label), label, count, outputs, inputs, {
      transposed,
      dtype: spec.dtype,
      field: specOf(name),
    });
  const biasOf = (source: PerExpert | undefined, label: string, outputs: number) =>
    bias ? expertVector(need(source, label), label, count, outputs) : undefined;

  if (spec.form === "mlp") {
    const depth = productCount(spec);
    const products = Array.from({ length: depth }, (_, layer) => {
      const outputs = layer === depth - 1 ? hidden : inner;
      const label = `${name}.layers[${layer}]`;
      return {
        value: at(tensors.layers?.[layer], label, outputs, layer === 0 ? hidden : inner),
        bias: biasOf(tensors.layerBiases?.[layer], `${name}.layerBiases[${layer}]`, outputs),
      };
    });
    return (i) =>
      products.map((product) => ({
        value: product.value(i),
        ...(product.bias && { valueBias: product.bias(i) }),
      }));
  }

  const down = at(tensors.down, `${name}.down`, hidden, inner);
  const downBias = biasOf(tensors.downBias, `${name}.downBias`, hidden);
  const first = tensors.gateUp === undefined ? apart() : together(tensors.gateUp);
  return (i) => [first(i), { value: down(i), ...(downBias && { valueBias: downBias(i) }) }];

  function apart(): (i: number) => ProductWeights {
    const gate = at(tensors.gate, `${name}.gate`, inner, hidden);
    const up = at(tensors.up, `${name}.up`, inner, hidden);
    const gateBias = biasOf(tensors.gateBias, `${name}.gateBias`, inner);
    const upBias = biasOf(tensors.upBias, `${name}.upBias`, inner);
    return (i) => ({
      value: up(i),
      gate: gate(i),
      ...(upBias && gateBias && { valueBias: upBias(i), gateBias: gateBias(i) }),
    });
  }

  function together(source: PerExpert): (i: number) => ProductWeights {
    const both = at(source, `${name}.gateUp`, 2 * inner, hidden);
    const bothBias = biasOf(tensors.gateUpBias, `${name}.gateUpBias`, 2 * inner);
    const interleaved = gateUpLayout === "interleaved";
    return (i) => {
      const [gate, value] = splitGateUp(both(i), interleaved);
      if (bothBias === undefined) return { value, gate };
      const [gateBias, valueBias] = splitGateUpBias(bothBias(i), interleaved);
      return { value, gate, valueBias, gateBias };
    };
  }
}

/** Whether a tensor is used: true, or what in the spec or among the tensors is against it. */
type Uses<T> = { readonly [Name in keyof T]?: readonly (true | string)[] };

/** A tensor that is ignored would make results wrong without a word. */
function refuseUnused<T extends object>(prefix: string, tensors: T, uses: Uses<T>): void {
  for (const name of Object.keys(uses) as (keyof T & string)[]) {
    const reasons = uses[name]?.filter((reason) => reason !== true) ?? [];
    if (tensors[name] === undefined || reasons.length === 0) continue;
    throw new ShapeError(
      `${prefix}${name} is given but would not be used: ${reasons.join(", and ")}. Change that, or leave ${name} out.`,
    );
  }
}

function refuseUnusedExperts(spec: ExpertsSpec, tensors: ExpertTensors, name: string): void {
  const field = specOf(name);
  const form = (wanted: ExpertsSpec["form"]) =>
    spec.form === wanted || `the spec's ${field}.form is "${spec.form}", not "${wanted}"`;
  const bias = spec.bias || `the spec's ${field}.bias is false, not true`;
  const apart = tensors.gateUp === undefined || "gateUp is given as well";
  const joint = tensors.gateUp !== undefined || "gateUp is not given";
  const depth = productCount(spec);
  const fits = (list?: readonly unknown[]) =>
    !(list && list.length > depth) || `the spec's ${field}.depth is ${depth}, not ${list.length}`;
  refuseUnused(`${name}.`, tensors, {
    gate: [form("gated"), apart],
    up: [form("gated"), apart],
    gateUp: [form("gated")],
    gateUpLayout: [form("gated"), joint],
    down: [form("gated")],
    layers: [form("mlp"), fits(tensors.layers)],
    gateBias: [form("gated"), bias, apart],
    upBias: [form("gated"), bias, apart],
    gateUpBias: [form("gated"), bias, joint],
    downBias: [form("gated"), bias],
    layerBiases: [form("mlp"), bias, fits(tensors.layerBiases)],
  });
}

/** What a set of experts is called in the spec. */
function specOf(name: string): string {
  return name === "shared" ? "shared.experts" : "experts";
}

/** The gate and the up matrix inside one [2I, inputs] view. */
function splitGateUp(both: MatrixView, interleaved: boolean): [MatrixView, MatrixView] {
  const rows = both.rows / 2;
  const rowStride = interleaved ? 2 * both.rowStride : both.rowStride;
  const second = both.offset + (interleaved ? both.rowStride : rows * both.rowStride);
  return [
    { ...both, rows, rowStride },
    { ...both, rows, rowStride, offset: second },
  ];
}

/** The gate and the up bias inside one [2I] vector. */
function splitGateUpBias(both: Float32Array, interleaved: boolean): [Float32Array, Float32Array] {
  const half = both.length / 2;
  if (!interleaved) return [both.slice(0, half), both.slice(half)];
  return [both.filter((_, i) => i % 2 === 0), both.filter((_, i) => i % 2 === 1)];
}

function expertMatrix(
  source: PerExpert,
  name: string,
  count: number,
  outputs: number,
  inputs: number,
  stored: { readonly transposed: boolean; readonly dtype: DType; readonly field: string },
): (index: number) => MatrixView {
  const { transposed, dtype, field } = stored;
  const typed = (tensor: Tensor, label: string): Tensor => {
    if (tensor.dtype === dtype) return tensor;
    throw new ShapeError(
      `${label} is ${tensor.dtype}, and the spec's ${field}.dtype is ${dtype}. Set that to "${tensor.dtype}", or give the tensor in ${dtype}.`,
    );
  };
  const [rows, columns] = transposed ? [inputs, outputs] : [outputs, inputs];
  const view = (tensor: Tensor, offset: number): MatrixView => ({
    dtype: tensor.dtype,
    data: tensor.data,
    offset,
    rows: outputs,
    columns: inputs,
    rowStride: transposed ? 1 : inputs,
    columnStride: transposed ? outputs : 1,
  });
  if (isList(source)) {
    const tensors = listOf(source, name, count).map((like, i) =>
      typed(shaped(like, `${name}[${i}]`, [rows, columns]), `${name}[${i}]`),
    );
    return (i) => view(tensors[i] as Tensor, 0);
  }
  const packed = typed(shaped(source, name, [count, rows, columns], count === 1), name);
  return (i) => view(packed, i * rows * columns);
}

function expertVector(
  source: PerExpert,
  name: string,
  count: number,
  length: number,
): (index: number) => Float32Array {
  if (isList(source)) {
    const vectors = listOf(source, name, count).map((like, i) =>
      vector(like, `${name}[${i}]`, length),
    );
    return (i) => vectors[i] as Float32Array;
  }
  const tensor = shaped(source, name, [count, length], count === 1);
  const packed = toFloat32(tensor);
  return (i) => {
    checkDataLength({ ...tensor, data: packed });
    return packed.subarray(i * length, (i + 1) * length);
  };
}

function matrix(like: TensorLike, name: string, rows: number, columns: number): MatrixView {
  const tensor = shaped(like, name, [rows, columns]);
  return {
    dtype: tensor.dtype,
    data: tensor.data,
    offset: 0,
    rows,
    columns,
    rowStride: columns,
    columnStride: 1,
  };
}

function vector(like: TensorLike, name: string, length: number): Float32Array {
  return toFloat32(shaped(like, name, [length]));
}

/** With `squeeze`, a leading extent of 1 may be left out. */
function shaped(like: TensorLike, name: string, shape: readonly number[], squeeze = false): Tensor {
  const tensor = toTensor(like, name);
  const floats: readonly DType[] = ["float32", "bfloat16", "float16"];
  const same = (want: readonly number[]) =>
    tensor.shape.length === want.length && tensor.shape.every((n, i) => n === want[i]);
  if (!same(shape) && !(squeeze && same(shape.slice(1)))) {
    throw new ShapeError(
      `${name} has shape [${tensor.shape.join(", ")}]; the spec asks for [${shape.join(", ")}].`,
    );
  }
  if (!floats.includes(tensor.dtype)) {
    throw new ShapeError(
      `${name} is ${tensor.dtype}; weights must be one of ${floats.join(", ")}.`,
    );
  }
  return tensor;
}

function isList(source: PerExpert): source is readonly TensorLike[] {
  return Array.isArray(source);
}

function listOf(list: readonly TensorLike[], name: string, count: number): readonly TensorLike[] {
  if (list.length !== count) {
    throw new ShapeError(`${name} holds ${list.length} tensors; the spec asks for ${count}.`);
  }
  // Without the holes of a sparse list, which map() passes over.
  return [...list];
}

function need<T>(value: T | undefined, name: string): T {
  if (value === undefined) throw new ShapeError(`${name} is missing; the spec asks for it.`);
  return value;
}
