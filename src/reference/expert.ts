/**
 * One expert in float64: the chain of products and activations that
 * data/spec.ts and execution/operators.ts define, one row at a time.
 */

import type { ExpertsSpec } from "../data/spec.ts";
import type { ProductWeights } from "../data/weights.ts";
import type { Activation } from "../execution/operators.ts";
import { decodeMatrix, erfc } from "./numbers.ts";
import { sigmoid } from "./route.ts";

/**
 * The output rows of one expert.
 *
 * @param products as LayerWeights.expert() gives them
 * @param input [rows, H]
 * @param scale [rows], multiplies the first product's sums before bias and activation
 *   (the same as scaling the input); default: 1
 * @returns [rows, H]
 */
export function referenceExpert(
  spec: ExpertsSpec,
  products: readonly ProductWeights[],
  input: Float32Array | Float64Array,
  scale?: Float64Array,
): Float64Array {
  const rows = input.length / spec.hiddenSize;
  let current: Float64Array = Float64Array.from(input);
  if (scale !== undefined) {
    current = current.map((x, i) => x * (scale[Math.floor(i / spec.hiddenSize)] as number));
  }
  products.forEach((product, i) => {
    const { value, gate, valueBias, gateBias } = product;
    const biases = spec.bias ? { valueBias, gateBias } : {};
    const sums = multiply(current, decodeMatrix(value), rows, value.rows, biases.valueBias);
    const { activation } = spec;
    if (spec.form === "gated" && i === 0) {
      if (gate === undefined) throw new TypeError("A gated expert needs a gate matrix.");
      const gates = multiply(current, decodeMatrix(gate), rows, gate.rows, biases.gateBias);
      current = sums.map((u, j) => joinGate(activation, gates[j] as number, u));
    } else if (i < products.length - 1) {
      current = sums.map((x) => activate(activation, x));
    } else {
      current = sums;
    }
  });
  return current;
}

/** activation(x), for a product without a gate. */
export function activate(activation: Activation, x: number): number {
  switch (activation.kind) {
    case "none":
      return x;
    case "relu":
      return Math.max(0, x);
    case "silu":
      return x * sigmoid(x);
    case "gelu":
      return 0.5 * x * erfc(-x / Math.SQRT2);
    case "gelu-tanh":
      return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
    case "sigmoid":
      return sigmoid(x);
    case "swiglu-clamped":
      throw new TypeError("swiglu-clamped needs a gate and a value.");
  }
}

/** The gate and the value of a gated product, joined. */
export function joinGate(activation: Activation, gate: number, value: number): number {
  if (activation.kind !== "swiglu-clamped") return activate(activation, gate) * value;
  const { alpha, limit } = activation;
  const g = Math.min(gate, limit);
  const u = Math.max(-limit, Math.min(value, limit));
  return (u + 1) * g * sigmoid(alpha * g);
}

/**
 * input x matrix^T + bias.
 *
 * @param input [rows, inputs]
 * @param matrix [outputs, inputs]
 * @param bias [outputs]
 * @returns [rows, outputs]
 */
export function multiply(
  input: Float64Array,
  matrix: Float64Array,
  rows: number,
  outputs: number,
  bias?: Float32Array,
): Float64Array {
  const inputs = matrix.length / outputs;
  const out = new Float64Array(rows * outputs);
  for (let r = 0; r < rows; r++) {
    for (let o = 0; o < outputs; o++) {
      let sum = 0;
      for (let i = 0; i < inputs; i++) {
        sum += (input[r * inputs + i] as number) * (matrix[o * inputs + i] as number);
      }
      out[r * outputs + o] = sum + (bias?.[o] ?? 0);
    }
  }
  return out;
}
