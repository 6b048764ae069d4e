/**
 * Routing in float64, written from the definitions in execution/operators.ts: one
 * token at a time, sort everything, take the first k. Slow, and meant to be
 * obvious; independent of how any device does it.
 */

import type { GroupLimit, RoutingRule } from "../execution/operators.ts";

/** DeepSeek-V3 adds it to the sum it divides by, so that weights that are all zero stay zero. */
const RENORMALIZE_EPSILON = 1e-20;

/** The routing of T tokens. */
export interface ReferenceRouting {
  /** int32 [T, k]: expert ids, best first. */
  readonly ids: Int32Array;
  /** [T, k]. */
  readonly weights: Float64Array;
  /** int32 [E]: tokens per expert. */
  readonly counts: Int32Array;
  /**
   * [T]: how far each token's selection is from another one, relative to the size
   * of the scores compared: the least difference between two neighbouring ranks, up
   * to the first rank not chosen, or between the last group kept and the first left
   * out. Exact ties, which the index decides, do not count. Where this is of the
   * order of float32 rounding, a float32 router may rightly choose otherwise.
   */
  readonly margins: Float64Array;
}

/** What an expert is ranked by for one token. */
interface Candidate {
  readonly expert: number;
  /** What selection compares. */
  readonly key: number;
  /** Size of the numbers the key was added up from: what its rounding error is relative to. */
  readonly size: number;
  /** Same number, same inputs: a tie that every precision sees. */
  readonly logit: number;
  readonly bias: number;
}

/**
 * Routes T tokens.
 *
 * @param logits [T, E]
 * @param selectionBias [E], added to what selection compares, never to the weights
 */
export function referenceRoute(
  rule: RoutingRule,
  logits: Float32Array | Float64Array,
  experts: number,
  topK: number,
  selectionBias?: Float32Array | Float64Array,
): ReferenceRouting {
  const tokens = logits.length / experts;
  const ids = new Int32Array(tokens * topK);
  const weights = new Float64Array(tokens * topK);
  const counts = new Int32Array(experts);
  const margins = new Float64Array(tokens);
  for (let t = 0; t < tokens; t++) {
    const row = Array.from(logits.subarray(t * experts, (t + 1) * experts));
    const bias = (e: number) => selectionBias?.[e] ?? 0;
    const chosen =
      rule.scoring === "sparsemixer"
        ? sparsemixer(row, topK, bias, rule.jitter ?? 0)
        : topOf(rule, row, topK, bias);
    margins[t] = chosen.margin;
    for (let j = 0; j < topK; j++) {
      const expert = chosen.experts[j] as number;
      ids[t * topK + j] = expert;
      weights[t * topK + j] = rule.scale * (chosen.weights[j] as number);
      counts[expert] = (counts[expert] as number) + 1;
    }
  }
  return { ids, weights, counts, margins };
}

interface Choice {
  readonly experts: readonly number[];
  readonly weights: readonly number[];
  readonly margin: number;
}

/** Every rule but sparsemixer: rank once, take k, weigh. */
function topOf(
  rule: RoutingRule,
  row: readonly number[],
  topK: number,
  bias: (expert: number) => number,
): Choice {
  const scores = scoresOf(rule, row);
  const candidates = row.map((logit, expert) => {
    return candidateOf(expert, scores[expert] as number, logit, bias(expert));
  });
  const { kept, margin: groupMargin } = limitGroups(candidates, rule.groupLimit);
  const ranked = [...kept].sort(byRank);
  const experts = ranked.slice(0, topK).map((candidate) => candidate.expert);
  const margin = Math.min(groupMargin, marginOf(ranked, topK));
  const chosen = experts.map((expert) => scores[expert] as number);
  return { experts, weights: weightsOf(rule, chosen), margin };
}

/** What selection compares, before any bias: probabilities, sigmoids, or the logits themselves. */
function scoresOf(rule: RoutingRule, row: readonly number[]): readonly number[] {
  if (rule.scoring === "softmax") return softmax(row);
  if (rule.scoring === "sigmoid") return row.map(sigmoid);
  return row;
}

function weightsOf(rule: RoutingRule, chosen: readonly number[]): readonly number[] {
  if (rule.scoring === "topk-softmax") return softmax(chosen);
  if (rule.scoring === "topk-sigmoid") return chosen.map(sigmoid);
  if (!rule.renormalize) return chosen;
  const sum = chosen.reduce((a, b) => a + b, RENORMALIZE_EPSILON);
  return chosen.map((score) => score / sum);
}

/** The candidates in the best groups; groups of equal score go by index. */
function limitGroups(
  candidates: readonly Candidate[],
  limit: GroupLimit | undefined,
): { readonly kept: readonly Candidate[]; readonly margin: number } {
  if (limit === undefined) return { kept: candidates, margin: Number.POSITIVE_INFINITY };
  const perGroup = candidates.length / limit.groups;
  const groups = Array.from({ length: limit.groups }, (_, g) => {
    const members = candidates.slice(g * perGroup, (g + 1) * perGroup);
    const best = [...members].sort(byRank).slice(0, limit.score === "max" ? 1 : 2);
    const key = best.reduce((sum, member) => sum + member.key, 0);
    const size = best.reduce((sum, member) => sum + member.size, 0);
    return { members, best, key, size, index: g };
  });
  const ranked = [...groups].sort((a, b) => b.key - a.key || a.index - b.index);
  const last = ranked[limit.keep - 1];
  const next = ranked[limit.keep];
  let margin = Number.POSITIVE_INFINITY;
  if (last !== undefined && next !== undefined) {
    const tie = last.best.every((member, i) => sameInputs(member, next.best[i]));
    if (!tie) margin = (last.key - next.key) / Math.max(last.size, next.size);
  }
  return { kept: ranked.slice(0, limit.keep).flatMap((group) => group.members), margin };
}

/**
 * Phi-3.5-MoE's rule as it runs in inference (transformers, modeling_phimoe.py). k times: take the
 * best logit m among the experts not taken yet; its weight is its share of a softmax
 * over those of them whose distance to m, divided by max(|logit|, m), is at most
 * 2 * jitter.
 */
function sparsemixer(
  row: readonly number[],
  topK: number,
  bias: (expert: number) => number,
  jitter: number,
): Choice {
  let left = row.map((logit, expert) => candidateOf(expert, logit, logit, bias(expert)));
  const experts: number[] = [];
  const weights: number[] = [];
  let margin = Number.POSITIVE_INFINITY;
  for (let j = 0; j < topK; j++) {
    const ranked = [...left].sort(byRank);
    const best = ranked[0] as Candidate;
    margin = Math.min(margin, marginOf(ranked, 1));
    const near = left.filter(({ logit }) => {
      const distance = (best.logit - logit) / Math.max(Math.abs(logit), best.logit);
      if (distance > 0) margin = Math.min(margin, Math.abs(distance - 2 * jitter));
      return !(distance > 2 * jitter);
    });
    experts.push(best.expert);
    weights.push(1 / near.reduce((sum, { logit }) => sum + Math.exp(logit - best.logit), 0));
    left = left.filter(({ expert }) => expert !== best.expert);
  }
  return { experts, weights, margin };
}

function candidateOf(expert: number, score: number, logit: number, bias: number): Candidate {
  // A score that is a logit is itself a rounded sum, of terms of the order of 1.
  const size = Math.abs(score) + Math.abs(bias) + (score === logit ? 1 : 0);
  return { expert, key: score + bias, size, logit, bias };
}

/** Best first; ties go to the lower index. */
function byRank(a: Candidate, b: Candidate): number {
  if (a.key > b.key) return -1;
  if (a.key < b.key) return 1;
  return a.expert - b.expert;
}

function marginOf(ranked: readonly Candidate[], topK: number): number {
  let margin = Number.POSITIVE_INFINITY;
  for (let j = 0; j < topK && j + 1 < ranked.length; j++) {
    const a = ranked[j] as Candidate;
    const b = ranked[j + 1] as Candidate;
    if (sameInputs(a, b)) continue;
    const gap = a.key - b.key;
    if (Number.isFinite(gap)) margin = Math.min(margin, gap / Math.max(a.size, b.size));
  }
  return margin;
}

function sameInputs(a: Candidate, b: Candidate | undefined): boolean {
  return a.logit === b?.logit && a.bias === b.bias;
}

function softmax(row: readonly number[]): readonly number[] {
  const most = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const exps = row.map((logit) => Math.exp(logit - most));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((each) => each / sum);
}

export function sigmoid(x: number): number {
  // Without overflow, and with full relative accuracy for large negative x.
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}
