/**
 * bfloat16 and float16 to float32 and back, four lanes at a time. Widening is
 * exact for every bit pattern: subnormals, infinities and NaN payloads included.
 */

import { elementBytes, FLOAT16, FLOAT32, storeLanes } from "./vector";

/** Four bfloat16 values in the upper halves of the lanes; the lower halves are ignored. Two shifts: a mask would take a register. */
export function widenUpperBfloat16(lanes: v128): v128 {
  return i32x4.shl(i32x4.shr_u(lanes, 16), 16);
}

/** Four bfloat16 values in the lower halves of the lanes; the upper halves are ignored. */
export function widenLowerBfloat16(lanes: v128): v128 {
  return i32x4.shl(lanes, 16);
}

/** The exponent and fraction bits of float16, and its sign, where float32 has them. */
const PLACED: u32 = 0x8fffe000;
/** 2^112, the difference between the exponent biases. */
const BIAS: u32 = 0x77800000;
/** The largest finite float16 in PLACED bits, times 2. */
const LARGEST: u32 = 0x1effffff;
const INFINITY: u32 = 0x7f800000;

/**
 * Bits in all lanes, in a way that the compilers cannot see through: V8 builds a
 * vector constant anew in every round of a loop, which makes widening float16 three
 * times slower. `address` is memory that is about to be overwritten.
 */
function opaque(address: usize, bits: u32): v128 {
  store<u32>(address, bits);
  return v128.load32_splat(address);
}

/** The `placed` that `widenFiniteFloat16` wants; as for `opaque`. */
export function placedMask(address: usize): v128 {
  return opaque(address, PLACED);
}

/** The `bias` that `widenFiniteFloat16` wants; as for `opaque`. */
export function biasFactor(address: usize): v128 {
  return opaque(address, BIAS);
}

/**
 * Four finite float16 values in the upper halves of the lanes; the lower halves are
 * ignored. The product corrects the exponent bias from 15 to 127, and because it is
 * a product it normalises subnormals as well.
 */
export function widenFiniteFloat16(lanes: v128, placed: v128, bias: v128): v128 {
  return f32x4.mul(v128.and(i32x4.shr_s(lanes, 3), placed), bias);
}

/** As above, but infinities and NaN, whose exponent is all ones, get float32's. */
function widenFloat16(lanes: v128, placed: v128, bias: v128, largest: v128, infinity: v128): v128 {
  const bits = v128.and(i32x4.shr_s(lanes, 3), placed);
  const isSpecial = i32x4.gt_s(i32x4.shl(bits, 1), largest);
  return v128.or(f32x4.mul(bits, bias), v128.and(isSpecial, infinity));
}

/** The weights of `depth` inputs of a 16-bit panel as float32. */
export function widenPanel(to: usize, panel: usize, depth: i32, dtype: i32): void {
  const end = to + ((<usize>depth) << 5);
  if (dtype === FLOAT16) {
    const placed = placedMask(to);
    const bias = biasFactor(to);
    const largest = opaque(to, LARGEST);
    const infinity = opaque(to, INFINITY);
    for (; to !== end; to += 32, panel += 16) {
      const high = v128.load(panel);
      const low = i32x4.shl(high, 16);
      v128.store(to, widenFloat16(low, placed, bias, largest, infinity));
      v128.store(to, widenFloat16(high, placed, bias, largest, infinity), 16);
    }
  } else {
    for (; to !== end; to += 32, panel += 16) {
      const lanes = v128.load(panel);
      v128.store(to, widenLowerBfloat16(lanes));
      v128.store(to, widenUpperBfloat16(lanes), 16);
    }
  }
}

/** dst[i] = src[i] as float32, for `count` elements. The ranges do not overlap. */
export function toFloat32(dst: usize, src: usize, count: usize, dtype: i32): void {
  if (dtype === FLOAT32) {
    memory.copy(dst, src, count << 2);
    return;
  }
  if (count === 0) return;
  const placed = placedMask(dst);
  const bias = biasFactor(dst);
  const largest = opaque(dst, LARGEST);
  const infinity = opaque(dst, INFINITY);
  const whole = count & ~3;
  for (let i: usize = 0; i < whole; i += 4) {
    let v = i32x4.shl(v128.load_ext<u16>(src + (i << 1)), 16);
    if (dtype === FLOAT16) v = widenFloat16(v, placed, bias, largest, infinity);
    v128.store(dst + (i << 2), v);
  }
  for (let i = whole; i < count; i++) {
    let v = i32x4.splat(load<u16>(src + (i << 1)) << 16);
    if (dtype === FLOAT16) v = widenFloat16(v, placed, bias, largest, infinity);
    v128.store_lane<f32>(dst + (i << 2), v, 0);
  }
}

/** float32 to bfloat16 in the lower halves of the lanes, to nearest even. Not for NaN, whose fraction may carry out. */
function roundToBfloat16(v: v128): v128 {
  const even = v128.and(i32x4.shr_u(v, 16), i32x4.splat(1));
  return i32x4.shr_u(i32x4.add(i32x4.add(v, i32x4.splat(0x7fff)), even), 16);
}

/** float32 to float16 in the lower halves of the lanes, to nearest even. For magnitudes up to 65504. */
function roundToFloat16(v: v128): v128 {
  const magnitude = f32x4.abs(v);
  const even = v128.and(i32x4.shr_u(magnitude, 13), i32x4.splat(1));
  // The constant corrects the exponent bias from 127 to 15 and adds just under half a last place.
  const biased = i32x4.add(i32x4.add(magnitude, i32x4.splat(0xfff - 0x38000000)), even);
  const normal = i32x4.shr_u(biased, 13);
  // Below 2^-14 the result is a whole number of 2^-24. That is the last place of 0.5,
  // so adding 0.5 makes the float32 adder do the rounding.
  const half = f32x4.splat(0.5);
  const subnormal = i32x4.sub(f32x4.add(magnitude, half), half);
  const isSubnormal = i32x4.lt_s(magnitude, i32x4.splat(0x38800000));
  const sign = v128.and(i32x4.shr_u(v, 16), i32x4.splat(0x8000));
  return v128.or(v128.bitselect(subnormal, normal, isSubnormal), sign);
}

/**
 * dst[i] = the value of index firstIndex + i of a fixed uniform sequence over
 * [-scale, scale], for `count` elements. A value depends on its index and the
 * seed alone, so threads may fill one tensor in parts. `scale` is at most 65504
 * for float16.
 */
export function fillUniform(
  dst: usize,
  dtype: i32,
  firstIndex: u32,
  count: usize,
  seed: u32,
  scale: f32,
): void {
  const size = elementBytes(dtype);
  const key = mix(i32x4.splat(seed ^ 0x9e3779b9));
  // The hash as a whole number in [-2^31, 2^31) becomes a float32 in [-1, 1].
  const unit = f32x4.splat(scale * reinterpret<f32>(0x30000000)); // 2^-31
  for (let i: usize = 0; i < count; i += 4) {
    const index = i32x4.add(i32x4.splat(firstIndex + <u32>i), i32x4(0, 1, 2, 3));
    const hash = mix(v128.xor(mix(index), key));
    const value = f32x4.mul(f32x4.convert_i32x4_s(hash), unit);
    const left = count - i < 4 ? <i32>(count - i) : 4;
    const to = dst + i * size;
    if (dtype === FLOAT32) {
      storeLanes(to, value, left);
      continue;
    }
    const rounded = dtype === FLOAT16 ? roundToFloat16(value) : roundToBfloat16(value);
    v128.store_lane<u16>(to, rounded, 0);
    if (left > 1) v128.store_lane<u16>(to, rounded, 2, 2);
    if (left > 2) v128.store_lane<u16>(to, rounded, 4, 4);
    if (left > 3) v128.store_lane<u16>(to, rounded, 6, 6);
  }
}

/** The 32-bit finaliser of MurmurHash3 (Austin Appleby, public domain). */
function mix(v: v128): v128 {
  v = i32x4.mul(v128.xor(v, i32x4.shr_u(v, 16)), i32x4.splat(0x85ebca6b));
  v = i32x4.mul(v128.xor(v, i32x4.shr_u(v, 13)), i32x4.splat(0xc2b2ae35));
  return v128.xor(v, i32x4.shr_u(v, 16));
}
