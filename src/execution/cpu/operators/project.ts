/**
 * `project` on the CPU: its arguments, and how a product is cut into tiles.
 *
 * A tile is a row block (rows of one matrix, no more than the kernels take at
 * once) by a run of panels (outputs). Tiles are cut when the operator opens, from
 * the rows that there are: a decode step gets many runs of panels for its one row,
 * so that all workers stream weights; a large batch gets tiles that reuse their
 * rows over several panels. Neither changes a result: the kernels sum a row in the
 * same order whatever tile it is in.
 *
 * Tiles of one expert are neighbours, run of panels by run of panels, and block by
 * block within a run, so that a panel comes from memory once and from cache for
 * the expert's other blocks.
 */

import { shown } from "../../../errors/wording.ts";
import type { Activation, BucketRows, ProjectOperator } from "../../operators.ts";
import type { ArgumentWriter } from "../arguments.ts";
import {
  BYTES_PER_NANOSECOND,
  COST_UNIT_NANOSECONDS,
  MULTIPLY_ADDS_PER_NANOSECOND,
  TILE_NANOSECONDS,
  type TileContext,
  type TileOperator,
} from "../context.ts";
import { ACTIVATION_CODE, type Flag } from "../kernels.ts";
import { ARGUMENTS } from "../program.ts";
import {
  BLOCK_COUNT,
  BLOCK_EXPERT,
  BLOCK_INDEX,
  BLOCK_ROW,
  BLOCK_ROWS,
  BLOCK_WORDS,
  LANE_BLOCKS,
  LANE_FIRST,
  LANE_ROWS,
  LANE_WORDS,
  workListsOf,
} from "./bucket.ts";

const ALPHA = ARGUMENTS;
const LIMIT = ARGUMENTS + 2;
const INPUT = ARGUMENTS + 4;
const OUTPUT = ARGUMENTS + 5;
const INPUTS = ARGUMENTS + 6;
const OUTPUTS = ARGUMENTS + 7;
/** Of the first matrix that the operator may use. */
const WEIGHTS = ARGUMENTS + 8;
const MATRIX_BYTES = ARGUMENTS + 9;
const DTYPE = ARGUMENTS + 10;
const GATED = ARGUMENTS + 11;
/** Of the first matrix, or 0. */
const BIAS = ARGUMENTS + 12;
const BIAS_BYTES = ARGUMENTS + 13;
const ACTIVATION = ARGUMENTS + 14;
const PANELS = ARGUMENTS + 15;
const PANEL_BYTES = ARGUMENTS + 16;
const TOKENS = ARGUMENTS + 17;
/** The most rows there may be: tokens, or slots. */
const MOST_ROWS = ARGUMENTS + 18;
/** Address of the work lists, or 0: the operator takes all rows. */
const LIST = ARGUMENTS + 19;
const LANE = ARGUMENTS + 20;
const ORDER = ARGUMENTS + 21;
/** topK where input rows are gathered by token, else 0. */
const GATHER = ARGUMENTS + 22;
const SCALE = ARGUMENTS + 23;
const BUSY = ARGUMENTS + 24;
// Written by `open`.
const PER_TILE = ARGUMENTS + 25;
const RUNS = ARGUMENTS + 26;
const BATCH = ARGUMENTS + 27;
const BLOCKS = ARGUMENTS + 28;

/** Weights that a panel takes of every input. */
const PANEL_COLUMNS = 8;

/**
 * Panels of a tile with several rows. The kernels rearrange a tile's rows once for up
 * to 32 panels; with 8 instead, measured, a product takes a tenth longer, with 1
 * twice as long.
 */
const MOST_PANELS = 32;
const LEAST_PANELS = 8;

/** Tiles of an operator for each worker, at least, where there are panels enough: the last ones even out the workers. */
const TILES_PER_WORKER = 8;

const ACTIVATIONS = Object.keys(ACTIVATION_CODE) as Activation["kind"][];

export function writeProject(operator: ProjectOperator, to: ArgumentWriter): void {
  const { rows, activation } = operator;
  const projection = to.projection("projection", operator.projection);
  const { spec, layout } = projection;
  const { inputs, outputs, gated } = spec;
  writeActivation(activation, gated, to);
  const from = to.oneOf("rows.from", rows.from, ["all", "bucket"]);
  const matrix =
    rows.from === "all" ? to.integer("rows.matrix", rows.matrix, 0, spec.count - 1) : 0;
  to.int(INPUTS, inputs);
  to.int(OUTPUTS, outputs);
  to.int(WEIGHTS, projection.address + matrix * layout.matrixBytes);
  to.int(MATRIX_BYTES, layout.matrixBytes);
  to.int(DTYPE, projection.dtypeCode);
  to.int(GATED, gated ? 1 : 0);
  if (spec.bias) {
    to.int(BIAS, projection.address + layout.biasOffset + matrix * layout.biasBytes);
    to.int(BIAS_BYTES, layout.biasBytes);
  }
  to.int(PANELS, projection.panels);
  to.int(PANEL_BYTES, inputs * PANEL_COLUMNS * (spec.dtype === "float32" ? 4 : 2));

  let inputRows: number;
  let outputRows: number;
  if (from === "all" && rows.from === "all") {
    const mostTokens = to.integer("rows.mostTokens", rows.mostTokens, 1);
    to.int(TOKENS, to.input("rows.tokens", rows.tokens, 1).address);
    to.int(MOST_ROWS, mostTokens);
    inputRows = mostTokens;
    outputRows = mostTokens;
  } else {
    const bucketRows = rows as BucketRows;
    outputRows = writeBucketRows(bucketRows, spec.count, to);
    inputRows = bucketRows.gather ? bucketRows.mostTokens : outputRows;
  }
  to.int(INPUT, to.input("input", operator.input, inputRows * inputs).address);
  to.int(OUTPUT, to.output("output", operator.output, outputRows * outputs).address);
}

function writeActivation(activation: Activation, gated: boolean, to: ArgumentWriter): void {
  const kind = to.oneOf("activation.kind", activation.kind, ACTIVATIONS);
  to.int(ACTIVATION, ACTIVATION_CODE[kind]);
  if (activation.kind !== "swiglu-clamped") return;
  if (!gated) {
    to.fail("swiglu-clamped joins a gate and a value", "Use a gated projection.");
  }
  to.float(ALPHA, to.finite("activation.alpha", activation.alpha));
  to.float(LIMIT, to.finite("activation.limit", activation.limit));
}

/** Returns how many rows the buckets may have. */
function writeBucketRows(rows: BucketRows, experts: number, to: ArgumentWriter): number {
  const topK = to.integer("rows.topK", rows.topK, 1);
  const lane = to.integer("rows.lane", rows.lane, 0);
  const slots = to.integer("rows.mostTokens", rows.mostTokens, 1) * topK;
  const offsets = to.input("rows.buckets.offsets", rows.buckets.offsets, experts + 1);
  const order = to.input("rows.buckets.order", rows.buckets.order, slots);
  to.input("rows.buckets.inverse", rows.buckets.inverse, slots);
  const lists = workListsOf(offsets);
  if (lists === undefined) {
    to.fail(
      "rows.buckets have no work lists yet",
      "Enqueue the bucket operator that fills them first.",
    );
  }
  if (lists.experts !== experts) {
    to.fail(
      `the buckets are of ${lists.experts} experts and the projection has ${experts} matrices`,
      "Use a projection with one matrix for each expert.",
    );
  }
  // Blocks of longer lists would reach beyond the buffers that were checked for fewer rows.
  for (const name of ["lanes", "topK", "mostTokens"] as const) {
    if (rows[name] === lists[name]) continue;
    to.fail(
      `rows.${name} is ${shown(rows[name])} and was ${lists[name]} in the bucket operator`,
      "Use the same number in both.",
    );
  }
  if (lane >= lists.lanes) {
    to.fail(`rows.lane is ${lane}`, `The buckets have ${lists.lanes} lanes, from 0.`);
  }
  to.int(LIST, lists.buffer.address);
  to.int(LANE, lane);
  to.int(MOST_ROWS, slots);
  to.int(ORDER, order.address);
  to.int(GATHER, rows.gather ? topK : 0);
  to.int(SCALE, to.optionalInput("rows.inputScale", rows.inputScale, slots));
  to.int(BUSY, to.optionalOutput("rows.busy", rows.busy, experts));
  return slots;
}

/** Cuts `blocks` row blocks of `rows` rows on average into tiles; returns how many. */
function cut(context: TileContext, operator: number, blocks: number, rows: number): number {
  if (blocks === 0) return 0;
  const { i32, workers } = context;
  const panels = i32[operator + PANELS] as number;
  const multiplyAdds = (rows / blocks) * PANEL_COLUMNS * (i32[operator + INPUTS] as number);
  const nanoseconds = Math.max(
    (i32[operator + PANEL_BYTES] as number) / BYTES_PER_NANOSECOND,
    multiplyAdds / MULTIPLY_ADDS_PER_NANOSECOND,
  );
  const single = rows === blocks;
  const inTime = Math.max(Math.ceil(TILE_NANOSECONDS / nanoseconds), single ? 1 : MOST_PANELS);
  const inBalance = Math.floor((panels * blocks) / (workers * TILES_PER_WORKER));
  const least = single ? 1 : LEAST_PANELS;
  const wanted = Math.min(panels, Math.max(least, Math.min(inTime, inBalance)));
  const runs = Math.ceil(panels / wanted);
  const perTile = Math.ceil(panels / runs);
  i32[operator + PER_TILE] = perTile;
  i32[operator + RUNS] = runs;
  context.estimate(operator, nanoseconds * perTile);
  return blocks * runs;
}

export const project: TileOperator = {
  open(context, operator) {
    const { i32, kernels } = context;
    const list = (i32[operator + LIST] as number) >>> 2;
    if (list !== 0) {
      const lane = list + (i32[operator + LANE] as number) * LANE_WORDS;
      return cut(
        context,
        operator,
        i32[lane + LANE_BLOCKS] as number,
        i32[lane + LANE_ROWS] as number,
      );
    }
    const batch = context.tokens(
      operator,
      i32[operator + TOKENS] as number,
      i32[operator + MOST_ROWS] as number,
    );
    const blocks = Math.ceil(batch / kernels.maxTileRows());
    i32[operator + BATCH] = batch;
    i32[operator + BLOCKS] = blocks;
    return cut(context, operator, blocks, batch);
  },

  run(context, operator, tile) {
    const { i32 } = context;
    const list = (i32[operator + LIST] as number) >>> 2;
    if (list === 0) {
      const batch = i32[operator + BATCH] as number;
      const blocks = i32[operator + BLOCKS] as number;
      const block = tile % blocks;
      const first = Math.floor((batch * block) / blocks);
      const rows = Math.floor((batch * (block + 1)) / blocks) - first;
      multiply(context, operator, 0, first, rows, Math.floor(tile / blocks));
      return;
    }
    const lane = list + (i32[operator + LANE] as number) * LANE_WORDS;
    const blocks = list + (i32[lane + LANE_FIRST] as number);
    const runs = i32[operator + RUNS] as number;
    // Any block of the tile's expert, then the expert's first, then the tile's own.
    const some = Math.floor(tile / runs);
    const expertBlocks = i32[blocks + some * BLOCK_WORDS + BLOCK_COUNT] as number;
    const first = some - (i32[blocks + some * BLOCK_WORDS + BLOCK_INDEX] as number);
    const within = tile - first * runs;
    const block = blocks + (first + (within % expertBlocks)) * BLOCK_WORDS;
    const expert = i32[block + BLOCK_EXPERT] as number;
    const busy = (i32[operator + BUSY] as number) >>> 2;
    const started = busy === 0 ? 0 : performance.now();
    multiply(
      context,
      operator,
      expert,
      i32[block + BLOCK_ROW] as number,
      i32[block + BLOCK_ROWS] as number,
      Math.floor(within / expertBlocks),
    );
    if (busy === 0) return;
    const nanoseconds = (performance.now() - started) * 1e6;
    Atomics.add(i32, busy + expert, Math.round(nanoseconds / COST_UNIT_NANOSECONDS));
  },
};

/** One tile: rows `first` to `first + rows - 1` of the output, by run number `run` of panels. */
function multiply(
  context: TileContext,
  operator: number,
  matrix: number,
  first: number,
  rows: number,
  run: number,
): void {
  const { i32, f64, kernels, scratch } = context;
  const inputs = i32[operator + INPUTS] as number;
  const outputs = i32[operator + OUTPUTS] as number;
  const gather = i32[operator + GATHER] as number;
  const scale = i32[operator + SCALE] as number;
  const bias = i32[operator + BIAS] as number;
  const perTile = i32[operator + PER_TILE] as number;
  const firstPanel = run * perTile;
  const order = i32[operator + ORDER] as number;
  const slots = i32[operator + MOST_ROWS] as number;
  const bySlot = gather !== 0 || scale !== 0;
  if (bySlot && !context.within("slot", operator, order, first, rows, 0, slots)) return;
  kernels.project(
    (i32[operator + INPUT] as number) + (gather === 0 ? first * inputs * 4 : 0),
    inputs,
    bySlot ? order + first * 4 : 0,
    gather,
    rows,
    (i32[operator + WEIGHTS] as number) + matrix * ((i32[operator + MATRIX_BYTES] as number) >>> 0),
    i32[operator + DTYPE] as number,
    inputs,
    outputs,
    i32[operator + GATED] as Flag,
    firstPanel,
    Math.min(perTile, (i32[operator + PANELS] as number) - firstPanel),
    bias === 0 ? 0 : bias + matrix * ((i32[operator + BIAS_BYTES] as number) >>> 0),
    scale,
    i32[operator + ACTIVATION] as number,
    f64[(operator + ALPHA) >> 1] as number,
    f64[(operator + LIMIT) >> 1] as number,
    (i32[operator + OUTPUT] as number) + first * outputs * 4,
    outputs,
    scratch,
  );
}
