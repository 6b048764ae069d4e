/**
 * The work lists of tiles: written by the bucket kernel, one for each lane, read by
 * the products. They belong to the order buffer that is written with them.
 *
 * In one block of memory: what the kernel is told of every list, how many tiles
 * each one got and how many of them are of busy experts, the tiles.
 */

import type { CudaBuffer } from "../buffer.ts";
import type { CudaProjection } from "../projection.ts";
import type { OperatorContext } from "./context.ts";
import { Scratch } from "./scratch.ts";

/** Sizes that lists are made for; an operator finds the lists of its own. */
export interface ListSizes {
  readonly experts: number;
  readonly lanes: number;
  readonly mostTokens: number;
  readonly topK: number;
  /** Rows of a tile. */
  readonly rows: number;
}

export interface TileLists {
  readonly buffer: CudaBuffer;
  /** Tiles that each list has room for. */
  readonly most: number;
  /** Address of what the kernel is told of the lists. */
  readonly lists: bigint;
  /** Address of the first lane's counts; the other lanes' follow. */
  readonly counts: bigint;
  /** Bytes of a lane's counts: its tiles, how many of them are of busy experts, and what products count there. */
  readonly countBytes: number;
  /** Address of the first lane's tiles; the other lanes' follow, `most` for each. */
  readonly tiles: bigint;
  /** By lane and word: the product that counts pieces there, beside the lane's counts. */
  readonly counting: Map<string, CudaProjection>;
}

/** Bytes of a tile: matrix, first row, rows, group. */
export const TILE_BYTES = 16;

/** Parts of the block begin at multiples of this, which is what the kernels' 16-byte accesses need and more. */
const ALIGNMENT = 256;

/**
 * Most tiles of an expert that go through the columns of its weights together: so many read a column
 * once, and their rows, 16 MiB of 4096 elements, are found in the L2 from one column to the next. On an H100
 * 8, 16 and 32 took the same time.
 */
const MOST_TILES_TOGETHER = 16;

/** Rows of an expert in a list's class, where there is one class: any number. */
const ANY_ROWS = 0x7fffffff;

const lists = new Scratch<TileLists>();

/** The lists of an order buffer for these sizes, if a bucket operator has been encoded with them. */
export function findLists(order: CudaBuffer, sizes: ListSizes): TileLists | undefined {
  return lists.find(order, ...keyOf(sizes));
}

/** The lists of an order buffer for these sizes, made now if need be. */
export function listsOf(order: CudaBuffer, sizes: ListSizes, context: OperatorContext): TileLists {
  return lists.of(order, keyOf(sizes), () => makeLists(order, sizes, context));
}

/**
 * Whether a product may count its pieces beside a lane's counts. Kernels for gated products count in one word there and those for
 * plain products, whose rows lie in order, in the other (kernels/triton/experts/many.py): two that run at the same time would take
 * each other's pieces. So the first one to use a word does, as long as it lives.
 */
export function mayCount(
  { counting }: TileLists,
  lane: number,
  gather: boolean,
  projection: CudaProjection,
): boolean {
  // Plain products that gather have no such kernel, and leave the second word to one that does not.
  const word = `${lane} ${gather || projection.spec.gated ? "first" : "second"}`;
  if (counting.get(word)?.closed ?? true) counting.set(word, projection);
  return counting.get(word) === projection;
}

function keyOf({ experts, lanes, mostTokens, topK, rows }: ListSizes): number[] {
  return [experts, lanes, mostTokens, topK, rows];
}

function makeLists(
  order: CudaBuffer,
  { experts, lanes, mostTokens, topK, rows }: ListSizes,
  context: OperatorContext,
): TileLists {
  const slots = mostTokens * topK;
  // Every expert can end with a tile that is not full, and all of them can be on one lane.
  const most = Math.floor(slots / rows) + Math.min(experts, slots);
  const words = context.kernels.manifest.list_words;
  const countBytes = 4 * context.kernels.manifest.count_words;
  const countsAt = aligned(lanes * words * 4);
  const tilesAt = countsAt + aligned(lanes * countBytes);
  const buffer = context.scratch(
    tilesAt + lanes * most * TILE_BYTES,
    `work lists of ${order.label}`,
  );
  const told = new Int32Array(lanes * words);
  for (let lane = 0; lane < lanes; lane++) {
    told.set([rows, ANY_ROWS, lane * most, MOST_TILES_TOGETHER], lane * words);
  }
  context.upload(buffer.address, told);
  return {
    buffer,
    most,
    lists: buffer.address,
    counts: buffer.address + BigInt(countsAt),
    countBytes,
    tiles: buffer.address + BigInt(tilesAt),
    counting: new Map(),
  };
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
