/**
 * The activations of `ProjectOperator`, four lanes at a time, in float32.
 *
 * Everything rests on exp of non-positive arguments, which cannot overflow:
 * sigmoid is written with exp(-|x|), tanh-GELU as x * sigmoid(2 z), and exact GELU
 * through the tail of the normal distribution, so that small results keep their
 * relative accuracy. NaN stays NaN: the pseudo-minimum and -maximum return their
 * first argument when the comparison fails.
 */

import { multiplyAdd } from "./vector";

/** Codes, as the loader (src/execution/cpu/kernels.ts) passes them; 0, `none`, falls through. */
const RELU: i32 = 1;
const SILU: i32 = 2;
const GELU: i32 = 3;
const GELU_TANH: i32 = 4;
const SIGMOID: i32 = 5;
const SWIGLU_CLAMPED: i32 = 6;

/** activation(x). */
export function activate(activation: i32, x: v128): v128 {
  switch (activation) {
    case RELU:
      return f32x4.pmax(x, f32x4.splat(0));
    case SILU:
      return f32x4.mul(x, sigmoid(x));
    case GELU:
      return f32x4.mul(x, normalCdf(x));
    case GELU_TANH:
      return geluTanh(x);
    case SIGMOID:
      return sigmoid(x);
    default:
      return x;
  }
}

/** The two halves of a gated projection joined: activation(gate) * value, or the clamped SwiGLU. */
export function joinGate(activation: i32, gate: v128, value: v128, alpha: f32, limit: f32): v128 {
  if (activation === SWIGLU_CLAMPED) {
    const bound = f32x4.splat(limit);
    const g = f32x4.pmin(gate, bound);
    const u = f32x4.pmax(f32x4.pmin(value, bound), f32x4.neg(bound));
    const glu = f32x4.mul(g, sigmoid(f32x4.mul(g, f32x4.splat(alpha))));
    return f32x4.mul(f32x4.add(u, f32x4.splat(1)), glu);
  }
  return f32x4.mul(activate(activation, gate), value);
}

/**
 * exp(high + low) for high <= 0 and a small low.
 *
 * With n = round(high / ln 2): 2^n * exp(r), |r| <= ln 2 / 2, where n * ln 2 is
 * taken off in two pieces so that nothing is lost. exp(r) = 1 + r + r^2 q(r), with
 * q the polynomial of degree 4 that makes the largest relative error of exp
 * smallest: 3.1e-9, far under float32's rounding.
 */
function expNonPositive(high: v128, low: v128): v128 {
  // exp(-104) is less than half the smallest subnormal: further down nothing changes.
  const x = f32x4.pmax(high, f32x4.splat(-104));
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(<f32>Math.LOG2E)));
  // 0.693145751953125 has 15 significant bits, so its product with n is exact.
  let r = multiplyAdd(n, f32x4.splat(-0.693145751953125), x);
  r = f32x4.add(multiplyAdd(n, f32x4.splat(-1.4286068203094173e-6), r), low);
  let q = f32x4.splat(0.0013814597821700234);
  q = multiplyAdd(q, r, f32x4.splat(0.008368716951305961));
  q = multiplyAdd(q, r, f32x4.splat(0.041668388062540876));
  q = multiplyAdd(q, r, f32x4.splat(0.16666520630939588));
  q = multiplyAdd(q, r, f32x4.splat(0.4999999344771056));
  const e = f32x4.add(multiplyAdd(f32x4.mul(r, r), q, r), f32x4.splat(1));
  // 2^n in two factors: n goes down to -150, where one factor would be zero.
  const exponent = i32x4.trunc_sat_f32x4_s(n);
  const half = i32x4.shr_s(exponent, 1);
  return f32x4.mul(f32x4.mul(e, powerOfTwo(half)), powerOfTwo(i32x4.sub(exponent, half)));
}

/** 2^n for whole n from -126 to 127. */
function powerOfTwo(n: v128): v128 {
  return i32x4.shl(i32x4.add(n, i32x4.splat(127)), 23);
}

function sigmoid(x: v128): v128 {
  const one = f32x4.splat(1);
  const e = expNonPositive(f32x4.neg(f32x4.abs(x)), f32x4.splat(0));
  return f32x4.div(v128.bitselect(e, one, isNegative(x)), f32x4.add(one, e));
}

/** 0.5 x (1 + tanh z) with z = sqrt(2 / pi) (x + 0.044715 x^3), and (1 + tanh z) / 2 = sigmoid(2 z). */
function geluTanh(x: v128): v128 {
  const cubic = f32x4.splat(0.07135481627260025); // 2 sqrt(2 / pi) * 0.044715
  const linear = f32x4.splat(1.5957691216057308); // 2 sqrt(2 / pi)
  return f32x4.mul(x, sigmoid(f32x4.mul(x, multiplyAdd(f32x4.mul(x, x), cubic, linear))));
}

/**
 * The normal distribution function, (1 + erf(x / sqrt 2)) / 2.
 *
 * The tail beyond a = |x| is exp(-a^2 / 2) h(a), and h is a polynomial of degree 9
 * in u = 1 / (1 + 0.26 a) without a constant term, fitted over a from 0 to 14.5
 * for the least relative error: 2.8e-8.
 */
function normalCdf(x: v128): v128 {
  const one = f32x4.splat(1);
  // The tail beyond 14.5 is less than half the smallest subnormal.
  const a = f32x4.pmin(f32x4.abs(x), f32x4.splat(14.5));
  const u = f32x4.div(one, multiplyAdd(a, f32x4.splat(0.26), one));
  let h = f32x4.splat(0.03023014192360111);
  h = multiplyAdd(h, u, f32x4.splat(-0.15149371160881647));
  h = multiplyAdd(h, u, f32x4.splat(0.24873180723112465));
  h = multiplyAdd(h, u, f32x4.splat(-0.14778785810175035));
  h = multiplyAdd(h, u, f32x4.splat(0.1587578104961911));
  h = multiplyAdd(h, u, f32x4.splat(0.05196519530015583));
  h = multiplyAdd(h, u, f32x4.splat(0.10278859395601987));
  h = multiplyAdd(h, u, f32x4.splat(0.10305098526986672));
  h = multiplyAdd(h, u, f32x4.splat(0.1037570214912355));
  // a^2 = s^2 + (a - s)(a + s). With s the upper 12 bits of a, s^2 is exact: rounding
  // a^2 itself would cost up to 50 ulp of the tail.
  const s = v128.and(a, i32x4.splat(0xfffff000));
  const minusHalf = f32x4.splat(-0.5);
  const high = f32x4.mul(f32x4.mul(s, s), minusHalf);
  const low = f32x4.mul(f32x4.mul(f32x4.sub(a, s), f32x4.add(a, s)), minusHalf);
  const tail = f32x4.mul(f32x4.mul(h, u), expNonPositive(high, low));
  return v128.bitselect(tail, f32x4.sub(one, tail), isNegative(x));
}

/** All ones in the lanes whose sign bit is set. */
function isNegative(x: v128): v128 {
  return i32x4.shr_s(x, 31);
}
