/**
 * Every family's conventions against transformers: each fixture's layer, computed the
 * slow way from the spec and weights the checkpoint plane gives, has to be the block
 * that transformers computed.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { FAMILIES } from "../../src/checkpoint/families/index.ts";
import { readLayer } from "../../src/checkpoint/index.ts";
import type { LayerSpec, RouterSpec } from "../../src/data/spec.ts";
import type { Activation, RoutingRule } from "../../src/execution/operators.ts";
import { relativeError } from "../../src/reference/index.ts";
import { FIXTURES, type FixtureName, loadFixture, sortByExpert } from "../fixtures/index.ts";
import { referenceForward } from "./reference.ts";

/** The bound the whole system is held to. */
const MAX_RELATIVE_ERROR = 1e-5;

/** Gates that ask for their top-k unsorted; all others return the best first. */
const UNSORTED = new Set(["DeepSeek-V2", "DeepSeek-V3", "GLM-4-MoE"]);

for (const { name, family } of FIXTURES) {
  test(`${name} computes what transformers computes`, async () => {
    const fixture = await loadFixture(name);
    const layer = await readLayer(fixture.directory, { layer: fixture.layer });
    await using weights = layer.weights;
    assert.equal(layer.family, family);
    assert.equal(layer.spec.hiddenSize, fixture.hiddenSize);
    assert.equal(layer.spec.router.topK, fixture.topK);

    const actual = await referenceForward(layer.spec, weights, fixture.input.data);

    if (!UNSORTED.has(family)) assert.deepEqual(actual.ids, [...fixture.ids]);
    const routing = sortByExpert(actual.ids, actual.weights, fixture.topK);
    const expected = sortByExpert(fixture.ids, fixture.weights, fixture.topK);
    assert.deepEqual(routing.ids, expected.ids);
    assert.ok(relativeError(routing.weights, expected.weights) < MAX_RELATIVE_ERROR);
    const error = relativeError(actual.output, fixture.output.data);
    assert.ok(error < MAX_RELATIVE_ERROR, `relative error ${error}`);
  });
}

// ---------------------------------------------------------------------------
// The fixtures have to be able to tell right from wrong.

type Twist = (spec: LayerSpec) => LayerSpec;

const withRule =
  (change: Partial<RoutingRule>): Twist =>
  (spec) => ({ ...spec, router: { ...spec.router, rule: { ...spec.router.rule, ...change } } });
const withRouter =
  (change: Partial<RouterSpec>): Twist =>
  (spec) => ({ ...spec, router: { ...spec.router, ...change } });
const withActivation =
  (activation: Activation): Twist =>
  (spec) => ({ ...spec, experts: { ...spec.experts, activation } });
const applyWeightsTo =
  (weightsApplyTo: "input" | "output"): Twist =>
  (spec) => ({ ...spec, aggregation: { ...spec.aggregation, weightsApplyTo } });
const withoutShared: Twist = ({ shared: _, ...spec }) => spec;
const openShared: Twist = (spec) => ({
  ...spec,
  ...(spec.shared && { shared: { ...spec.shared, gate: false } }),
});
const grouped = (groups: number, keep: number, score: "max" | "top2-sum"): Twist =>
  withRule({ groupLimit: { groups, keep, score } });

const twists: [FixtureName, string, Twist][] = [
  ["mixtral", "renormalising", withRule({ renormalize: false })],
  ["mixtral_top1", "exact GELU", withActivation({ kind: "gelu-tanh" })],
  ["qwen2_moe", "not renormalising", withRule({ renormalize: true })],
  ["qwen2_moe", "the shared expert", withoutShared],
  ["qwen2_moe", "the shared expert's gate", openShared],
  ["qwen2_moe_normalised", "renormalising", withRule({ renormalize: false })],
  ["qwen3_moe_odd", "ReLU", withActivation({ kind: "silu" })],
  ["olmoe_sharded", "the tanh form of GELU", withActivation({ kind: "gelu" })],
  ["deepseek_v2_grouped", "the scaling factor", withRule({ scale: 1 })],
  ["deepseek_v2_grouped", "the group limit", grouped(1, 1, "max")],
  ["deepseek_v2_grouped", "the group score", grouped(6, 3, "top2-sum")],
  ["deepseek_v3", "the group limit", grouped(1, 1, "top2-sum")],
  ["deepseek_v3", "the group score", grouped(4, 2, "max")],
  ["deepseek_v3_ungrouped", "the correction bias", withRouter({ selectionBias: false })],
  ["glm4_moe", "sigmoid", withRule({ scoring: "softmax" })],
  ["glm4_moe_grouped", "the shared experts", withoutShared],
  ["gpt_oss", "softmax after top-k", withRule({ scoring: "softmax" })],
  ["gpt_oss", "the router's bias", withRouter({ bias: false })],
  [
    "gpt_oss_odd",
    "the clamp",
    withActivation({ kind: "swiglu-clamped", alpha: 1.702, limit: Number.POSITIVE_INFINITY }),
  ],
  ["phimoe", "the jitter", withRule({ jitter: 0.1 })],
  ["phimoe_packed", "the default jitter", withRule({ jitter: 0.02 })],
  ["llama4", "weights on the input", applyWeightsTo("output")],
  ["llama4_text", "sigmoid after top-k", withRule({ scoring: "topk-softmax" })],
];

for (const [name, convention, twist] of twists) {
  test(`${name} shows it when ${convention} is missed`, async () => {
    const fixture = await loadFixture(name);
    const { spec, weights } = await readLayer(fixture.directory, { layer: fixture.layer });
    await using source = weights;
    const { output } = await referenceForward(twist(spec), source, fixture.input.data);
    const error = relativeError(output, fixture.output.data);
    assert.ok(error > 10 * MAX_RELATIVE_ERROR, `relative error only ${error}`);
  });
}

test("every family has a fixture", () => {
  const covered = new Set<string>(FIXTURES.map(({ family }) => family));
  assert.deepEqual(
    FAMILIES.map(({ name }) => name).filter((name) => !covered.has(name)),
    [],
  );
});
