/**
 * Kernels that stream memory once: expert rows back to tokens, and the plain sum
 * that tells how fast memory can be read here.
 */

import { loadLanes, multiplyAdd, storeLanes } from "./vector";

/** Floats that `combine` carries through all choices at a time: 4 vectors, enough independent sums to hide latency. */
const STRIP: i32 = 16;

/**
 * Tokens firstToken to firstToken + tokenCount - 1 from their expert rows.
 *
 * Sum: output[t] = sum over choices c, in order, of weights[t, c] * rows[inverse[t, c]],
 * then + sharedScale[t] * shared[t], then + residual[t]. Concatenation: the k
 * weighted rows side by side. A slot whose inverse is -1 counts as zeros. Absent
 * arrays are 0. All addresses are those of token 0 (of row 0, for `rows`).
 */
export function combine(
  firstToken: i32,
  tokenCount: i32,
  topK: i32,
  width: i32,
  rows: usize,
  inverse: usize,
  weights: usize,
  shared: usize,
  sharedScale: usize,
  residual: usize,
  output: usize,
  concat: bool,
): void {
  // A concatenation is the sum of one slot each, and a token's k sums lie side by side.
  const slots = concat ? 1 : topK;
  const sums = concat ? topK : 1;
  const first = <usize>firstToken * sums;
  const end = first + <usize>tokenCount * sums;
  const rowBytes = (<usize>width) << 2;
  if (concat) {
    shared = 0;
    residual = 0;
  }
  for (let i = first; i < end; i++) {
    const slot = (i * slots) << 2;
    combineRow(
      output + i * rowBytes,
      width,
      slots,
      rows,
      inverse + slot,
      weights ? weights + slot : 0,
      shared ? shared + i * rowBytes : 0,
      shared && sharedScale ? load<f32>(sharedScale + (i << 2)) : 1,
      residual ? residual + i * rowBytes : 0,
    );
  }
}

/** One row of the output; the addresses are those of its slots and rows. */
function combineRow(
  output: usize,
  width: i32,
  slots: i32,
  rows: usize,
  inverse: usize,
  weights: usize,
  shared: usize,
  sharedScale: f32,
  residual: usize,
): void {
  const rowBytes = (<usize>width) << 2;
  for (let column = 0; column < width; column += STRIP) {
    const at = (<usize>column) << 2;
    const left = width - column;
    let s0 = f32x4.splat(0);
    let s1 = s0;
    let s2 = s0;
    let s3 = s0;
    // One pass for each slot, then one for the shared row and one for the residual.
    for (let c = 0; c < slots + 2; c++) {
      let source: usize = 0;
      let factor: f32 = 1;
      if (c < slots) {
        const row = load<i32>(inverse + ((<usize>c) << 2));
        if (row >= 0) source = rows + <usize>row * rowBytes;
        if (weights) factor = load<f32>(weights + ((<usize>c) << 2));
      } else if (c === slots) {
        source = shared;
        factor = sharedScale;
      } else {
        source = residual;
      }
      if (!source) continue;
      const w = f32x4.splat(factor);
      const p = source + at;
      if (left >= STRIP) {
        s0 = multiplyAdd(v128.load(p), w, s0);
        s1 = multiplyAdd(v128.load(p, 16), w, s1);
        s2 = multiplyAdd(v128.load(p, 32), w, s2);
        s3 = multiplyAdd(v128.load(p, 48), w, s3);
      } else {
        s0 = multiplyAdd(loadLanes(p, left), w, s0);
        s1 = multiplyAdd(loadLanes(p + 16, left - 4), w, s1);
        s2 = multiplyAdd(loadLanes(p + 32, left - 8), w, s2);
        s3 = multiplyAdd(loadLanes(p + 48, left - 12), w, s3);
      }
    }
    const to = output + at;
    storeLanes(to, s0, left);
    storeLanes(to + 16, s1, left - 4);
    storeLanes(to + 32, s2, left - 8);
    storeLanes(to + 48, s3, left - 12);
  }
}

/** Sum of the float32 values in `bytes` bytes (a multiple of 128): the yardstick for bandwidth. */
export function sum(src: usize, bytes: usize): f32 {
  // Eight sums, because one would wait for the adder's latency and not for memory.
  let s0 = f32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  let s4 = s0;
  let s5 = s0;
  let s6 = s0;
  let s7 = s0;
  for (let p = src, end = src + bytes; p !== end; p += 128) {
    s0 = f32x4.add(s0, v128.load(p));
    s1 = f32x4.add(s1, v128.load(p, 16));
    s2 = f32x4.add(s2, v128.load(p, 32));
    s3 = f32x4.add(s3, v128.load(p, 48));
    s4 = f32x4.add(s4, v128.load(p, 64));
    s5 = f32x4.add(s5, v128.load(p, 80));
    s6 = f32x4.add(s6, v128.load(p, 96));
    s7 = f32x4.add(s7, v128.load(p, 112));
  }
  const even = f32x4.add(f32x4.add(s0, s2), f32x4.add(s4, s6));
  const odd = f32x4.add(f32x4.add(s1, s3), f32x4.add(s5, s7));
  const s = f32x4.add(even, odd);
  return (
    f32x4.extract_lane(s, 0) +
    f32x4.extract_lane(s, 1) +
    f32x4.extract_lane(s, 2) +
    f32x4.extract_lane(s, 3)
  );
}
