/**
 * Two services of the device that run on the workers like any operator: packing a
 * staged part of a weight matrix, and filling weights with reproducible noise.
 */

import { MAX_GROUPS, type ProjectionPart } from "../../device.ts";
import { BYTES_PER_NANOSECOND, TILE_NANOSECONDS, type TileOperator } from "../context.ts";
import { type Flag, PART_CODE } from "../kernels.ts";
import { ARGUMENTS, ArgumentWords, OPERATOR_KIND, type ProgramNode } from "../program.ts";
import type { CpuProjection, StagedLayout } from "../projection.ts";

const SCALE = ARGUMENTS;
const TARGET = ARGUMENTS + 2;
const DTYPE = ARGUMENTS + 3;
const OUTPUTS = ARGUMENTS + 4;
const INPUTS = ARGUMENTS + 5;
const GATED = ARGUMENTS + 6;
const PART = ARGUMENTS + 7;
const FIRST = ARGUMENTS + 8;
const COUNT = ARGUMENTS + 9;
const PER_TILE = ARGUMENTS + 10;
const SOURCE = ARGUMENTS + 11;
const ROW_STRIDE = ARGUMENTS + 12;
const COLUMN_STRIDE = ARGUMENTS + 13;
const SEED = ARGUMENTS + 14;
const STEP = ARGUMENTS + 15;

/** Any group would do: services run in programs of their own, outside all budgets. */
const GROUP = MAX_GROUPS - 1;

/** Packing reads and writes every byte once, with some shuffling: half of what a plain stream does. */
const PACK_BYTES_PER_NANOSECOND = BYTES_PER_NANOSECOND / 2;

const FILL_ELEMENTS_PER_TILE = 65536;
const FILL_NANOSECONDS_PER_ELEMENT = 1;

function node(kind: number, words: Int32Array): ProgramNode {
  return { kind, group: GROUP, priority: 0, predecessors: [], words };
}

/** Packs outputs `first` to `first + count - 1` of a matrix from where they are staged. */
export function packNode(
  projection: CpuProjection,
  index: number,
  part: ProjectionPart,
  first: number,
  count: number,
  source: number,
  staged: StagedLayout,
): ProgramNode {
  const { spec, layout, panelOutputs } = projection;
  const elementBytes = spec.dtype === "float32" ? 4 : 2;
  const panelBytes = panelOutputs * spec.inputs * elementBytes;
  const panels = Math.ceil((TILE_NANOSECONDS * PACK_BYTES_PER_NANOSECOND) / panelBytes);
  const to = new ArgumentWords();
  to.int(TARGET, projection.address + index * layout.matrixBytes);
  to.int(DTYPE, projection.dtypeCode);
  to.int(OUTPUTS, spec.outputs);
  to.int(INPUTS, spec.inputs);
  to.int(GATED, spec.gated ? 1 : 0);
  to.int(PART, PART_CODE[part]);
  to.int(FIRST, first);
  to.int(COUNT, count);
  to.int(PER_TILE, panels * panelOutputs);
  to.int(SOURCE, source + staged.origin * elementBytes);
  to.int(ROW_STRIDE, staged.rowStride);
  to.int(COLUMN_STRIDE, staged.columnStride);
  to.int(STEP, staged.rowStride * elementBytes);
  return node(OPERATOR_KIND.pack, to.words);
}

/** Fills all matrices of a projection, padding included. */
export function fillNode(projection: CpuProjection, seed: number, scale: number): ProgramNode {
  const { spec, layout, address } = projection;
  const elementBytes = spec.dtype === "float32" ? 4 : 2;
  const to = new ArgumentWords();
  to.float(SCALE, scale);
  to.int(TARGET, address);
  to.int(DTYPE, projection.dtypeCode);
  to.int(COUNT, layout.biasOffset / elementBytes);
  to.int(STEP, elementBytes);
  to.int(SEED, seed);
  return node(OPERATOR_KIND.fill, to.words);
}

export const pack: TileOperator = {
  open(context, operator) {
    const { i32 } = context;
    context.estimate(operator, TILE_NANOSECONDS);
    return Math.ceil((i32[operator + COUNT] as number) / (i32[operator + PER_TILE] as number));
  },

  run({ i32, kernels }, operator, tile) {
    const perTile = i32[operator + PER_TILE] as number;
    const done = tile * perTile;
    kernels.pack(
      i32[operator + TARGET] as number,
      i32[operator + DTYPE] as number,
      i32[operator + OUTPUTS] as number,
      i32[operator + INPUTS] as number,
      i32[operator + GATED] as Flag,
      i32[operator + PART] as number,
      (i32[operator + FIRST] as number) + done,
      Math.min(perTile, (i32[operator + COUNT] as number) - done),
      (i32[operator + SOURCE] as number) + done * (i32[operator + STEP] as number),
      i32[operator + ROW_STRIDE] as number,
      i32[operator + COLUMN_STRIDE] as number,
    );
  },
};

export const fill: TileOperator = {
  open(context, operator) {
    context.estimate(operator, FILL_ELEMENTS_PER_TILE * FILL_NANOSECONDS_PER_ELEMENT);
    return Math.ceil((context.i32[operator + COUNT] as number) / FILL_ELEMENTS_PER_TILE);
  },

  run({ i32, f64, kernels }, operator, tile) {
    const first = tile * FILL_ELEMENTS_PER_TILE;
    kernels.fillUniform(
      (i32[operator + TARGET] as number) + first * (i32[operator + STEP] as number),
      i32[operator + DTYPE] as number,
      first,
      Math.min(FILL_ELEMENTS_PER_TILE, (i32[operator + COUNT] as number) - first),
      i32[operator + SEED] as number,
      f64[(operator + SCALE) >> 1] as number,
    );
  },
};
