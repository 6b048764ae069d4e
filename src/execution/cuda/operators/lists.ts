/**
 * The work lists of tiles: written by the bucket kernel, one for each lane and class of tiles, read by
 * the products. They belong to the order buffer that is written with them.
 *
 * In one block of memory: what the kernel is told of every list, how many tiles
 * each one got and how many of them are of busy experts, the tiles.
 */

import type { BucketBuffers } from "../../operators.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { CudaProjection } from "../projection.ts";
import type { RowType } from "../rows.ts";
import type { OperatorContext } from "./context.ts";
import { Scratch } from "./scratch.ts";
import { type TileClass, tileClasses } from "./tile-classes.ts";

/** Sizes that an operator tells. */
export interface OperatorSizes {
  readonly experts: number;
  readonly lanes: number;
  readonly mostTokens: number;
  readonly topK: number;
}

/** Sizes that lists are made for; an operator finds the lists of its own. */
export interface ListSizes extends OperatorSizes {
  readonly classes: readonly TileClass[];
}

/** With the classes of tiles for rows of this type. */
export function listSizes(
  context: Pick<OperatorContext, "kernels" | "float32" | "facts">,
  element: RowType,
  { weightBytes, packedBeside = false }: Pick<BucketBuffers, "weightBytes" | "packedBeside">,
  sizes: OperatorSizes,
): ListSizes {
  const { experts, mostTokens, topK } = sizes;
  const rows = { slots: mostTokens * topK, experts, weightBytes, mostTokens, packedBeside };
  return { ...sizes, classes: tileClasses(context, element, rows) };
}

export interface TileLists {
  readonly buffer: CudaBuffer;
  /** Address of what the kernel is told of the lists. */
  readonly told: bigint;
  /** Address of the first list's counts; the others' follow. */
  readonly counts: bigint;
  /** Address of the first list's tiles. */
  readonly tiles: bigint;
  /** By lane, and within a lane by class. */
  readonly byLane: readonly (readonly TileList[])[];
}

/** The list of a lane and a class. */
export interface TileList {
  readonly class: TileClass;
  /** Tiles that it has room for. */
  readonly most: number;
  /** Address of its counts: its tiles, how many of them are of busy experts, and what products count there. */
  readonly counts: bigint;
  /** Address of its tiles. */
  readonly tiles: bigint;
  /** By word: the product that counts pieces there, beside the counts. */
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
 * Whether a product may count its pieces beside a list's counts. Kernels for gated products count in one word there and those for
 * plain products, whose rows lie in order, in the other (kernels/triton/experts/many.py): two that run at the same time would take
 * each other's pieces. So the first one to use a word does, as long as it lives.
 */
export function mayCount(
  { counting }: TileList,
  gather: boolean,
  projection: CudaProjection,
): boolean {
  // Plain products that gather have no such kernel, and leave the second word to one that does not.
  const word = gather || projection.spec.gated ? "first" : "second";
  if (counting.get(word)?.closed ?? true) counting.set(word, projection);
  return counting.get(word) === projection;
}

function keyOf({ experts, lanes, mostTokens, topK, classes }: ListSizes): number[] {
  const ofClasses = classes.flatMap(({ rows, mostRows }) => [rows, mostRows]);
  return [experts, lanes, mostTokens, topK, ...ofClasses];
}

function makeLists(
  order: CudaBuffer,
  { experts, lanes, mostTokens, topK, classes }: ListSizes,
  context: OperatorContext,
): TileLists {
  const slots = mostTokens * topK;
  const rooms = classes.map((each) => mostTiles(each, slots, experts));
  const room = sum(rooms);
  const words = context.kernels.manifest.list_words;
  const countBytes = 4 * context.kernels.manifest.count_words;
  const number = lanes * classes.length;
  const countsAt = aligned(number * words * 4);
  const tilesAt = countsAt + aligned(number * countBytes);
  const buffer = context.scratch(
    tilesAt + lanes * room * TILE_BYTES,
    `work lists of ${order.label}`,
  );
  const at = (bytes: number) => buffer.address + BigInt(bytes);
  const told = new Int32Array(number * words);
  const listOf = (each: TileClass, lane: number, c: number): TileList => {
    const list = lane * classes.length + c;
    const most = rooms[c] as number;
    const first = lane * room + sum(rooms.slice(0, c));
    told.set([each.rows, each.mostRows, first, MOST_TILES_TOGETHER], list * words);
    return {
      class: each,
      most,
      counts: at(countsAt + list * countBytes),
      tiles: at(tilesAt + first * TILE_BYTES),
      counting: new Map(),
    };
  };
  const byLane = Array.from({ length: lanes }, (_, lane) =>
    classes.map((each, c) => listOf(each, lane, c)),
  );
  try {
    context.upload(buffer.address, told);
  } catch (error) {
    // It belongs to nobody yet.
    buffer[Symbol.dispose]();
    throw error;
  }
  return { buffer, told: buffer.address, counts: at(countsAt), tiles: at(tilesAt), byLane };
}

/** Tiles that a class can come to: every expert can end with one that is not full, and all of them can be on one lane. */
function mostTiles({ rows, leastRows }: TileClass, slots: number, experts: number): number {
  return Math.floor(slots / rows) + Math.min(experts, Math.floor(slots / leastRows));
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
