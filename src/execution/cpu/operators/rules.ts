/**
 * The routing rules, for one row of logits: scores, selection, weights. Plain
 * float64 arithmetic with the library's exp, so that the only rounding that shows
 * is the last one, to float32.
 *
 * The rules are those of the models named at each step, checked against their
 * reference implementations in transformers. No memory layout and no threads here.
 */

import type { GroupLimit, RoutingRule } from "../../operators.ts";

/** A routing rule in the form that workers read. */
export interface RowRule {
  readonly scoring: RoutingRule["scoring"];
  readonly experts: number;
  readonly topK: number;
  readonly renormalize: boolean;
  readonly scale: number;
  /** 0: no group limit. */
  readonly groups: number;
  readonly keep: number;
  readonly groupScore: GroupLimit["score"];
  readonly jitter: number;
}

/** Keeps a sum of weights that are all zero from dividing by zero (DeepSeek-V3). */
const RENORMALIZE_EPSILON = 1e-20;

/** Routes rows one at a time; the arrays are the scratch memory and the result of the last one. */
export class RowRouter {
  /** Fill with the row's logits before calling `route`. */
  logits = new Float64Array(0);
  /** Best first. */
  readonly ids: number[] = [];
  readonly weights: number[] = [];
  #scores = new Float64Array(0);
  #selection = new Float64Array(0);
  #excluded = new Uint8Array(0);
  #groupScores = new Float64Array(0);
  readonly #bestScores: number[] = [];
  /** Groups that are kept, or the expert that was picked. */
  readonly #picked: number[] = [];

  /** Makes room for rows of that many experts. */
  reserve(experts: number): void {
    if (this.logits.length >= experts) return;
    this.logits = new Float64Array(experts);
    this.#scores = new Float64Array(experts);
    this.#selection = new Float64Array(experts);
    this.#excluded = new Uint8Array(experts);
    this.#groupScores = new Float64Array(experts);
  }

  /**
   * Fills `ids` and `weights` from `logits`.
   *
   * @param bias added to the scores for selection; element i is bias[offset + i]
   * @returns false if the row gives no finite weights
   */
  route(rule: RowRule, bias?: Float32Array, offset = 0): boolean {
    if (!this.#isSound(rule.experts)) return false;
    this.#score(rule);
    if (!this.#bias(rule.experts, bias, offset)) return false;
    this.#excluded.fill(0, 0, rule.experts);
    if (rule.scoring === "sparsemixer") {
      this.#sparsemixer(rule);
    } else {
      if (rule.groups > 0) this.#limitGroups(rule);
      this.#best(this.#selection, rule.experts, rule.topK, this.ids);
      this.#weigh(rule);
    }
    for (let i = 0; i < rule.topK; i++) {
      const weight = (this.weights[i] as number) * rule.scale;
      this.weights[i] = weight;
      if (!Number.isFinite(Math.fround(weight))) return false;
    }
    return true;
  }

  /** No NaN, no +Infinity, and not -Infinity throughout (which masks an expert). */
  #isSound(experts: number): boolean {
    let finite = false;
    for (let i = 0; i < experts; i++) {
      const logit = this.logits[i] as number;
      if (Number.isFinite(logit)) finite = true;
      else if (logit !== Number.NEGATIVE_INFINITY) return false;
    }
    return finite;
  }

  #score({ scoring, experts }: RowRule): void {
    const logits = this.logits;
    const scores = this.#scores;
    if (scoring === "softmax") {
      softmax(logits, scores, experts);
    } else if (scoring === "sigmoid") {
      for (let i = 0; i < experts; i++) scores[i] = sigmoid(logits[i] as number);
    } else {
      for (let i = 0; i < experts; i++) scores[i] = logits[i] as number;
    }
  }

  /** Scores to what selection compares; returns false if that is not a number. */
  #bias(experts: number, bias: Float32Array | undefined, offset: number): boolean {
    for (let i = 0; i < experts; i++) {
      const score = this.#scores[i] as number;
      const biased = bias === undefined ? score : score + (bias[offset + i] as number);
      if (Number.isNaN(biased)) return false;
      this.#selection[i] = biased;
    }
    return true;
  }

  /** Excludes all experts outside the best groups (DeepSeek-V2 and V3). */
  #limitGroups({ experts, groups, keep, groupScore }: RowRule): void {
    const size = experts / groups;
    for (let g = 0; g < groups; g++) {
      let first = Number.NEGATIVE_INFINITY;
      let second = Number.NEGATIVE_INFINITY;
      for (let i = g * size; i < (g + 1) * size; i++) {
        const score = this.#selection[i] as number;
        if (score > first) {
          second = first;
          first = score;
        } else if (score > second) second = score;
      }
      this.#groupScores[g] = groupScore === "max" ? first : first + second;
    }
    this.#best(this.#groupScores, groups, keep, this.#picked);
    this.#excluded.fill(1, 0, experts);
    for (let i = 0; i < keep; i++) {
      const group = this.#picked[i] as number;
      this.#excluded.fill(0, group * size, (group + 1) * size);
    }
  }

  /** Indices of the `keep` best of `count` scores that are not excluded, best first; ties in order of index. */
  #best(scores: Float64Array, count: number, keep: number, indices: number[]): void {
    const best = this.#bestScores;
    let found = 0;
    for (let i = 0; i < count; i++) {
      if (this.#excluded[i] !== 0) continue;
      const score = scores[i] as number;
      if (found === keep && !(score > (best[keep - 1] as number))) continue;
      let at = found < keep ? found++ : keep - 1;
      for (; at > 0 && score > (best[at - 1] as number); at--) {
        best[at] = best[at - 1] as number;
        indices[at] = indices[at - 1] as number;
      }
      best[at] = score;
      indices[at] = i;
    }
  }

  #weigh({ scoring, topK, renormalize }: RowRule): void {
    const { ids, weights } = this;
    for (let i = 0; i < topK; i++) weights[i] = this.#scores[ids[i] as number] as number;
    if (scoring === "topk-sigmoid") {
      for (let i = 0; i < topK; i++) weights[i] = sigmoid(weights[i] as number);
    } else if (scoring === "topk-softmax") {
      softmax(weights, weights, topK);
    } else if (renormalize) {
      let sum = RENORMALIZE_EPSILON;
      for (let i = 0; i < topK; i++) sum += weights[i] as number;
      for (let i = 0; i < topK; i++) weights[i] = (weights[i] as number) / sum;
    }
  }

  /** Phi-3.5-MoE (arXiv 2409.12136), as it runs outside training. */
  #sparsemixer({ experts, topK, jitter }: RowRule): void {
    const { logits, ids, weights } = this;
    for (let pick = 0; pick < topK; pick++) {
      this.#best(this.#selection, experts, 1, this.#picked);
      const best = this.#picked[0] as number;
      const most = logits[best] as number;
      let sum = 0;
      for (let i = 0; i < experts; i++) {
        if (this.#excluded[i] !== 0) continue;
        const logit = logits[i] as number;
        const distance = (most - logit) / Math.max(Math.abs(logit), most);
        if (!(distance > 2 * jitter)) sum += Math.exp(logit - most);
      }
      ids[pick] = best;
      weights[pick] = 1 / sum;
      this.#excluded[best] = 1;
    }
  }
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

/** Softmax of the first `count` values, added up in order; `to` may be `from`. */
function softmax(from: ArrayLike<number>, to: { [index: number]: number }, count: number): void {
  let most = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < count; i++) most = Math.max(most, from[i] as number);
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const share = Math.exp((from[i] as number) - most);
    to[i] = share;
    sum += share;
  }
  for (let i = 0; i < count; i++) to[i] = (to[i] as number) / sum;
}
