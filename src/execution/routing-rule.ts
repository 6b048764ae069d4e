/**
 * The check of a routing rule that every device makes, and what follows from the
 * rule. What the kernels are told is each device's own affair.
 */

import type { OperatorChecks } from "./operator-checks.ts";
import type { GroupLimit, RoutingRule } from "./operators.ts";

/** In the order of the codes that stand for them on the CPU. */
export const SCORINGS = [
  "softmax",
  "sigmoid",
  "topk-softmax",
  "topk-sigmoid",
  "sparsemixer",
] as const satisfies readonly RoutingRule["scoring"][];

/** Likewise. */
export const GROUP_SCORES = ["top2-sum", "max"] as const satisfies readonly GroupLimit["score"][];

/** A rule that makes sense, with nothing left out. */
export interface CheckedRule {
  readonly scoring: RoutingRule["scoring"];
  readonly scale: number;
  readonly groupLimit: GroupLimit | undefined;
  /** 0 where the scoring has none. */
  readonly jitter: number;
}

/**
 * Whether a token's choices are its largest logits, the largest first and of equal ones that of the lowest index: softmax and the
 * logistic function keep their order.
 */
export function byLogits(
  { scoring, groupLimit }: Pick<RoutingRule, "scoring" | "groupLimit">,
  selectionBias: boolean,
): boolean {
  return !selectionBias && groupLimit === undefined && scoring !== "sparsemixer";
}

/** @throws InvalidArgumentError naming what contradicts what */
export function checkRule(
  rule: RoutingRule,
  experts: number,
  topK: number,
  to: OperatorChecks,
): CheckedRule {
  const scoring = to.oneOf("rule.scoring", rule.scoring, SCORINGS);
  const scoresAll = scoring === "softmax" || scoring === "sigmoid";
  if (rule.renormalize && !scoresAll) {
    to.fail(`rule.renormalize is set with ${scoring}`, "Only softmax and sigmoid renormalise.");
  }
  const { groupLimit, jitter } = rule;
  if (groupLimit !== undefined) {
    if (!scoresAll) {
      to.fail(`rule.groupLimit is set with ${scoring}`, "Only softmax and sigmoid limit groups.");
    }
    const groups = to.integer("rule.groupLimit.groups", groupLimit.groups, 1, experts);
    const keep = to.integer("rule.groupLimit.keep", groupLimit.keep, 1, groups);
    const score = to.oneOf("rule.groupLimit.score", groupLimit.score, GROUP_SCORES);
    const size = experts / groups;
    if (!Number.isInteger(size)) {
      to.fail(
        `${experts} experts cannot be divided into ${groups} even groups`,
        "Use a divisor of the number of experts.",
      );
    }
    if (score === "top2-sum" && size < 2) {
      to.fail("top2-sum needs groups of 2 experts or more", "Use fewer groups, or max.");
    }
    if (keep * size < topK) {
      to.fail(
        `${keep} groups of ${size} experts are fewer than topK, ${topK}`,
        "Keep more groups, or lower topK.",
      );
    }
  }
  let width = 0;
  if (scoring === "sparsemixer") {
    width = to.finite("rule.jitter", jitter ?? Number.NaN);
    if (width < 0) to.fail(`rule.jitter is ${width}`, "Use 0 or more.");
  } else if (jitter !== undefined) {
    to.fail(`rule.jitter is set with ${scoring}`, "Only sparsemixer has it.");
  }
  const scale = to.finite("rule.scale", rule.scale);
  return { scoring, scale, groupLimit, jitter: width };
}
