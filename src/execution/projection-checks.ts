/**
 * The checks of a projection, and of what is written into one, that every device makes. How a
 * projection keeps its matrices is each device's own affair.
 */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError, ShapeError } from "../errors.ts";
import { BYTES_PER_ELEMENT, type MatrixView } from "../tensor.ts";
import { requireObject } from "./checks.ts";
import type { ProjectionPart, ProjectionSpec, WeightPacking } from "./device.ts";

/** @throws InvalidArgumentError unless there are whole numbers of matrices, inputs and outputs, 1 or more */
export function checkExtents(spec: ProjectionSpec): void {
  requireObject(spec, "spec", "an object such as { count, inputs, outputs, dtype, ... }");
  for (const name of ["count", "inputs", "outputs"] as const) {
    if (!Number.isInteger(spec[name]) || spec[name] < 1 || spec[name] > 0x7fffffff) {
      throw new InvalidArgumentError(
        `A projection's ${name} is ${shown(spec[name])}. Use a whole number, 1 or more.`,
      );
    }
  }
}

/** @throws InvalidArgumentError if weights are to be packed that cannot be, or on a device that has no such thing */
export function checkPacked(
  { packed = false, dtype, input, output }: ProjectionSpec,
  packing: WeightPacking,
): void {
  if (typeof packed !== "boolean" && packed !== "beside") {
    throw new InvalidArgumentError(
      `A projection's packed is ${shown(packed)}. Use true, false or "beside", or leave it out.`,
    );
  }
  if (!packed) return;
  if (!packing.available) {
    throw new InvalidArgumentError(
      `A projection's packed is ${shown(packed)}. ${packing.reason} Leave packed out.`,
    );
  }
  if (dtype !== "bfloat16" || input !== "bfloat16" || output !== "rows") {
    throw new InvalidArgumentError(
      `A packed projection has ${shown(dtype)} weights, reads ${shown(input)} rows and puts out ${shown(output)}. Use bfloat16 weights and rows and "rows" as its output, or leave packed out.`,
    );
  }
}

/** What the checks need to know of a projection. */
export interface CheckedProjection {
  readonly spec: ProjectionSpec;
  readonly label: string;
  readonly closed: boolean;
}

/** @throws DisposedError, InvalidArgumentError unless the projection is open and has such a place */
export function checkPlace(
  { spec, label, closed }: CheckedProjection,
  index: number,
  part: ProjectionPart,
): void {
  if (closed) throw new DisposedError(`Projection "${label}"`);
  if (!Number.isInteger(index) || index < 0 || index >= spec.count) {
    throw new InvalidArgumentError(
      `Projection "${label}" has ${spec.count} matrices; there is no number ${shown(index)}.`,
    );
  }
  if (part !== "value" && !(part === "gate" && spec.gated)) {
    throw new InvalidArgumentError(
      `Projection "${label}" has no part ${shown(part)}. Use "value"${spec.gated ? ' or "gate"' : ""}.`,
    );
  }
}

/** @throws ShapeError unless the matrix is [outputs, inputs] in the spec's element type and lies within its data */
export function checkMatrix({ spec, label }: CheckedProjection, matrix: MatrixView): void {
  const { inputs, outputs, dtype } = spec;
  requireObject(matrix, "matrix", "a view of a matrix");
  if (matrix.rows !== outputs || matrix.columns !== inputs) {
    throw new ShapeError(
      `Projection "${label}" takes [${outputs}, ${inputs}] matrices ([outputs, inputs]), got [${shown(matrix.rows)}, ${shown(matrix.columns)}].`,
    );
  }
  if (matrix.dtype !== dtype) {
    throw new ShapeError(
      `Projection "${label}" holds ${dtype} weights, got ${shown(matrix.dtype)}. Create the projection with the weights' own element type, or convert them first.`,
    );
  }
  if (![matrix.offset, matrix.rowStride, matrix.columnStride].every(Number.isInteger)) {
    throw new ShapeError("A matrix's offset and strides must be whole numbers of elements.");
  }
  if (!ArrayBuffer.isView(matrix.data)) {
    throw new ShapeError(
      `A matrix for projection "${label}" has ${shown(matrix.data)} as its data; it must be a typed array.`,
    );
  }
  const rowSpan = (matrix.rows - 1) * matrix.rowStride;
  const columnSpan = (matrix.columns - 1) * matrix.columnStride;
  const least = matrix.offset + Math.min(0, rowSpan) + Math.min(0, columnSpan);
  const most = matrix.offset + Math.max(0, rowSpan) + Math.max(0, columnSpan);
  if (least < 0 || most >= matrix.data.length) {
    throw new ShapeError(
      `A matrix for projection "${label}" reaches from element ${least} to ${most}, but its data has ${matrix.data.length} elements.`,
    );
  }
  if (matrix.data.BYTES_PER_ELEMENT !== BYTES_PER_ELEMENT[dtype]) {
    throw new ShapeError(
      `A ${dtype} matrix has elements of ${BYTES_PER_ELEMENT[dtype]} bytes, but its data is a ${matrix.data.constructor.name}.`,
    );
  }
}

/** @throws InvalidArgumentError, ShapeError unless the projection has biases and this is one of [outputs] */
export function checkBias({ spec, label }: CheckedProjection, bias: Float32Array): void {
  if (!spec.bias) throw new InvalidArgumentError(`Projection "${label}" has no bias.`);
  if (bias instanceof Float32Array && bias.length === spec.outputs) return;
  throw new ShapeError(
    `The bias of projection "${label}" is a Float32Array of ${spec.outputs} elements, got ${bias instanceof Float32Array ? `${bias.length} elements` : typeof bias}.`,
  );
}
