/**
 * The activations of `ProjectOperator` in float64, to hold the kernels against, and
 * how steep they are, to know what an error of their arguments may do.
 */

import type { Activation } from "../../../src/execution/operators.ts";

export interface ActivationSettings {
  readonly kind: Activation["kind"];
  readonly alpha: number;
  readonly limit: number;
}

/** The output for a value `u`, or for a value and a gate `g`. */
export function referenceActivation(settings: ActivationSettings, u: number, g?: number): number {
  const { kind, alpha, limit } = settings;
  if (kind === "swiglu-clamped") {
    const gate = Math.min(g as number, limit);
    const value = Math.min(Math.max(u, -limit), limit);
    return (value + 1) * gate * sigmoid(alpha * gate);
  }
  return g === undefined ? plain(kind, u) : plain(kind, g) * u;
}

/** Bounds of the partial derivatives near (u, g). */
export function activationSlope(
  settings: ActivationSettings,
  u: number,
  g?: number,
): { value: number; gate: number } {
  // No activation is steeper than 1.13 (gelu), nor is the clamped one's gate factor steeper than 1.13 / alpha * alpha.
  const steepest = 1.13;
  if (g === undefined) return { value: settings.kind === "none" ? 1 : steepest, gate: 0 };
  const width = settings.kind === "swiglu-clamped" ? Math.abs(u) + 1 : Math.abs(u);
  const height = Math.max(Math.abs(referenceActivation(settings, 1, g)), Math.abs(g) * 1e-3);
  return { value: height, gate: steepest * width };
}

function plain(kind: Activation["kind"], x: number): number {
  switch (kind) {
    case "relu":
      return Math.max(x, 0);
    case "silu":
      return x * sigmoid(x);
    case "gelu":
      return x * normalCdf(x);
    case "gelu-tanh":
      return x * sigmoid(2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3));
    case "sigmoid":
      return sigmoid(x);
    default:
      return x;
  }
}

function sigmoid(x: number): number {
  return x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x));
}

/** The normal distribution function, to about 1e-14 relative: a series near zero, a continued fraction in the tails. */
function normalCdf(x: number): number {
  const a = Math.abs(x);
  const density = Math.exp((-a * a) / 2) / Math.sqrt(2 * Math.PI);
  if (a < 3) {
    // 1/2 + density * (a + a^3 / 3 + a^5 / 15 + ...), Marsaglia (2004).
    let term = a;
    let sum = a;
    for (let n = 3; term > 1e-18 * sum; n += 2) {
      term *= (a * a) / n;
      sum += term;
    }
    const half = density * sum;
    return x < 0 ? 0.5 - half : 0.5 + half;
  }
  // The tail is density / (a + 1 / (a + 2 / (a + 3 / ...))), Laplace.
  let fraction = a;
  for (let n = 120; n > 0; n--) fraction = a + n / fraction;
  const tail = density / fraction;
  return x < 0 ? tail : 1 - tail;
}
