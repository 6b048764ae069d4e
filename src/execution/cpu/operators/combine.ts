/** `combine` on the CPU: its arguments, and its tiles, which are runs of tokens. */

import type { CombineOperator } from "../../operators.ts";
import type { ArgumentWriter } from "../arguments.ts";
import { BYTES_PER_NANOSECOND, TILE_NANOSECONDS, type TileOperator } from "../context.ts";
import type { Flag } from "../kernels.ts";
import { ARGUMENTS } from "../program.ts";

const TOKENS = ARGUMENTS;
const MOST_TOKENS = ARGUMENTS + 1;
const TOP_K = ARGUMENTS + 2;
const WIDTH = ARGUMENTS + 3;
const CONCAT = ARGUMENTS + 4;
const ROWS = ARGUMENTS + 5;
const INVERSE = ARGUMENTS + 6;
const WEIGHTS = ARGUMENTS + 7;
const SHARED = ARGUMENTS + 8;
const SHARED_SCALE = ARGUMENTS + 9;
const RESIDUAL = ARGUMENTS + 10;
const OUTPUT = ARGUMENTS + 11;
/** Written by `open`: T, and how many of them make a tile. */
const BATCH = ARGUMENTS + 12;
const PER_TILE = ARGUMENTS + 13;

const MODES = ["sum", "concat"] as const;

export function writeCombine(operator: CombineOperator, to: ArgumentWriter): void {
  const mode = to.oneOf("mode", operator.mode, MODES);
  const topK = to.integer("topK", operator.topK, 1);
  const width = to.integer("width", operator.width, 1);
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1);
  to.float32("rowType", operator.rowType);
  to.float32("outputType", operator.outputType);
  if (operator.sharedScale !== undefined && operator.shared === undefined) {
    to.fail("sharedScale is set without shared", "Set both, or neither.");
  }
  for (const name of ["shared", "residual"] as const) {
    if (mode === "concat" && operator[name] !== undefined) {
      to.fail(`${name} is set with concat`, "Only sum adds it.");
    }
  }
  const tokens = to.input("tokens", operator.tokens, 1);
  const slots = mostTokens * topK;
  const inverse = to.input("inverse", operator.inverse, slots);
  const outputWidth = mode === "concat" ? topK * width : width;
  const output = to.output("output", operator.output, mostTokens * outputWidth);
  to.int(TOKENS, tokens.address);
  to.int(MOST_TOKENS, mostTokens);
  to.int(TOP_K, topK);
  to.int(WIDTH, width);
  to.int(CONCAT, mode === "concat" ? 1 : 0);
  to.int(ROWS, to.input("rows", operator.rows, slots * width).address);
  to.int(INVERSE, inverse.address);
  to.int(WEIGHTS, to.optionalInput("weights", operator.weights, slots));
  to.int(SHARED, to.optionalInput("shared", operator.shared, mostTokens * width));
  to.int(SHARED_SCALE, to.optionalInput("sharedScale", operator.sharedScale, mostTokens));
  to.int(RESIDUAL, to.optionalInput("residual", operator.residual, mostTokens * width));
  to.int(OUTPUT, output.address);
}

export const combine: TileOperator = {
  open(context, operator) {
    const { i32, workers } = context;
    const batch = context.tokens(
      operator,
      i32[operator + TOKENS] as number,
      i32[operator + MOST_TOKENS] as number,
    );
    // Reads the token's rows, the shared row and the residual, writes one.
    const bytes = ((i32[operator + TOP_K] as number) + 3) * (i32[operator + WIDTH] as number) * 4;
    const perTile = Math.max(
      1,
      Math.min(
        Math.floor((TILE_NANOSECONDS * BYTES_PER_NANOSECOND) / bytes),
        Math.ceil(batch / workers),
      ),
    );
    i32[operator + BATCH] = batch;
    i32[operator + PER_TILE] = perTile;
    context.estimate(operator, (perTile * bytes) / BYTES_PER_NANOSECOND);
    return Math.ceil(batch / perTile);
  },

  run(context, operator, tile) {
    const { i32, kernels } = context;
    const perTile = i32[operator + PER_TILE] as number;
    const topK = i32[operator + TOP_K] as number;
    const inverse = i32[operator + INVERSE] as number;
    const slots = (i32[operator + MOST_TOKENS] as number) * topK;
    const first = tile * perTile;
    const count = Math.min(perTile, (i32[operator + BATCH] as number) - first);
    // -1 stands for a slot that was dropped.
    if (!context.within("row", operator, inverse, first * topK, count * topK, -1, slots)) return;
    kernels.combine(
      first,
      count,
      topK,
      i32[operator + WIDTH] as number,
      i32[operator + ROWS] as number,
      inverse,
      i32[operator + WEIGHTS] as number,
      i32[operator + SHARED] as number,
      i32[operator + SHARED_SCALE] as number,
      i32[operator + RESIDUAL] as number,
      i32[operator + OUTPUT] as number,
      i32[operator + CONCAT] as Flag,
    );
  },
};
