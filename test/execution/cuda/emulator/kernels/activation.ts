/** kernels/triton/experts/activation.py */

import type { KernelCall } from "../call.ts";

const IDENTITY = 0;
const LOGISTIC = 1;
const CODE = { relu: 1, gelu: 2, sigmoid: 3, logistic: 4 } as const;

export interface ActivationNumbers {
  readonly set: number;
  readonly code: number;
  readonly linear: number;
  readonly cubic: number;
  readonly limit: number;
  readonly shift: number;
}

export function activationNumbers(call: KernelCall): ActivationNumbers {
  return {
    set: call.constant("ACTIVATION"),
    code: call.number("code"),
    linear: call.number("linear"),
    cubic: call.number("cubic"),
    limit: call.number("limit"),
    shift: call.number("shift"),
  };
}

export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

export function activate(x: number, { set, code, linear, cubic }: ActivationNumbers): number {
  const logistic = () => x * sigmoid(x * (linear + cubic * x * x));
  if (set === IDENTITY) return x;
  if (set === LOGISTIC || code === CODE.logistic) return logistic();
  if (code === CODE.relu) return Math.max(x, 0);
  if (code === CODE.gelu) return 0.5 * x * (1 + erf(x * Math.SQRT1_2));
  return code === CODE.sigmoid ? sigmoid(x) : x;
}

export function joinGate(gate: number, value: number, numbers: ActivationNumbers): number {
  const { limit, shift } = numbers;
  const clamped = Math.min(Math.max(value, -limit), limit);
  return activate(Math.min(gate, limit), numbers) * (clamped + shift);
}

/** The error function: its Taylor series near 0, the continued fraction of its complement elsewhere. */
function erf(x: number): number {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  if (size < 2.5) {
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = size;
  for (let n = 60; n > 0; n--) fraction = size + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction);
}
