/**
 * Numbers for the reference: weights of any element type as float64, erf to the
 * last few digits, and how far two results are apart. Nothing here is fast, and
 * nothing here is shared with the kernels.
 */

import { float16ToNumber, type MatrixView } from "../tensor.ts";

/** A matrix view's elements as float64, row-major and contiguous; 16-bit values are exact. */
export function decodeMatrix(view: MatrixView): Float64Array {
  const { rows, columns, offset, rowStride, columnStride } = view;
  const decode = decoder(view);
  const out = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const element = view.data[offset + r * rowStride + c * columnStride];
      if (element === undefined) {
        throw new RangeError(`Element (${r}, ${c}) of the matrix view is outside its data.`);
      }
      out[r * columns + c] = decode(element);
    }
  }
  return out;
}

function decoder(view: MatrixView): (element: number) => number {
  switch (view.dtype) {
    case "float16":
      return float16ToNumber;
    case "bfloat16": {
      const bits = new Uint32Array(1);
      const value = new Float32Array(bits.buffer);
      return (element) => {
        bits[0] = element << 16;
        return value[0] as number;
      };
    }
    default:
      return (element) => element;
  }
}

/**
 * Norm of the difference over the norm of the reference. Where the reference is
 * zero throughout, 0 if `actual` is too and Infinity otherwise.
 *
 * @throws RangeError if the two have different lengths
 */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) {
    throw new RangeError(`${actual.length} values cannot be compared with ${expected.length}.`);
  }
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    const e = expected[i] as number;
    difference += ((actual[i] as number) - e) ** 2;
    norm += e ** 2;
  }
  if (difference === 0) return 0;
  return Math.sqrt(difference / norm);
}

/** From here on 1 - erf would lose digits, and the continued fraction of erfc settles in under a hundred terms. */
const SERIES_LIMIT = 1.5;

/**
 * The complementary error function, to about 1e-14 relative.
 *
 * Small arguments: erf's series 2/sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!,
 * whose terms are all of one sign. Large ones: the continued fraction, evaluated
 * by Lentz's method. Both from Abramowitz and Stegun, 7.1.6 and 7.1.14.
 */
export function erfc(x: number): number {
  if (Number.isNaN(x)) return x;
  if (x < 0) return 2 - erfc(-x);
  return x < SERIES_LIMIT ? 1 - erfSeries(x) : erfcFraction(x);
}

function erfSeries(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; term > sum * 1e-18; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

function erfcFraction(x: number): number {
  // exp(-x^2) / sqrt(pi) / (x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...))))
  if (x > 30) return 0; // exp(-900) is below the smallest float64.
  let value = x;
  let c = x;
  let d = 0;
  for (let n = 1; Math.abs(c * d - 1) > Number.EPSILON; n++) {
    d = 1 / (x + (n / 2) * d);
    c = x + n / 2 / c;
    value *= c * d;
  }
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / value;
}
