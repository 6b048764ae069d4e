/** Every scoring rule there is, with the options that make sense for it. */

import type { RoutingRule } from "../../src/execution/operators.ts";
import type { Random } from "../../src/workload/random.ts";
import { between, chance, pick } from "./seed.ts";

/** Named as tests report them. */
export const RULES: readonly { readonly name: string; readonly rule: RoutingRule }[] = [
  { name: "softmax", rule: { scoring: "softmax", renormalize: false, scale: 1 } },
  { name: "softmax, renormalised", rule: { scoring: "softmax", renormalize: true, scale: 1 } },
  { name: "softmax, scaled", rule: { scoring: "softmax", renormalize: false, scale: 16 } },
  { name: "sigmoid", rule: { scoring: "sigmoid", renormalize: false, scale: 1 } },
  { name: "sigmoid, renormalised", rule: { scoring: "sigmoid", renormalize: true, scale: 2.5 } },
  { name: "topk-softmax", rule: { scoring: "topk-softmax", renormalize: false, scale: 1 } },
  { name: "topk-sigmoid", rule: { scoring: "topk-sigmoid", renormalize: false, scale: 1 } },
  {
    name: "sparsemixer",
    rule: { scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 0.01 },
  },
  {
    name: "sparsemixer, wide",
    rule: { scoring: "sparsemixer", renormalize: false, scale: 0.5, jitter: 0.3 },
  },
];

/** The rules that score all experts, which may restrict selection to groups. */
export const GROUPED_RULES: typeof RULES = RULES.filter(
  ({ rule }) => rule.scoring === "softmax" || rule.scoring === "sigmoid",
);

/** The rule with a random group limit, if one fits the sizes. */
export function limited(
  random: Random,
  rule: RoutingRule,
  experts: number,
  topK: number,
): RoutingRule {
  const score = pick(random, ["top2-sum", "max"] as const);
  const least = score === "max" ? 1 : 2;
  const counts: number[] = [];
  for (let groups = 1; groups <= experts / least; groups++) {
    if (experts % groups === 0) counts.push(groups);
  }
  if (counts.length === 0) return rule;
  const groups = pick(random, counts);
  const keep = between(random, Math.ceil((topK * groups) / experts), groups);
  return { ...rule, groupLimit: { groups, keep, score } };
}

/** Any rule, with a group limit now and then. */
export function randomRule(random: Random, experts: number, topK: number): RoutingRule {
  const { rule } = pick(random, RULES);
  const scoresAll = rule.scoring === "softmax" || rule.scoring === "sigmoid";
  return scoresAll && chance(random, 0.4) ? limited(random, rule, experts, topK) : rule;
}
