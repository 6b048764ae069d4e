/**
 * What all kernels share: the codes of the element types, and the one arithmetic
 * step that differs between the two builds of these sources.
 *
 * Nothing here depends on shapes or layouts; those are in pack.ts and project.ts.
 */

/** Codes of the element types, as the loader (src/execution/cpu/kernels.ts) passes them. */
export const FLOAT32: i32 = 0;
export const BFLOAT16: i32 = 1;
export const FLOAT16: i32 = 2;

/** Bytes of one element. */
export function elementBytes(dtype: i32): usize {
  return dtype === FLOAT32 ? 4 : 2;
}

/**
 * a * b + c: fused with one rounding where the build has relaxed SIMD, two
 * roundings otherwise. Every product of every kernel goes through here, so within
 * one build a sum has the same bits whichever kernel computes it.
 */
export function multiplyAdd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** The first `count` lanes from memory, zeros in the others. */
export function loadLanes(address: usize, count: i32): v128 {
  if (count >= 4) return v128.load(address);
  let v = f32x4.splat(0);
  if (count > 0) v = f32x4.replace_lane(v, 0, load<f32>(address));
  if (count > 1) v = f32x4.replace_lane(v, 1, load<f32>(address, 4));
  if (count > 2) v = f32x4.replace_lane(v, 2, load<f32>(address, 8));
  return v;
}

/** The first `count` lanes to memory; what lies beyond them stays untouched. */
export function storeLanes(address: usize, v: v128, count: i32): void {
  if (count >= 4) {
    v128.store(address, v);
    return;
  }
  if (count > 0) store<f32>(address, f32x4.extract_lane(v, 0));
  if (count > 1) store<f32>(address, f32x4.extract_lane(v, 1), 4);
  if (count > 2) store<f32>(address, f32x4.extract_lane(v, 2), 8);
}
