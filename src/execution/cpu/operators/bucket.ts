/**
 * `bucket` on the CPU: a stable counting sort of the slots by expert, and the work
 * lists of the lanes. One tile: its work is a few passes over tokens * topK
 * integers, next to nothing beside the products it makes way for.
 *
 * A work list holds row blocks: runs of rows of one expert, cut evenly and no
 * longer than the kernels take at once. `project` turns each into tiles (project.ts).
 * The lists lie in memory of the device's own, attached to the offsets buffer.
 */

import type { BucketOperator } from "../../operators.ts";
import type { ArgumentWriter } from "../arguments.ts";
import type { CpuBuffer } from "../buffer.ts";
import type { TileContext, TileOperator } from "../context.ts";
import { ARGUMENTS } from "../program.ts";

const CAPACITY_FACTOR = ARGUMENTS;
const TOKENS = ARGUMENTS + 2;
const MOST_TOKENS = ARGUMENTS + 3;
const IDS = ARGUMENTS + 4;
const OFFSETS = ARGUMENTS + 5;
const ORDER = ARGUMENTS + 6;
const INVERSE = ARGUMENTS + 7;
const LANE_OF = ARGUMENTS + 8;
const WORK_LIST = ARGUMENTS + 9;
const EXPERTS = ARGUMENTS + 10;
const TOP_K = ARGUMENTS + 11;
const LANES = ARGUMENTS + 12;
/** Written by `open`: T. */
const ROWS = ARGUMENTS + 13;

// A work list: for every lane the first of its blocks (as a word from the list's
// start), how many blocks and how many rows it has; then the blocks.
export const LANE_WORDS = 3;
export const LANE_FIRST = 0;
export const LANE_BLOCKS = 1;
export const LANE_ROWS = 2;

export const BLOCK_WORDS = 5;
export const BLOCK_EXPERT = 0;
export const BLOCK_ROW = 1;
export const BLOCK_ROWS = 2;
/** Position of the block among its expert's blocks, and how many those are. */
export const BLOCK_INDEX = 3;
export const BLOCK_COUNT = 4;

/** Time for one slot, for sharing out the workers. */
const NANOSECONDS_PER_SLOT = 10;

/** Work lists that belong to an offsets buffer, and the sizes in the operator that fills them. */
export interface WorkLists
  extends Pick<BucketOperator, "experts" | "lanes" | "topK" | "mostTokens"> {
  readonly buffer: CpuBuffer;
}

/**
 * The work lists of every offsets buffer, the ones enqueued last at the end. A
 * graph captured with others keeps those, so lists for every number of lanes stay.
 */
const workLists = new WeakMap<CpuBuffer, WorkLists[]>();

/** What the bucket operator that was enqueued last for these offsets fills. */
export function workListsOf(offsets: CpuBuffer): WorkLists | undefined {
  return workLists.get(offsets)?.at(-1);
}

function useWorkLists(
  offsets: CpuBuffer,
  { experts, lanes, topK, mostTokens }: BucketOperator,
  blocks: number,
  allocate: (elements: number, label: string) => CpuBuffer,
): CpuBuffer {
  const elements = lanes * LANE_WORDS + blocks * BLOCK_WORDS;
  const present = workLists.get(offsets) ?? [];
  const index = present.findIndex(
    (lists) =>
      lists.experts === experts && lists.lanes === lanes && lists.buffer.elements >= elements,
  );
  const [found] = index < 0 ? [] : present.splice(index, 1);
  const buffer = found?.buffer ?? allocate(elements, `work lists of ${offsets.label}`);
  if (found === undefined) offsets.attach(buffer);
  present.push({ buffer, experts, lanes, topK, mostTokens });
  workLists.set(offsets, present);
  return buffer;
}

export function writeBucket(
  operator: BucketOperator,
  to: ArgumentWriter,
  maxTileRows: number,
  allocate: (elements: number, label: string) => CpuBuffer,
): void {
  const experts = to.integer("experts", operator.experts, 1);
  const topK = to.integer("topK", operator.topK, 1, experts);
  const lanes = to.integer("lanes", operator.lanes, 1);
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1);
  to.float32("rowType", operator.rowType);
  const { buckets, capacityFactor } = operator;
  if (capacityFactor !== undefined) {
    const factor = to.finite("capacityFactor", capacityFactor);
    if (factor <= 0) to.fail(`capacityFactor is ${factor}`, "Use more than 0.");
  }
  to.float(CAPACITY_FACTOR, capacityFactor ?? Number.POSITIVE_INFINITY);
  const slots = mostTokens * topK;
  const tokens = to.input("tokens", operator.tokens, 1);
  const ids = to.input("ids", operator.ids, slots);
  const offsets = to.output("buckets.offsets", buckets.offsets, experts + 1);
  const order = to.output("buckets.order", buckets.order, slots);
  const inverse = to.output("buckets.inverse", buckets.inverse, slots);
  // For all that the buffers have room for, so that operators for fewer tokens share the lists.
  const blocks = experts + Math.ceil(order.elements / maxTileRows);
  const list = useWorkLists(offsets, operator, blocks, allocate);
  to.int(TOKENS, tokens.address);
  to.int(MOST_TOKENS, mostTokens);
  to.int(IDS, ids.address);
  to.int(OFFSETS, offsets.address);
  to.int(ORDER, order.address);
  to.int(INVERSE, inverse.address);
  to.int(LANE_OF, to.input("buckets.laneOf", buckets.laneOf, experts).address);
  to.int(WORK_LIST, list.address);
  to.int(EXPERTS, experts);
  to.int(TOP_K, topK);
  to.int(LANES, lanes);
}

/** Rows of each expert, then the next free row of each. Scratch memory of this worker. */
let cursors = new Int32Array(0);

export const bucket: TileOperator = {
  open(context, operator) {
    const { i32 } = context;
    const rows = context.tokens(
      operator,
      i32[operator + TOKENS] as number,
      i32[operator + MOST_TOKENS] as number,
    );
    i32[operator + ROWS] = rows;
    context.estimate(operator, rows * (i32[operator + TOP_K] as number) * NANOSECONDS_PER_SLOT);
    return 1;
  },

  run(context, operator) {
    if (sortSlots(context, operator)) listWork(context, operator);
  },
};

/** Fills offsets, order and inverse; returns false and reports a fault if an id is out of range. */
function sortSlots(context: TileContext, operator: number): boolean {
  const { i32, f64 } = context;
  const experts = i32[operator + EXPERTS] as number;
  const tokens = i32[operator + ROWS] as number;
  const topK = i32[operator + TOP_K] as number;
  const slots = tokens * topK;
  const ids = (i32[operator + IDS] as number) >>> 2;
  const offsets = (i32[operator + OFFSETS] as number) >>> 2;
  const order = (i32[operator + ORDER] as number) >>> 2;
  const inverse = (i32[operator + INVERSE] as number) >>> 2;
  const factor = f64[(operator + CAPACITY_FACTOR) >> 1] as number;
  const limit = slots === 0 ? 0 : Math.ceil((factor * tokens * topK) / experts);

  if (cursors.length < experts) cursors = new Int32Array(experts);
  cursors.fill(0, 0, experts);
  for (let slot = 0; slot < slots; slot++) {
    const id = i32[ids + slot] as number;
    if (id < 0 || id >= experts) {
      context.fault("expert", operator, id, slot);
      return false;
    }
    cursors[id] = (cursors[id] as number) + 1;
  }
  let row = 0;
  for (let e = 0; e < experts; e++) {
    const rows = Math.min(cursors[e] as number, limit);
    i32[offsets + e] = row;
    cursors[e] = row;
    row += rows;
  }
  i32[offsets + experts] = row;
  for (let slot = 0; slot < slots; slot++) {
    const id = i32[ids + slot] as number;
    const at = cursors[id] as number;
    if (at < (i32[offsets + id + 1] as number)) {
      i32[order + at] = slot;
      i32[inverse + slot] = at;
      cursors[id] = at + 1;
    } else {
      i32[inverse + slot] = -1;
    }
  }
  return true;
}

/** Puts every expert's row blocks on its lane's list. */
function listWork(context: TileContext, operator: number): void {
  const { i32, kernels } = context;
  const experts = i32[operator + EXPERTS] as number;
  const lanes = i32[operator + LANES] as number;
  const offsets = (i32[operator + OFFSETS] as number) >>> 2;
  const laneOf = (i32[operator + LANE_OF] as number) >>> 2;
  const list = (i32[operator + WORK_LIST] as number) >>> 2;
  const longest = kernels.maxTileRows();
  i32.fill(0, list, list + lanes * LANE_WORDS);

  for (let e = 0; e < experts; e++) {
    const rows = (i32[offsets + e + 1] as number) - (i32[offsets + e] as number);
    const lane = i32[laneOf + e] as number;
    if (lane < 0 || lane >= lanes) {
      context.fault("lane", operator, lane, e);
      return;
    }
    const entry = list + lane * LANE_WORDS;
    i32[entry + LANE_BLOCKS] = (i32[entry + LANE_BLOCKS] as number) + Math.ceil(rows / longest);
    i32[entry + LANE_ROWS] = (i32[entry + LANE_ROWS] as number) + rows;
  }
  let next = lanes * LANE_WORDS;
  for (let lane = 0; lane < lanes; lane++) {
    const entry = list + lane * LANE_WORDS;
    i32[entry + LANE_FIRST] = next;
    next += (i32[entry + LANE_BLOCKS] as number) * BLOCK_WORDS;
    // Counted again as the blocks are put down.
    i32[entry + LANE_BLOCKS] = 0;
  }
  for (let e = 0; e < experts; e++) {
    const first = i32[offsets + e] as number;
    const rows = (i32[offsets + e + 1] as number) - first;
    if (rows === 0) continue;
    const entry = list + (i32[laneOf + e] as number) * LANE_WORDS;
    const count = Math.ceil(rows / longest);
    for (let index = 0; index < count; index++) {
      const placed = i32[entry + LANE_BLOCKS] as number;
      const block = list + (i32[entry + LANE_FIRST] as number) + placed * BLOCK_WORDS;
      const begin = Math.floor((rows * index) / count);
      i32[block + BLOCK_EXPERT] = e;
      i32[block + BLOCK_ROW] = first + begin;
      i32[block + BLOCK_ROWS] = Math.floor((rows * (index + 1)) / count) - begin;
      i32[block + BLOCK_INDEX] = index;
      i32[block + BLOCK_COUNT] = count;
      i32[entry + LANE_BLOCKS] = placed + 1;
    }
  }
}
