/** The reference's arithmetic against values from tables and definitions. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  activate,
  decodeMatrix,
  erfc,
  joinGate,
  relativeError,
} from "../../src/reference/index.ts";
import { float16ToNumber } from "../../src/tensor.ts";
import { float16Bits } from "../support/tensors.ts";

const near = (actual: number, expected: number, relative: number) =>
  assert.ok(
    Math.abs(actual - expected) <= relative * Math.abs(expected),
    `${actual} is not ${expected} to within ${relative}`,
  );

test("erfc agrees with tabulated values on both sides of the switch between methods", () => {
  const table: readonly [number, number][] = [
    [-1, 1.8427007929497148],
    [0, 1],
    [0.5, 0.4795001221869535],
    [1, 0.15729920705028513],
    [1.5, 0.03389485352468927],
    [2, 4.677734981047266e-3],
    [2.5, 4.069520174449589e-4],
    [3, 2.209049699858544e-5],
    [5, 1.537459794428035e-12],
    [10, 2.088487583762545e-45],
  ];
  for (const [x, expected] of table) near(erfc(x), expected, 5e-15);
  assert.equal(erfc(40), 0);
  assert.equal(erfc(-40), 2);
  assert.ok(Number.isNaN(erfc(Number.NaN)));
});

test("erfc has no step where the method changes", () => {
  near(erfc(1.5 - 1e-9), erfc(1.5 + 1e-9), 1e-8);
});

test("activations at points whose values are known", () => {
  const at = (kind: "relu" | "silu" | "gelu" | "gelu-tanh" | "sigmoid" | "none", x: number) =>
    activate({ kind }, x);
  assert.equal(at("none", -3), -3);
  assert.equal(at("relu", -3), 0);
  assert.equal(at("relu", 3), 3);
  near(at("sigmoid", 0), 0.5, 1e-15);
  near(at("sigmoid", -700), Math.exp(-700), 1e-14);
  near(at("silu", 1), 0.7310585786300049, 1e-15);
  near(at("gelu", 1), 0.8413447460685429, 1e-14);
  near(at("gelu", -1), -0.15865525393145707, 1e-14);
  near(at("gelu", -8), -8 * 6.220960574271785e-16, 1e-12);
  near(at("gelu-tanh", 1), 0.8411919906082768, 1e-14);
  assert.throws(() => activate({ kind: "swiglu-clamped", alpha: 1, limit: 1 }, 0), TypeError);
});

test("a gate multiplies, and the clamped SwiGLU clamps as gpt-oss does", () => {
  near(joinGate({ kind: "silu" }, 1, 3), 3 * 0.7310585786300049, 1e-15);
  assert.equal(joinGate({ kind: "none" }, 2, 3), 6);
  const clamped = { kind: "swiglu-clamped", alpha: 2, limit: 4 } as const;
  const glu = (g: number) => g / (1 + Math.exp(-2 * g));
  near(joinGate(clamped, 1, 3), 4 * glu(1), 1e-15);
  near(joinGate(clamped, 9, 9), 5 * glu(4), 1e-15);
  near(joinGate(clamped, -9, -9), -3 * glu(-9), 1e-14);
});

test("decodeMatrix follows offset and strides, for every element type", () => {
  const view = { offset: 1, rows: 2, columns: 3, rowStride: 1, columnStride: 2 };
  const decoded = [1, 3, 5, 2, 4, 6];
  const values = [0, 1, 2, 3, 4, 5, 6];
  const as = (dtype: "float32" | "bfloat16" | "float16", data: Float32Array | Uint16Array) =>
    Array.from(decodeMatrix({ ...view, dtype, data }));
  const floats = Float32Array.from(values);
  assert.deepEqual(as("float32", floats), decoded);
  const upper = Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16);
  assert.deepEqual(as("bfloat16", upper), decoded);
  assert.deepEqual(as("float16", Uint16Array.from(values, float16Bits)), decoded);
  assert.throws(
    () => decodeMatrix({ ...view, rows: 3, dtype: "float32", data: floats }),
    /\(2, 2\).*outside/,
  );
});

test("float16Bits inverts float16ToNumber for all 65,536 patterns but NaN", () => {
  for (let bits = 0; bits < 65536; bits++) {
    const value = float16ToNumber(bits);
    if (Number.isNaN(value)) continue;
    assert.equal(float16Bits(value), bits, `pattern ${bits.toString(16)}, value ${value}`);
  }
});

test("relativeError: definition and edges", () => {
  assert.equal(relativeError([3, 4], [3, 4]), 0);
  assert.equal(relativeError([3, 5], [3, 4]), 0.2);
  assert.equal(relativeError([0, 0], [0, 0]), 0);
  assert.equal(relativeError([1], [0]), Number.POSITIVE_INFINITY);
  assert.equal(relativeError([], []), 0);
  assert.ok(Number.isNaN(relativeError([Number.NaN], [1])));
  assert.throws(() => relativeError([1], [1, 2]), RangeError);
});
