/** The reference layer against a layer small enough to compute on paper. */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights } from "../../src/data/weights.ts";
import { referenceExpert, referenceLayer, relativeError } from "../../src/reference/index.ts";
import type { MatrixView } from "../../src/tensor.ts";
import { gatedExperts } from "../support/layers.ts";

const matrix = (rows: readonly (readonly number[])[]): MatrixView => ({
  dtype: "float32",
  data: Float32Array.from(rows.flat()),
  offset: 0,
  rows: rows.length,
  columns: rows[0]?.length ?? 0,
  rowStride: rows[0]?.length ?? 0,
  columnStride: 1,
});

/** Two experts on two channels: expert e multiplies the input's product x0 * x1 by e + 1, in both channels. */
const spec: LayerSpec = {
  hiddenSize: 2,
  router: { experts: 2, topK: 2, rule: { scoring: "topk-sigmoid", renormalize: false, scale: 1 } },
  experts: gatedExperts(2, 1, { activation: { kind: "none" } }),
  aggregation: { mode: "sum", weightsApplyTo: "output", residual: false },
};
const weights: LayerWeights = {
  // Expert 0 wins if x0 > 0.
  gate: async () =>
    matrix([
      [1, 0],
      [-1, 0],
    ]),
  expert: async (e) => [
    { gate: matrix([[1, 0]]), value: matrix([[0, 1]]) },
    { value: matrix([[e + 1], [e + 1]]) },
  ],
  shared: async () => [
    { gate: matrix([[1, 0]]), value: matrix([[1, 0]]) },
    { value: matrix([[1], [0]]) },
  ],
  sharedGate: async () => matrix([[0, 1]]),
};
const hidden = Float64Array.of(2, 3, -1, 5);
const s = (x: number) => 1 / (1 + Math.exp(-x));
const close = (actual: Float64Array, expected: readonly number[]) =>
  assert.ok(relativeError(actual, expected) < 1e-15, `${actual} is not ${expected}`);

test("weighted sum, concatenation, weights on the input", async () => {
  const { output, ids } = await referenceLayer(spec, weights, hidden);
  assert.deepEqual(Array.from(ids), [0, 1, 1, 0]);
  const first = 6 * s(2) + 12 * s(-2);
  const second = -10 * s(1) - 5 * s(-1);
  close(output, [first, first, second, second]);

  const concat = { ...spec, aggregation: { ...spec.aggregation, mode: "concat" as const } };
  const pairs = [6 * s(2), 12 * s(-2), -10 * s(1), -5 * s(-1)].flatMap((x) => [x, x]);
  close((await referenceLayer(concat, weights, hidden)).output, pairs);

  // Both factors of the product see the weight, so it counts twice.
  const onInput = {
    ...spec,
    aggregation: { ...spec.aggregation, weightsApplyTo: "input" as const },
  };
  const a = 6 * s(2) ** 2 + 12 * s(-2) ** 2;
  const b = -10 * s(1) ** 2 - 5 * s(-1) ** 2;
  close((await referenceLayer(onInput, weights, hidden)).output, [a, a, b, b]);
});

test("shared expert, its gate, the residual", async () => {
  const experts = spec.experts;
  const base = (await referenceLayer(spec, weights, hidden)).output;
  const plus = (extra: readonly number[]) => Array.from(base, (x, i) => x + (extra[i] as number));
  const ungated = { ...spec, shared: { experts, gate: false } };
  close((await referenceLayer(ungated, weights, hidden)).output, plus([4, 0, 1, 0]));
  const gated = {
    ...spec,
    shared: { experts, gate: true },
    aggregation: { ...spec.aggregation, residual: true },
  };
  close(
    (await referenceLayer(gated, weights, hidden)).output,
    plus([4 * s(3) + 2, 3, s(5) - 1, 5]),
  );
});

test("capacity: the later slots are dropped, reported and add nothing", async () => {
  const router = { ...spec.router, topK: 1, capacityFactor: 0.5 };
  const three = Float64Array.of(2, 3, 1, 1, -1, 5);
  // ceil(0.5 * 3 * 1 / 2) = 1 row an expert: token 1 finds expert 0 taken.
  const { output, dropped } = await referenceLayer({ ...spec, router }, weights, three);
  assert.deepEqual(dropped, [{ token: 1, choice: 0, expert: 0 }]);
  close(output, [6 * s(2), 6 * s(2), 0, 0, -10 * s(1), -10 * s(1)]);
});

test("a three-layer MLP adds biases and leaves the last product bare", () => {
  const mlp = {
    ...gatedExperts(1, 1, { activation: { kind: "relu" }, bias: true }),
    form: "mlp" as const,
    depth: 3 as const,
  };
  const product = (weight: number, bias: number) => ({
    value: matrix([[weight]]),
    valueBias: Float32Array.of(bias),
  });
  const products = [product(2, 1), product(-1, 10), product(3, -50)];
  // 2 x + 1, relu; 10 - that, relu; 3 times that - 50.
  close(referenceExpert(mlp, products, Float64Array.of(1, 6, -7)), [-29, -50, -20]);
});
