/**
 * Rows in float32, rounded to 16 bits by the host. For 2048 values that takes it 5 us, where
 * a kernel for them takes it ten to hand over. The bits are those of the kernel (kernels/triton/experts/pack.py): to
 * nearest, of two as near to the even one.
 */

import type { RowLayout } from "../device.ts";

/** Magnitudes, as bits of float32. */
const INFINITE = 0x7f800000;
/** Halfway from the largest float16 to what would come next. */
const OVER_HALVES = 0x477ff000;
/** 2^-14, the least float16 that has all its bits. */
const LEAST_NORMAL_HALF = 0x38800000;
/** What the exponents of float32 and float16 differ by. */
const HALF_BIAS = 0x38000000;

const NOT_A_NUMBER = 0x7fff;

const scratch = new Float32Array(1);
const scratchBits = new Int32Array(scratch.buffer);

/** @param values dense rows @returns the same rows as they lie in memory, zeros between them */
export function roundedRows(
  values: Float32Array,
  { dtype, width, pitch }: RowLayout,
  rows: number,
): Uint16Array {
  // Signed, as what fits 32 bits with a sign is not reckoned with as a float64.
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  const rounded = new Uint16Array(rows * pitch);
  // A loop each, in which the compiler puts the rounding itself.
  const roundAll = dtype === "bfloat16" ? brains : halves;
  for (let row = 0; row < rows; row++) {
    const from = bits.subarray(row * width, (row + 1) * width);
    roundAll(from, rounded.subarray(row * pitch));
  }
  return rounded;
}

function brains(from: Int32Array, to: Uint16Array): void {
  for (let i = 0; i < from.length; i++) to[i] = brain(from[i] as number);
}

function halves(from: Int32Array, to: Uint16Array): void {
  for (let i = 0; i < from.length; i++) to[i] = half(from[i] as number);
}

function brain(bits: number): number {
  if ((bits & 0x7fffffff) > INFINITE) return NOT_A_NUMBER;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) | 0) >>> 16;
}

function half(bits: number): number {
  const size = bits & 0x7fffffff;
  if (size > INFINITE) return NOT_A_NUMBER;
  const sign = (bits >>> 16) & 0x8000;
  if (size >= OVER_HALVES) return sign | 0x7c00;
  if (size >= LEAST_NORMAL_HALF) {
    return sign | ((size - HALF_BIAS + 0xfff + ((size >>> 13) & 1)) >>> 13);
  }
  // Added to 0.5 the steps of float32 are those of the small float16s, 2^-24.
  scratchBits[0] = size;
  scratch[0] = (scratch[0] as number) + 0.5;
  return sign | ((scratchBits[0] as number) - 0x3f000000);
}
