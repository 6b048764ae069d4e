/**
 * Checks layer specs before anything is allocated. Every message names the
 * value and the remedy. Types are checked too, since specs may come from JSON.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { type Fields, refuseUnknown } from "../execution/checks.ts";
import type { Activation, GroupLimit, RoutingRule } from "../execution/operators.ts";
import type {
  AggregationSpec,
  ExpertsSpec,
  LayerSpec,
  RouterSpec,
  SharedExpertSpec,
} from "./spec.ts";

/** Largest expert count the routing kernels are built for (known models: up to 896). */
export const MAX_EXPERTS = 1024;
/** Largest top_k the routing kernels are built for (known models: up to 22). */
const MAX_TOP_K = 32;

const LAYER: Fields<LayerSpec> = {
  hiddenSize: true,
  router: true,
  experts: true,
  shared: true,
  aggregation: true,
};
const ROUTER: Fields<RouterSpec> = {
  experts: true,
  topK: true,
  rule: true,
  bias: true,
  selectionBias: true,
  capacityFactor: true,
};
const RULE: Fields<RoutingRule> = {
  scoring: true,
  renormalize: true,
  scale: true,
  groupLimit: true,
  jitter: true,
};
const GROUP_LIMIT: Fields<GroupLimit> = { groups: true, keep: true, score: true };
const EXPERTS: Fields<ExpertsSpec> = {
  form: true,
  depth: true,
  hiddenSize: true,
  intermediateSize: true,
  activation: true,
  bias: true,
  dtype: true,
};
const SHARED: Fields<SharedExpertSpec> = { experts: true, gate: true };
const ACTIVATION: Fields<Activation> = { kind: true, alpha: true, limit: true };
const AGGREGATION: Fields<AggregationSpec> = { mode: true, weightsApplyTo: true, residual: true };

/** @throws InvalidArgumentError naming the field, its value and what it may be */
export function validateLayerSpec(spec: LayerSpec): void {
  group("spec", spec, LAYER);
  whole("hiddenSize", spec.hiddenSize, 1);
  validateRouterSpec(spec.router);
  validateExpertsSpec(spec.experts, "experts");
  if (spec.experts.hiddenSize !== spec.hiddenSize) {
    fail(
      "experts.hiddenSize",
      spec.experts.hiddenSize,
      `must equal the layer's hiddenSize, ${spec.hiddenSize}`,
    );
  }
  if (spec.shared !== undefined) {
    group("shared", spec.shared, SHARED);
    yesOrNo("shared.gate", spec.shared.gate);
    validateExpertsSpec(spec.shared.experts, "shared.experts");
    if (spec.shared.experts.hiddenSize !== spec.hiddenSize) {
      fail(
        "shared.experts.hiddenSize",
        spec.shared.experts.hiddenSize,
        `must equal the layer's hiddenSize, ${spec.hiddenSize}`,
      );
    }
  }
  validateAggregation(spec.aggregation);
  if (spec.aggregation.mode === "concat" && spec.shared !== undefined) {
    fail("aggregation.mode", "concat", "cannot be used with a shared expert; use sum");
  }
}

export function validateRouterSpec(spec: RouterSpec): void {
  group("router", spec, ROUTER);
  whole("router.experts", spec.experts, 1, MAX_EXPERTS);
  validateChoice(spec, spec.experts);
  const { groupLimit } = spec.rule;
  if (groupLimit !== undefined) validateGroups(groupLimit, spec.experts, spec.topK);
}

/**
 * What can be said of a router before the number of experts is known.
 *
 * @param mostExperts how many there are at most
 * @throws InvalidArgumentError naming the field, its value and what it may be
 */
export function validateChoice(
  spec: Omit<RouterSpec, "experts">,
  mostExperts: number = MAX_EXPERTS,
): void {
  whole("router.topK", spec.topK, 1, Math.min(MAX_TOP_K, mostExperts));
  validateRule(spec.rule, mostExperts);
  if (spec.bias !== undefined) yesOrNo("router.bias", spec.bias);
  if (spec.selectionBias !== undefined) yesOrNo("router.selectionBias", spec.selectionBias);
  if (spec.selectionBias && spec.rule.scoring === "sparsemixer") {
    fail("router.selectionBias", true, 'has no meaning for scoring "sparsemixer"; use false');
  }
  const { capacityFactor } = spec;
  if (capacityFactor !== undefined && !(Number.isFinite(capacityFactor) && capacityFactor > 0)) {
    fail("router.capacityFactor", capacityFactor, "must be greater than 0, or left out");
  }
}

function validateRule(rule: RoutingRule, mostExperts: number): void {
  group("rule", rule, RULE);
  const scorings = ["softmax", "sigmoid", "topk-softmax", "topk-sigmoid", "sparsemixer"];
  oneOf("rule.scoring", rule.scoring, scorings);
  const scoresAll = rule.scoring === "softmax" || rule.scoring === "sigmoid";
  yesOrNo("rule.renormalize", rule.renormalize);
  if (rule.renormalize && !scoresAll) {
    fail("rule.renormalize", true, `has no meaning for scoring "${rule.scoring}"; use false`);
  }
  if (!isFloat32(rule.scale)) {
    fail("rule.scale", rule.scale, "must be a finite number of float32; use 1 for none");
  }
  const { jitter } = rule;
  if (rule.scoring !== "sparsemixer" && jitter !== undefined) {
    fail("rule.jitter", jitter, `has no meaning for scoring "${rule.scoring}"; leave it out`);
  }
  if (rule.scoring === "sparsemixer" && !(isFloat32(jitter) && jitter >= 0)) {
    fail("rule.jitter", jitter, "must be 0 or more for sparsemixer (Phi-3.5-MoE: 0.01)");
  }
  const limit = rule.groupLimit;
  if (limit === undefined) return;
  group("rule.groupLimit", limit, GROUP_LIMIT);
  if (!scoresAll) {
    fail("rule.groupLimit", limit.groups, `has no meaning for scoring "${rule.scoring}"`);
  }
  whole("rule.groupLimit.groups", limit.groups, 1, mostExperts);
  whole("rule.groupLimit.keep", limit.keep, 1, limit.groups);
  oneOf("rule.groupLimit.score", limit.score, ["top2-sum", "max"]);
}

/** Whether so many experts can be in such groups. */
function validateGroups(limit: GroupLimit, experts: number, topK: number): void {
  if (experts % limit.groups !== 0) {
    fail("rule.groupLimit.groups", limit.groups, `must divide the ${experts} experts evenly`);
  }
  const perGroup = experts / limit.groups;
  if (limit.score === "top2-sum" && perGroup < 2) {
    fail("rule.groupLimit.groups", limit.groups, "leaves one expert a group; top2-sum needs two");
  }
  if (limit.keep * perGroup < topK) {
    fail(
      "rule.groupLimit.keep",
      limit.keep,
      `leaves ${limit.keep * perGroup} experts to choose from, fewer than topK ${topK}`,
    );
  }
}

export function validateExpertsSpec(spec: ExpertsSpec, name: string): void {
  group(name, spec, EXPERTS);
  oneOf(`${name}.form`, spec.form, ["gated", "mlp"]);
  whole(`${name}.hiddenSize`, spec.hiddenSize, 1);
  whole(`${name}.intermediateSize`, spec.intermediateSize, 1);
  oneOf(`${name}.dtype`, spec.dtype, ["float32", "bfloat16", "float16"]);
  if (spec.form === "mlp") oneOf(`${name}.depth`, spec.depth, [2, 3]);
  if (spec.form === "gated" && spec.depth !== undefined) {
    fail(`${name}.depth`, spec.depth, "is for form mlp; leave it out for gated experts");
  }
  yesOrNo(`${name}.bias`, spec.bias);
  validateActivation(spec.activation, spec.form, `${name}.activation`);
}

/** @throws InvalidArgumentError unless a set of experts can have that many */
export function validateExpertCount(count: number): void {
  whole("count", count, 1, MAX_EXPERTS);
}

function validateActivation(activation: Activation, form: "gated" | "mlp", name: string): void {
  group(name, activation, ACTIVATION);
  const kinds = ["none", "relu", "silu", "gelu", "gelu-tanh", "sigmoid", "swiglu-clamped"];
  oneOf(`${name}.kind`, activation.kind, kinds);
  if (activation.kind !== "swiglu-clamped") {
    for (const field of ["alpha", "limit"] as const) {
      const value = (activation as Record<string, unknown>)[field];
      if (value === undefined) continue;
      fail(`${name}.${field}`, value, `is not used by kind "${activation.kind}"; leave it out`);
    }
    return;
  }
  if (form !== "gated") fail(`${name}.kind`, activation.kind, "needs form gated");
  if (!isFloat32(activation.alpha)) {
    fail(`${name}.alpha`, activation.alpha, "must be a finite number of float32 (gpt-oss: 1.702)");
  }
  if (!(isFloat32(activation.limit) && activation.limit > 0)) {
    fail(`${name}.limit`, activation.limit, "must be greater than 0 in float32 (gpt-oss: 7)");
  }
}

export function validateAggregation(spec: AggregationSpec): void {
  group("aggregation", spec, AGGREGATION);
  oneOf("aggregation.mode", spec.mode, ["sum", "concat"]);
  oneOf("aggregation.weightsApplyTo", spec.weightsApplyTo, ["output", "input"]);
  yesOrNo("aggregation.residual", spec.residual);
  if (spec.mode === "concat" && spec.residual) {
    fail("aggregation.residual", true, "needs mode sum: a concatenation has k times the width");
  }
}

function whole(name: string, value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): void {
  if (Number.isInteger(value) && (value as number) >= least && (value as number) <= most) return;
  const range = most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`;
  fail(name, value, `must be a whole number, ${range}`);
}

/** Whether it is a number that is finite in the type that devices reckon in: a larger one would make results infinite. */
function isFloat32(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(Math.fround(value));
}

/** @throws InvalidArgumentError unless the value is one of those */
export function oneOf(name: string, value: unknown, allowed: readonly unknown[]): void {
  if (!allowed.includes(value)) fail(name, value, `must be one of ${allowed.join(", ")}`);
}

/** @throws InvalidArgumentError unless the value is true or false */
export function yesOrNo(name: string, value: unknown): void {
  oneOf(name, value, [true, false]);
}

function group(name: string, value: object, fields: Readonly<Record<string, true>>): void {
  if (typeof value !== "object" || value === null) fail(name, value, "must be an object");
  refuseUnknown(value, name, fields);
}

function fail(name: string, value: unknown, rule: string): never {
  throw new InvalidArgumentError(`${name} is ${shown(value)}; it ${rule}.`);
}
