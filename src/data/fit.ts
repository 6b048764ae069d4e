/**
 * Whether what a weight source gave fits what the spec asks for. Host tensors are
 * checked when they are wrapped, and expert matrices when the device takes them;
 * this is for the tensors of a router and of a shared expert's gate.
 */

import { shown } from "../errors/wording.ts";
import { ShapeError } from "../errors.ts";
import type { MatrixView } from "../tensor.ts";

/** @throws ShapeError unless the matrix is there and is [rows, columns] */
export function fittingMatrix(
  matrix: MatrixView | undefined,
  what: string,
  rows: number,
  columns: number,
): MatrixView {
  // A source may be plain JavaScript, which gives null as well.
  if (matrix === undefined || matrix === null) throw new ShapeError(`${what} is missing.`);
  if (matrix.rows !== rows || matrix.columns !== columns) {
    throw new ShapeError(
      `${what} is [${shown(matrix.rows)}, ${shown(matrix.columns)}]; the spec asks for [${rows}, ${columns}].`,
    );
  }
  return matrix;
}

/** @throws ShapeError unless the vector is there and has `length` elements */
export function fittingVector(
  vector: Float32Array | undefined,
  what: string,
  length: number,
): Float32Array {
  if (vector === undefined || vector === null) throw new ShapeError(`${what} is missing.`);
  if (!(vector instanceof Float32Array)) {
    throw new ShapeError(`${what} is ${shown(vector)}; it must be a Float32Array.`);
  }
  if (vector.length !== length) {
    throw new ShapeError(`${what} has ${vector.length} values; the spec asks for ${length}.`);
  }
  return vector;
}
