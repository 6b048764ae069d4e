/**
 * `route` on the CPU: its arguments, and its tiles of ROWS_PER_TILE tokens. What is
 * done to one row is in rules.ts.
 */

import type { RouteOperator } from "../../operators.ts";
import { checkRule, GROUP_SCORES, SCORINGS } from "../../routing-rule.ts";
import type { ArgumentWriter } from "../arguments.ts";
import type { TileContext, TileOperator } from "../context.ts";
import { ARGUMENTS } from "../program.ts";
import { RowRouter, type RowRule } from "./rules.ts";

const SCALE = ARGUMENTS;
const JITTER = ARGUMENTS + 2;
const TOKENS = ARGUMENTS + 4;
const MOST_TOKENS = ARGUMENTS + 5;
const LOGITS = ARGUMENTS + 6;
const BIAS = ARGUMENTS + 7;
const IDS = ARGUMENTS + 8;
const WEIGHTS = ARGUMENTS + 9;
const COUNTS = ARGUMENTS + 10;
const EXPERTS = ARGUMENTS + 11;
const TOP_K = ARGUMENTS + 12;
const SCORING = ARGUMENTS + 13;
const RENORMALIZE = ARGUMENTS + 14;
const GROUPS = ARGUMENTS + 15;
const KEEP = ARGUMENTS + 16;
const GROUP_SCORE = ARGUMENTS + 17;
/** Written by `open`: T. */
const ROWS = ARGUMENTS + 18;

const ROWS_PER_TILE = 64;

const LOGITS_TYPES = ["float32"] as const;

/** Time of an exponential and a comparison for one expert of one token, for sharing out the workers. */
const NANOSECONDS_PER_SCORE = 15;

export function writeRoute(operator: RouteOperator, to: ArgumentWriter): void {
  const experts = to.integer("experts", operator.experts, 1);
  const topK = to.integer("topK", operator.topK, 1, experts);
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1);
  writeRule(operator, experts, topK, to);
  to.oneOf("logitsType", operator.logitsType ?? "float32", LOGITS_TYPES);
  const tokens = to.input("tokens", operator.tokens, 1);
  const logits = to.input("logits", operator.logits, mostTokens * experts);
  const ids = to.output("ids", operator.ids, mostTokens * topK);
  const weights = to.output("weights", operator.weights, mostTokens * topK);
  to.int(TOKENS, tokens.address);
  to.int(LOGITS, logits.address);
  to.int(BIAS, to.optionalInput("selectionBias", operator.selectionBias, experts));
  to.int(IDS, ids.address);
  to.int(WEIGHTS, weights.address);
  to.int(COUNTS, to.output("counts", operator.counts, experts).address);
  to.int(EXPERTS, experts);
  to.int(TOP_K, topK);
  to.int(MOST_TOKENS, mostTokens);
}

function writeRule(
  { rule }: RouteOperator,
  experts: number,
  topK: number,
  to: ArgumentWriter,
): void {
  const { scoring, scale, groupLimit, jitter } = checkRule(rule, experts, topK, to);
  if (groupLimit !== undefined) {
    to.int(GROUPS, groupLimit.groups);
    to.int(KEEP, groupLimit.keep);
    to.int(GROUP_SCORE, GROUP_SCORES.indexOf(groupLimit.score));
  }
  to.float(JITTER, jitter);
  to.int(SCORING, SCORINGS.indexOf(scoring));
  to.int(RENORMALIZE, rule.renormalize ? 1 : 0);
  to.float(SCALE, scale);
}

/** Scratch memory of this worker; a worker runs one tile at a time. */
const router = new RowRouter();
let tileCounts = new Int32Array(0);

function readRule({ i32, f64 }: TileContext, operator: number): RowRule {
  return {
    scoring: SCORINGS[i32[operator + SCORING] as number] as RowRule["scoring"],
    experts: i32[operator + EXPERTS] as number,
    topK: i32[operator + TOP_K] as number,
    renormalize: i32[operator + RENORMALIZE] === 1,
    scale: f64[(operator + SCALE) >> 1] as number,
    groups: i32[operator + GROUPS] as number,
    keep: i32[operator + KEEP] as number,
    groupScore: GROUP_SCORES[i32[operator + GROUP_SCORE] as number] as RowRule["groupScore"],
    jitter: f64[(operator + JITTER) >> 1] as number,
  };
}

export const route: TileOperator = {
  open(context, operator) {
    const { i32 } = context;
    const experts = i32[operator + EXPERTS] as number;
    const counts = (i32[operator + COUNTS] as number) >>> 2;
    i32.fill(0, counts, counts + experts);
    const rows = context.tokens(
      operator,
      i32[operator + TOKENS] as number,
      i32[operator + MOST_TOKENS] as number,
    );
    i32[operator + ROWS] = rows;
    context.estimate(operator, Math.min(rows, ROWS_PER_TILE) * experts * NANOSECONDS_PER_SCORE);
    return Math.ceil(rows / ROWS_PER_TILE);
  },

  run(context, operator, tile) {
    const { i32, f32 } = context;
    const rule = readRule(context, operator);
    const { experts, topK } = rule;
    const logits = (i32[operator + LOGITS] as number) >>> 2;
    const bias = (i32[operator + BIAS] as number) >>> 2;
    const ids = (i32[operator + IDS] as number) >>> 2;
    const weights = (i32[operator + WEIGHTS] as number) >>> 2;
    const counts = (i32[operator + COUNTS] as number) >>> 2;
    const first = tile * ROWS_PER_TILE;
    const end = Math.min(first + ROWS_PER_TILE, i32[operator + ROWS] as number);

    router.reserve(experts);
    if (tileCounts.length < experts) tileCounts = new Int32Array(experts);
    tileCounts.fill(0, 0, experts);
    for (let row = first; row < end; row++) {
      const from = logits + row * experts;
      for (let i = 0; i < experts; i++) router.logits[i] = f32[from + i] as number;
      if (!router.route(rule, bias === 0 ? undefined : f32, bias)) {
        context.faultRow(row);
        continue;
      }
      for (let i = 0; i < topK; i++) {
        const id = router.ids[i] as number;
        i32[ids + row * topK + i] = id;
        f32[weights + row * topK + i] = router.weights[i] as number;
        tileCounts[id] = (tileCounts[id] as number) + 1;
      }
    }
    for (let i = 0; i < experts; i++) {
      const count = tileCounts[i] as number;
      if (count > 0) Atomics.add(i32, counts + i, count);
    }
  },
};
