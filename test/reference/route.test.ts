/** The reference router against examples worked out by hand. */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { RoutingRule } from "../../src/execution/operators.ts";
import { referenceRoute } from "../../src/reference/index.ts";

/** Logits whose exponentials are the given numbers, so that softmax can be done in the head. */
const logs = (...numbers: readonly number[]) => Float64Array.from(numbers, Math.log);
const plain = (scoring: RoutingRule["scoring"], more: Partial<RoutingRule> = {}): RoutingRule => ({
  scoring,
  renormalize: false,
  scale: 1,
  ...more,
});

function check(
  routing: { ids: Int32Array; weights: Float64Array },
  ids: readonly number[],
  weights: readonly number[],
): void {
  assert.deepEqual(Array.from(routing.ids), ids);
  assert.equal(routing.weights.length, weights.length);
  routing.weights.forEach((weight, i) => {
    assert.ok(Math.abs(weight - (weights[i] as number)) < 1e-12, `weight ${i} is ${weight}`);
  });
}

test("softmax, with and without renormalising, and scaled", () => {
  const logits = logs(1, 5, 2, 2);
  check(referenceRoute(plain("softmax"), logits, 4, 2), [1, 2], [0.5, 0.2]);
  check(
    referenceRoute(plain("softmax", { renormalize: true }), logits, 4, 2),
    [1, 2],
    [5 / 7, 2 / 7],
  );
  check(referenceRoute(plain("softmax", { scale: 3 }), logits, 4, 2), [1, 2], [1.5, 0.6]);
});

test("ties go to the lower index", () => {
  const logits = new Float64Array(6);
  const routing = referenceRoute(plain("softmax"), logits, 6, 3);
  check(routing, [0, 1, 2], [1 / 6, 1 / 6, 1 / 6]);
  assert.equal(routing.margins[0], Number.POSITIVE_INFINITY);
});

test("sigmoid, and a selection bias that moves the choice but not the weights", () => {
  // sigmoid(ln a) = a / (1 + a).
  const logits = logs(1, 3, 1 / 3);
  check(referenceRoute(plain("sigmoid"), logits, 3, 2), [1, 0], [0.75, 0.5]);
  const bias = Float64Array.of(0, 0, 1);
  check(referenceRoute(plain("sigmoid"), logits, 3, 2, bias), [2, 1], [0.25, 0.75]);
  const scaled = plain("sigmoid", { renormalize: true, scale: 2 });
  check(referenceRoute(scaled, logits, 3, 2, bias), [2, 1], [0.5, 1.5]);
});

test("top-k first: softmax over the k, sigmoid of each", () => {
  const logits = logs(1, 3, 6, 1);
  check(referenceRoute(plain("topk-softmax"), logits, 4, 2), [2, 1], [2 / 3, 1 / 3]);
  check(referenceRoute(plain("topk-sigmoid"), logits, 4, 2), [2, 1], [6 / 7, 3 / 4]);
});

test("group limits: by the best expert, and by the sum of the two best", () => {
  // Shares of 20: groups {8, 1}, {5, 4}, {1, 1}; the best expert is in the first, the best two in the second.
  const logits = logs(8, 1, 5, 4, 1, 1);
  const limit = (score: "max" | "top2-sum") =>
    plain("softmax", { groupLimit: { groups: 3, keep: 1, score } });
  check(referenceRoute(limit("max"), logits, 6, 2), [0, 1], [8 / 20, 1 / 20]);
  const even = referenceRoute(limit("top2-sum"), logits, 6, 2);
  assert.ok((even.margins[0] as number) < 1e-12, "8 + 1 against 5 + 4 is a close call");
  check(referenceRoute(limit("top2-sum"), logs(7, 1, 5, 4, 1, 2), 6, 2), [2, 3], [5 / 20, 4 / 20]);
});

test("groups of equal score go by index", () => {
  const limit = plain("softmax", { groupLimit: { groups: 3, keep: 2, score: "max" } });
  check(referenceRoute(limit, logs(1, 1, 2, 1, 2, 2), 6, 3), [2, 4, 5], [2 / 9, 2 / 9, 2 / 9]);
});

test("sparsemixer: softmax over what is close to the best of those left", () => {
  // Best 10; within 10 % of max(|logit|, best): 9.5 (5 %), not 8 (20 %).
  const rule = plain("sparsemixer", { jitter: 0.05 });
  const logits = Float64Array.of(8, 10, 9.5, 8.9);
  const first = 1 / (1 + Math.exp(-0.5));
  // Then best 9.5; 8.9 is 6.3 % away, 8 is 15.8 %.
  const second = 1 / (1 + Math.exp(-0.6));
  check(referenceRoute(rule, logits, 4, 2), [1, 2], [first, second]);
});

test("sparsemixer with negative logits measures distance by each logit's own size", () => {
  // Best -1; (-1 + 2) / max(2, -1) = 0.5 is above 0.4, (-1 + 1.5) / 1.5 = 0.33 is below it.
  const rule = plain("sparsemixer", { jitter: 0.2 });
  check(referenceRoute(rule, Float64Array.of(-2, -1, -1.5), 3, 1), [1], [1 / (1 + Math.exp(-0.5))]);
});

test("experts at -Infinity come last and weigh nothing", () => {
  const out = Number.NEGATIVE_INFINITY;
  const logits = Float64Array.of(out, 0, out, 0);
  for (const scoring of ["softmax", "topk-softmax"] as const) {
    check(referenceRoute(plain(scoring), logits, 4, 3), [1, 3, 0], [0.5, 0.5, 0]);
  }
  check(referenceRoute(plain("sigmoid"), logits, 4, 3), [1, 3, 0], [0.5, 0.5, 0]);
});

test("counts and margins are by expert and by token", () => {
  const logits = Float64Array.of(3, 2, 0, 1, 1.5, 5);
  const { counts, margins } = referenceRoute(plain("topk-softmax"), logits, 3, 2);
  assert.deepEqual(Array.from(counts), [1, 2, 1]);
  // Token 0: 3 - 2 relative to 1 + 3. Token 1: 1.5 - 1 relative to 1 + 1.5.
  assert.deepEqual(Array.from(margins), [0.25, 0.2]);
});
