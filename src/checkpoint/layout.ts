/**
 * How a layer lies in a checkpoint, as plain values: the layer's form, and for every
 * matrix and bias the tensor it is in and the part of that tensor it is. A model
 * family says all it has to say in these terms (families/); binding.ts holds them
 * against the files and reads by them.
 *
 * Conventions differ in two ways only: in names, and in how gate and up matrices are
 * packed. Every packing is a choice of offset and strides into one slice of a tensor,
 * so nothing is ever rearranged in memory.
 */

import type { AggregationSpec, ExpertsSpec, RouterSpec } from "../data/spec.ts";

/** A tensor, or one slice of it along its first dimension. */
export interface Part {
  readonly tensor: string;
  /** Shape the whole tensor must have. */
  readonly shape: readonly number[];
  /** Which slice; absent: all of it. */
  readonly index?: number;
}

/** An [outputs, inputs] matrix in a part; offset and strides in elements of the part. */
export interface MatrixPart extends Part {
  readonly offset: number;
  readonly rows: number;
  readonly columns: number;
  readonly rowStride: number;
  readonly columnStride: number;
}

/** A vector in a part. */
export interface VectorPart extends Part {
  readonly offset: number;
  readonly length: number;
  readonly stride: number;
}

/** One matrix product: see ProductWeights in data/weights.ts. */
export interface ProductParts {
  readonly value: MatrixPart;
  readonly gate?: MatrixPart;
  readonly valueBias?: VectorPart;
  readonly gateBias?: VectorPart;
}

/** ExpertsSpec without the element type, which is for the files to say. */
export type ExpertForm = Omit<ExpertsSpec, "dtype">;

/** Everything a family knows of one layer. */
export interface LayerLayout {
  readonly hiddenSize: number;
  readonly router: RouterSpec;
  readonly experts: ExpertForm;
  readonly shared?: { readonly experts: ExpertForm; readonly gate: boolean };
  readonly aggregation: AggregationSpec;
  readonly parts: {
    readonly gate: MatrixPart;
    readonly gateBias?: VectorPart;
    readonly selectionBias?: VectorPart;
    readonly expert: (index: number) => readonly ProductParts[];
    readonly shared?: readonly ProductParts[];
    readonly sharedGate?: MatrixPart;
  };
}

/** A whole [outputs, inputs] tensor, as linear layers are stored. */
export function matrix(tensor: string, outputs: number, inputs: number): MatrixPart {
  return {
    tensor,
    shape: [outputs, inputs],
    offset: 0,
    rows: outputs,
    columns: inputs,
    rowStride: inputs,
    columnStride: 1,
  };
}

/** A whole [length] tensor. */
export function vector(tensor: string, length: number): VectorPart {
  return { tensor, shape: [length], offset: 0, length, stride: 1 };
}

/** Which of a packed matrix's outputs: `count` of them, from `first`, `step` apart. */
export interface Outputs {
  readonly count: number;
  readonly first?: number;
  readonly step?: number;
}

/** Outputs of slice `index` of an [experts, outputs, inputs] tensor. */
export function packedRows(
  tensor: string,
  shape: readonly [number, number, number],
  index: number,
  { count, first = 0, step = 1 }: Outputs,
): MatrixPart {
  const columns = shape[2];
  return {
    tensor,
    shape,
    index,
    offset: first * columns,
    rows: count,
    columns,
    rowStride: step * columns,
    columnStride: 1,
  };
}

/** Outputs of slice `index` of an [experts, inputs, outputs] tensor: the matrix is stored transposed. */
export function packedColumns(
  tensor: string,
  shape: readonly [number, number, number],
  index: number,
  { count, first = 0, step = 1 }: Outputs,
): MatrixPart {
  return {
    tensor,
    shape,
    index,
    offset: first,
    rows: count,
    columns: shape[1],
    rowStride: step,
    columnStride: shape[2],
  };
}

/** Outputs of slice `index` of an [experts, outputs] tensor of biases. */
export function packedBias(
  tensor: string,
  shape: readonly [number, number],
  index: number,
  { count, first = 0, step = 1 }: Outputs,
): VectorPart {
  return { tensor, shape, index, offset: first, length: count, stride: step };
}
