/** kernels/triton/routing/route.py */

import type { KernelCall } from "../call.ts";
import {
  INFINITY_KEY,
  keyed,
  keyOf,
  LOWEST_KEY,
  MINUS_INFINITY_KEY,
  NAN_KEY,
  update,
} from "../numbers.ts";
import { sigmoid } from "./activation.ts";

const SCORING = { softmax: 0, sigmoid: 1, topkSoftmax: 2, topkSigmoid: 3, sparsemixer: 4 };
const BIAS = 1;
const RENORMALIZE = 2;
const TOP2_SUM = 4;
const SETS = 8;
const COUNTS = 16;
const WORD_TOKENS = 32;

const f = Math.fround;

/** Program i: tokens ROWS * i and on. */
export function route(call: KernelCall): void {
  const number = (name: string) => call.number(name);
  const [experts, options] = [number("experts"), number("options")];
  const padded = call.constant("EXPERTS");
  const live = call.pointer("tokens").int(0);
  const covered = call.grid.x * call.constant("ROWS");
  if (options & SETS) {
    // What an earlier launch left of the tokens that programs go through.
    for (let at = 0; at < Math.ceil(covered / WORD_TOKENS) * padded; at++) {
      const word = call.pointer("sets").atomic(at);
      const rest = covered - Math.floor(at / padded) * WORD_TOKENS;
      word[0] = rest >= WORD_TOKENS ? 0 : (word[0] as number) & -(1 << rest);
    }
  }
  const rows = Math.min(covered, number("most_tokens"));
  for (let row = 0; row < rows; row++) {
    const x = new Float32Array(padded).fill(Number.NEGATIVE_INFINITY);
    x.set(call.pointer("logits").load(row * experts, experts));
    if (row >= live) continue;
    for (const expert of routeRow(call, row, x, options, call.flag("PLAIN"))) {
      if (options & SETS) {
        const at = Math.floor(row / WORD_TOKENS) * padded + expert;
        const word = call.pointer("sets").atomic(at);
        word[0] = (word[0] as number) | (1 << (row % WORD_TOKENS));
      }
      if (options & COUNTS) {
        const count = call.pointer("counts").atomic(expert);
        count[0] = (count[0] as number) + 1;
      }
    }
  }
}

/** Writes a row's ids and weights, or that it has none. @returns the ids, best first; none if the row is not sound */
export function routeRow(
  call: KernelCall,
  row: number,
  x: Float32Array,
  options: number,
  plain: boolean,
): readonly number[] {
  const topK = call.number("top_k");
  const { ids, weights, sound } = choose(call, x, options, plain);
  call.pointer("ids").storeInts(row * topK, sound ? ids : ids.map(() => -1));
  call.pointer("weights").store(row * topK, sound ? weights : new Float32Array(topK));
  if (sound) return ids;
  const fault = call.pointer("fault").atomic(0);
  fault[0] = Math.min(fault[0] as number, row);
  return [];
}

function choose(
  call: KernelCall,
  x: Float32Array,
  options: number,
  plain: boolean,
): { ids: number[]; weights: Float32Array; sound: boolean } {
  const number = (name: string) => call.number(name);
  const [experts, topK, scoring] = [number("experts"), number("top_k"), number("scoring")];
  const scale = number("scale");
  const logitKeys = Array.from(x, keyOf);
  const topKey = Math.max(...logitKeys);
  let sound = topKey > MINUS_INFINITY_KEY && topKey < INFINITY_KEY;
  const top = keyed(topKey);
  const exps = x.map((value) => Math.exp(value - top));
  const share = scoring === SCORING.softmax ? 1 / exps.reduce((a, b) => a + b) : 1;

  let keys = logitKeys.slice();
  const byScore = !plain && (options & (BIAS | TOP2_SUM)) !== 0;
  if (byScore) {
    const bias = options & BIAS ? call.pointer("bias").load(0, experts) : undefined;
    keys = Array.from(x, (value, e) => {
      let score = value;
      if (scoring === SCORING.softmax) score = f((exps[e] as number) * share);
      else if (scoring === SCORING.sigmoid) score = f(sigmoid(value));
      return keyOf(f(score + (bias?.[e] ?? 0)));
    });
    sound &&= Math.max(...keys) < NAN_KEY;
  }
  for (let e = experts; e < keys.length; e++) keys[e] = LOWEST_KEY;
  if (!plain && number("groups") > 0) {
    const top2 = (options & TOP2_SUM) !== 0;
    keys = limitGroups(keys, experts, number("groups"), number("keep"), top2);
  }

  const ids: number[] = [];
  const weights = new Float32Array(topK);
  const left = keys.slice();
  for (let pick = 0; pick < topK; pick++) {
    const [best, at] = first(left);
    let value = keyed(byScore ? (logitKeys[at] as number) : best);
    if (!plain && scoring === SCORING.sparsemixer) value = mixer(x, left, value, number("jitter"));
    ids.push(at);
    weights[pick] = value;
    left[at] = LOWEST_KEY;
  }
  if (scoring === SCORING.softmax) {
    update(weights, (value) => Math.exp(value - top) * share);
  } else if (scoring === SCORING.topkSoftmax) {
    const most = Math.max(...weights);
    const each = weights.map((value) => Math.exp(value - most));
    const sum = each.reduce((a, b) => a + b);
    weights.set(each.map((value) => value / sum));
  } else if (scoring !== SCORING.sparsemixer) {
    update(weights, (value) => sigmoid(value));
  }
  if (options & RENORMALIZE) {
    const sum = weights.reduce((a, b) => a + b) + 1e-20;
    update(weights, (value) => value / sum);
  }
  update(weights, (value) => value * scale);
  sound &&= weights.every(Number.isFinite);
  return { ids, weights, sound };
}

/** The largest key, and the first column that has it. */
function first(keys: readonly number[]): [best: number, at: number] {
  let at = 0;
  for (let e = 1; e < keys.length; e++) if ((keys[e] as number) > (keys[at] as number)) at = e;
  return [keys[at] as number, at];
}

/** Phi-3.5-MoE's weight: a softmax over what is near enough to the largest. */
function mixer(x: Float32Array, left: readonly number[], value: number, jitter: number): number {
  let sum = 0;
  x.forEach((each, e) => {
    const distance = f(f(value - each) / Math.max(Math.abs(each), value));
    if (left[e] === LOWEST_KEY || distance > 2 * jitter) return;
    sum += Math.exp(each - value);
  });
  return 1 / sum;
}

function limitGroups(
  keys: readonly number[],
  experts: number,
  groups: number,
  keep: number,
  top2: boolean,
): number[] {
  const size = Math.floor(experts / groups);
  const groupOf = (e: number) => (e < experts ? Math.floor(e / size) : groups);
  const scores = Array.from({ length: groups }, (_, g) => {
    const [best, second = LOWEST_KEY] = keys
      .filter((_, e) => groupOf(e) === g)
      .sort((a, b) => b - a) as [number, number?];
    if (!top2) return best;
    return keyOf(f(keyed(best) + keyed(Math.max(second, MINUS_INFINITY_KEY))));
  });
  const kept = new Set<number>();
  for (let i = 0; i < keep; i++) {
    const [, at] = first(scores);
    kept.add(at);
    scores[at] = LOWEST_KEY;
  }
  return keys.map((key, e) => (kept.has(groupOf(e)) ? key : LOWEST_KEY));
}
