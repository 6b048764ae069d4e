/** What all products have in common: the rows they read and write, as buffers and as arguments of their kernels. */

import type { ProjectOperator } from "../../operators.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { Kernel } from "../bundle/kernel-set.ts";
import type { KernelValues } from "../launch/launch.ts";
import type { CudaProjection } from "../projection.ts";
import { type TensorMapMeta, tensorMapsOf } from "../tensor-maps.ts";
import type { OperatorEncoder } from "./encoder.ts";

export interface RowBuffers {
  readonly input: CudaBuffer;
  readonly output: CudaBuffer;
  /** Rows that the input has room for. */
  readonly inputs: number;
}

/** Rows of the input, rows of the output: the buffers, with room for so many. */
export function rowBuffers(
  operator: ProjectOperator,
  projection: CudaProjection,
  inputs: number,
  outputs: number,
  to: OperatorEncoder,
): RowBuffers {
  const { input, output } = projection.spec;
  const float32 = output === "float32";
  const width = float32 ? projection.spec.outputs : projection.outputPitch;
  return {
    input: to.input("input", operator.input, inputs * projection.k, input),
    output: to.output("output", operator.output, outputs * width, float32 ? "float32" : input),
    inputs,
  };
}

/** Rows, biases and sizes; what a kernel is told of its weights is left to the encoder. */
export function rowValues(
  { entry }: Kernel,
  projection: CudaProjection,
  { input, output, inputs }: RowBuffers,
  to: OperatorEncoder,
): KernelValues {
  const { element, k } = projection;
  const x = mapOf(entry, "x");
  return {
    x:
      x === undefined
        ? input.address
        : tensorMapsOf(input, to.context).of({ element, shape: [inputs, k] }, x),
    bias: projection.bias(0),
    out: output.address,
    n: projection.n,
    k,
    x_pitch: k,
    out_pitch: projection.outputPitch,
  };
}

/** The tensor map that a kernel takes for an argument, if it takes one. */
export function mapOf(
  { tensordesc_meta }: Kernel["entry"],
  argument: string,
): TensorMapMeta | undefined {
  return tensordesc_meta.find((meta) => meta.argument === argument);
}

/** Where the rows are that a kernel reads through a tensor map, if it does. */
export function mappedRows({ entry }: Kernel, { input }: RowBuffers): { readonly mapped?: bigint } {
  return mapOf(entry, "x") === undefined ? {} : { mapped: input.address };
}
