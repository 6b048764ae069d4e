/**
 * The inner loops of `project`: a few rows of the input times one panel of weights
 * (two, where one would not keep the multipliers busy) over a run of inputs.
 *
 * All of them do the same to an output: carry its sum on by one multiply-add for
 * each input, in ascending order. They differ only in how many outputs they carry
 * at once. Sums are [rows][8] float32 for each panel, read at the start and written
 * back at the end.
 *
 * What shapes them, by measurement on x86-64 with V8's optimising compiler:
 * - 15 vector registers. 6 rows x 8 columns is 12 sums, two weight vectors and one
 *   broadcast input: exactly 15. Anything more spills, and a spilled sum costs half
 *   the speed. Without fused multiply-add a product needs a register too, and V8
 *   before version 13 gives the fused one a register of its own; there the limit is
 *   4 rows. The loops are not unrolled, because V8 then hoists loads and spills.
 * - A multiply-add takes 4 cycles and two can start in each, so that 8 independent
 *   sums are needed. One or two rows have that many only over two panels.
 * - The rows of a group come interleaved, [k][rows], by `interleaveRows`. Reading
 *   them in place needs an address register for each, and rows whose distance is a
 *   multiple of 4 KiB evict each other from the first-level cache.
 *
 * The type parameter is the element type of the weights: f32, u16 for bfloat16, i16
 * for float16 without infinities and NaN. 16-bit weights are widened in registers;
 * `placed` and `bias` are what `widenFiniteFloat16` wants, and of use to it alone.
 */

import { widenFiniteFloat16, widenLowerBfloat16, widenUpperBfloat16 } from "./convert";
import { multiplyAdd } from "./vector";

/** Bytes of one row of sums: the 8 columns of a panel, in float32. */
export const SUM_ROW_BYTES: usize = 32;

/** Bytes of the 8 weights of one input. */
function weightBytes<T>(): usize {
  return 8 * sizeof<T>();
}

/** Columns 0 to 3 of the weights whose first 16 bytes are `first`. */
function lowColumns<T>(first: v128, placed: v128, bias: v128): v128 {
  if (isFloat<T>()) return first;
  if (isSigned<T>()) return widenFiniteFloat16(i32x4.shl(first, 16), placed, bias);
  return widenLowerBfloat16(first);
}

/** Columns 4 to 7 of the weights at `panel`, whose first 16 bytes are `first`. */
function highColumns<T>(panel: usize, first: v128, placed: v128, bias: v128): v128 {
  if (isFloat<T>()) return v128.load(panel, 16);
  if (isSigned<T>()) return widenFiniteFloat16(first, placed, bias);
  return widenUpperBfloat16(first);
}

/** One row, two panels. */
export function multiplyRows1<T>(
  a: usize,
  panel0: usize,
  panel1: usize,
  depth: i32,
  sums0: usize,
  sums1: usize,
  placed: v128,
  bias: v128,
): void {
  let s00 = v128.load(sums0);
  let s01 = v128.load(sums0, 16);
  let s02 = v128.load(sums1);
  let s03 = v128.load(sums1, 16);
  const end = panel0 + <usize>depth * weightBytes<T>();
  for (; panel0 !== end; panel0 += weightBytes<T>(), panel1 += weightBytes<T>()) {
    const first0 = v128.load(panel0);
    const first1 = v128.load(panel1);
    const w0 = lowColumns<T>(first0, placed, bias);
    const w1 = highColumns<T>(panel0, first0, placed, bias);
    const w2 = lowColumns<T>(first1, placed, bias);
    const w3 = highColumns<T>(panel1, first1, placed, bias);
    const x0 = v128.load32_splat(a);
    s00 = multiplyAdd(x0, w0, s00);
    s01 = multiplyAdd(x0, w1, s01);
    s02 = multiplyAdd(x0, w2, s02);
    s03 = multiplyAdd(x0, w3, s03);
    a += 4;
  }
  v128.store(sums0, s00);
  v128.store(sums0, s01, 16);
  v128.store(sums1, s02);
  v128.store(sums1, s03, 16);
}

/** Two rows, two panels. */
export function multiplyRows2<T>(
  a: usize,
  panel0: usize,
  panel1: usize,
  depth: i32,
  sums0: usize,
  sums1: usize,
  placed: v128,
  bias: v128,
): void {
  let s00 = v128.load(sums0);
  let s01 = v128.load(sums0, 16);
  let s02 = v128.load(sums1);
  let s03 = v128.load(sums1, 16);
  let s10 = v128.load(sums0, 32);
  let s11 = v128.load(sums0, 48);
  let s12 = v128.load(sums1, 32);
  let s13 = v128.load(sums1, 48);
  const end = panel0 + <usize>depth * weightBytes<T>();
  for (; panel0 !== end; panel0 += weightBytes<T>(), panel1 += weightBytes<T>()) {
    const first0 = v128.load(panel0);
    const first1 = v128.load(panel1);
    const w0 = lowColumns<T>(first0, placed, bias);
    const w1 = highColumns<T>(panel0, first0, placed, bias);
    const w2 = lowColumns<T>(first1, placed, bias);
    const w3 = highColumns<T>(panel1, first1, placed, bias);
    const x0 = v128.load32_splat(a);
    s00 = multiplyAdd(x0, w0, s00);
    s01 = multiplyAdd(x0, w1, s01);
    s02 = multiplyAdd(x0, w2, s02);
    s03 = multiplyAdd(x0, w3, s03);
    const x1 = v128.load32_splat(a, 4);
    s10 = multiplyAdd(x1, w0, s10);
    s11 = multiplyAdd(x1, w1, s11);
    s12 = multiplyAdd(x1, w2, s12);
    s13 = multiplyAdd(x1, w3, s13);
    a += 8;
  }
  v128.store(sums0, s00);
  v128.store(sums0, s01, 16);
  v128.store(sums1, s02);
  v128.store(sums1, s03, 16);
  v128.store(sums0, s10, 32);
  v128.store(sums0, s11, 48);
  v128.store(sums1, s12, 32);
  v128.store(sums1, s13, 48);
}

/** Three rows, one panel. */
export function multiplyRows3<T>(
  a: usize,
  panel: usize,
  depth: i32,
  sums: usize,
  placed: v128,
  bias: v128,
): void {
  let s00 = v128.load(sums);
  let s01 = v128.load(sums, 16);
  let s10 = v128.load(sums, 32);
  let s11 = v128.load(sums, 48);
  let s20 = v128.load(sums, 64);
  let s21 = v128.load(sums, 80);
  const end = panel + <usize>depth * weightBytes<T>();
  for (; panel !== end; panel += weightBytes<T>()) {
    const first = v128.load(panel);
    const w0 = lowColumns<T>(first, placed, bias);
    const w1 = highColumns<T>(panel, first, placed, bias);
    const x0 = v128.load32_splat(a);
    s00 = multiplyAdd(x0, w0, s00);
    s01 = multiplyAdd(x0, w1, s01);
    const x1 = v128.load32_splat(a, 4);
    s10 = multiplyAdd(x1, w0, s10);
    s11 = multiplyAdd(x1, w1, s11);
    const x2 = v128.load32_splat(a, 8);
    s20 = multiplyAdd(x2, w0, s20);
    s21 = multiplyAdd(x2, w1, s21);
    a += 12;
  }
  v128.store(sums, s00);
  v128.store(sums, s01, 16);
  v128.store(sums, s10, 32);
  v128.store(sums, s11, 48);
  v128.store(sums, s20, 64);
  v128.store(sums, s21, 80);
}

/** Four rows, one panel. */
export function multiplyRows4<T>(
  a: usize,
  panel: usize,
  depth: i32,
  sums: usize,
  placed: v128,
  bias: v128,
): void {
  let s00 = v128.load(sums);
  let s01 = v128.load(sums, 16);
  let s10 = v128.load(sums, 32);
  let s11 = v128.load(sums, 48);
  let s20 = v128.load(sums, 64);
  let s21 = v128.load(sums, 80);
  let s30 = v128.load(sums, 96);
  let s31 = v128.load(sums, 112);
  const end = panel + <usize>depth * weightBytes<T>();
  for (; panel !== end; panel += weightBytes<T>()) {
    const first = v128.load(panel);
    const w0 = lowColumns<T>(first, placed, bias);
    const w1 = highColumns<T>(panel, first, placed, bias);
    const x0 = v128.load32_splat(a);
    s00 = multiplyAdd(x0, w0, s00);
    s01 = multiplyAdd(x0, w1, s01);
    const x1 = v128.load32_splat(a, 4);
    s10 = multiplyAdd(x1, w0, s10);
    s11 = multiplyAdd(x1, w1, s11);
    const x2 = v128.load32_splat(a, 8);
    s20 = multiplyAdd(x2, w0, s20);
    s21 = multiplyAdd(x2, w1, s21);
    const x3 = v128.load32_splat(a, 12);
    s30 = multiplyAdd(x3, w0, s30);
    s31 = multiplyAdd(x3, w1, s31);
    a += 16;
  }
  v128.store(sums, s00);
  v128.store(sums, s01, 16);
  v128.store(sums, s10, 32);
  v128.store(sums, s11, 48);
  v128.store(sums, s20, 64);
  v128.store(sums, s21, 80);
  v128.store(sums, s30, 96);
  v128.store(sums, s31, 112);
}

/** Five rows, one panel. */
export function multiplyRows5<T>(
  a: usize,
  panel: usize,
  depth: i32,
  sums: usize,
  placed: v128,
  bias: v128,
): void {
  let s00 = v128.load(sums);
  let s01 = v128.load(sums, 16);
  let s10 = v128.load(sums, 32);
  let s11 = v128.load(sums, 48);
  let s20 = v128.load(sums, 64);
  let s21 = v128.load(sums, 80);
  let s30 = v128.load(sums, 96);
  let s31 = v128.load(sums, 112);
  let s40 = v128.load(sums, 128);
  let s41 = v128.load(sums, 144);
  const end = panel + <usize>depth * weightBytes<T>();
  for (; panel !== end; panel += weightBytes<T>()) {
    const first = v128.load(panel);
    const w0 = lowColumns<T>(first, placed, bias);
    const w1 = highColumns<T>(panel, first, placed, bias);
    const x0 = v128.load32_splat(a);
    s00 = multiplyAdd(x0, w0, s00);
    s01 = multiplyAdd(x0, w1, s01);
    const x1 = v128.load32_splat(a, 4);
    s10 = multiplyAdd(x1, w0, s10);
    s11 = multiplyAdd(x1, w1, s11);
    const x2 = v128.load32_splat(a, 8);
    s20 = multiplyAdd(x2, w0, s20);
    s21 = multiplyAdd(x2, w1, s21);
    const x3 = v128.load32_splat(a, 12);
    s30 = multiplyAdd(x3, w0, s30);
    s31 = multiplyAdd(x3, w1, s31);
    const x4 = v128.load32_splat(a, 16);
    s40 = multiplyAdd(x4, w0, s40);
    s41 = multiplyAdd(x4, w1, s41);
    a += 20;
  }
  v128.store(sums, s00);
  v128.store(sums, s01, 16);
  v128.store(sums, s10, 32);
  v128.store(sums, s11, 48);
  v128.store(sums, s20, 64);
  v128.store(sums, s21, 80);
  v128.store(sums, s30, 96);
  v128.store(sums, s31, 112);
  v128.store(sums, s40, 128);
  v128.store(sums, s41, 144);
}

/** Six rows, one panel. */
export function multiplyRows6<T>(
  a: usize,
  panel: usize,
  depth: i32,
  sums: usize,
  placed: v128,
  bias: v128,
): void {
  let s00 = v128.load(sums);
  let s01 = v128.load(sums, 16);
  let s10 = v128.load(sums, 32);
  let s11 = v128.load(sums, 48);
  let s20 = v128.load(sums, 64);
  let s21 = v128.load(sums, 80);
  let s30 = v128.load(sums, 96);
  let s31 = v128.load(sums, 112);
  let s40 = v128.load(sums, 128);
  let s41 = v128.load(sums, 144);
  let s50 = v128.load(sums, 160);
  let s51 = v128.load(sums, 176);
  const end = panel + <usize>depth * weightBytes<T>();
  for (; panel !== end; panel += weightBytes<T>()) {
    const first = v128.load(panel);
    const w0 = lowColumns<T>(first, placed, bias);
    const w1 = highColumns<T>(panel, first, placed, bias);
    const x0 = v128.load32_splat(a);
    s00 = multiplyAdd(x0, w0, s00);
    s01 = multiplyAdd(x0, w1, s01);
    const x1 = v128.load32_splat(a, 4);
    s10 = multiplyAdd(x1, w0, s10);
    s11 = multiplyAdd(x1, w1, s11);
    const x2 = v128.load32_splat(a, 8);
    s20 = multiplyAdd(x2, w0, s20);
    s21 = multiplyAdd(x2, w1, s21);
    const x3 = v128.load32_splat(a, 12);
    s30 = multiplyAdd(x3, w0, s30);
    s31 = multiplyAdd(x3, w1, s31);
    const x4 = v128.load32_splat(a, 16);
    s40 = multiplyAdd(x4, w0, s40);
    s41 = multiplyAdd(x4, w1, s41);
    const x5 = v128.load32_splat(a, 20);
    s50 = multiplyAdd(x5, w0, s50);
    s51 = multiplyAdd(x5, w1, s51);
    a += 24;
  }
  v128.store(sums, s00);
  v128.store(sums, s01, 16);
  v128.store(sums, s10, 32);
  v128.store(sums, s11, 48);
  v128.store(sums, s20, 64);
  v128.store(sums, s21, 80);
  v128.store(sums, s30, 96);
  v128.store(sums, s31, 112);
  v128.store(sums, s40, 128);
  v128.store(sums, s41, 144);
  v128.store(sums, s50, 160);
  v128.store(sums, s51, 176);
}
