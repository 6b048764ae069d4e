/**
 * The classes of tiles that a lane has a list for. One as a rule, whose height comes from the rows that experts have on average
 * (choice.ts). But where weights are kept both ways and experts are large, those with few rows and those with many are kept apart: the
 * first read packed weights on low tiles, the others plain ones on tall tiles. The device does so step by step, from the rows that experts have
 * (kernels/triton/routing/bucket.py); what is decided here is whether, from sizes alone.
 */

import { FAST_MEMORY } from "../../fast-memory.ts";
import type { RowType } from "../rows.ts";
import { type ExpertRows, expertTileRows, tilesOfAtLeast } from "./choice.ts";
import type { OperatorContext } from "./context.ts";
import { expertInCache } from "./lasting.ts";

/** The experts that have `leastRows` to `mostRows` rows. */
export interface TileClass {
  /** Rows of a tile of theirs. */
  readonly rows: number;
  readonly leastRows: number;
  readonly mostRows: number;
  /** Which weights their products read, where they are there both ways; undefined: those that take less time on average. */
  readonly reads?: "packed" | "plain";
}

/** What the classes depend on. */
export interface ClassRows extends ExpertRows {
  readonly mostTokens: number;
  /** Whether weights are there plain and packed. */
  readonly packedBeside: boolean;
}

/** The most that an int32 holds: any number. */
const ANY_ROWS = 0x7fffffff;

/**
 * Most rows of an expert whose tile, one, reads packed weights, of as many rows; and rows of the tiles of those that have more. With more than
 * SOME_SHARE rows on average only experts with few do.
 *
 * Steps on an H200 in one class and in several, uniform, Zipf 1, Zipf 1.5 and one expert hot. DeepSeek-V3's shape, 1024 tokens, 32 rows an
 * expert: 4130 us to 4054, 4676 to 4358, 4858 to 4380, 4237 to 4150 (without a class of 33 to 64 rows 4062 to 4460, 4597 to 4236, 4783 to
 * 4212, 4164 to 4211); 256 tokens 3818 to 3834, 3593 to 3604, 2933 to 2829, 3857 to 3895. mixtral-8x7b, 256 tokens, 64 rows, in two classes:
 * 662 to 676, 794 to 775, 804 to 739, 807 to 790; both products by themselves, with those of up to 64 rows packed, 661 to 722.
 */
const FEW_ROWS = 32;
const SOME_ROWS = 64;
const SOME_SHARE = 32;
const TALL_ROWS = 128;

/**
 * Kept apart from so many tokens on, if experts have on average at most so many rows, and the L2 could not hold one of them. Each class has a
 * kernel of its own, and of small experts some keep few multiprocessors busy: 256 tokens of qwen3-30b-a3b, 16 rows, 226 us to 234, 259 to 261,
 * 258 to 244, 244 to 263; 128 of it 230 to 248, 205 to 214, 224 to 259 (Zipf 1, 1.5, hot); 128 of mixtral-8x7b 603 to 660 and 598 to 663.
 */
const FEWEST_TOKENS = 256;
const MOST_SHARE = 64;

/** The classes of tiles, the lowest first; every expert is in one. */
export function tileClasses(
  context: Pick<OperatorContext, "kernels" | "float32" | "facts">,
  element: RowType,
  rows: ClassRows,
): readonly TileClass[] {
  if (!keptApart(context, rows)) {
    return [{ rows: expertTileRows(context, element, rows), leastRows: 1, mostRows: ANY_ROWS }];
  }
  const tiles = (wanted: number) => tilesOfAtLeast(context, element, wanted);
  const limits = rows.slots / rows.experts <= SOME_SHARE ? [FEW_ROWS, SOME_ROWS] : [FEW_ROWS];
  const after = [1, ...limits.map((most) => most + 1)];
  const read = limits.map((mostRows, i): TileClass => {
    return { rows: tiles(mostRows), leastRows: after[i] as number, mostRows, reads: "packed" };
  });
  const leastRows = after.at(-1) as number;
  return [...read, { rows: tiles(TALL_ROWS), leastRows, mostRows: ANY_ROWS, reads: "plain" }];
}

function keptApart(
  context: Pick<OperatorContext, "facts">,
  { slots, experts, weightBytes, mostTokens, packedBeside }: ClassRows,
): boolean {
  if (!packedBeside || context.facts.memoryBytesPerSecond < FAST_MEMORY) return false;
  const large = !expertInCache(context, weightBytes, experts);
  return large && mostTokens >= FEWEST_TOKENS && slots / experts <= MOST_SHARE;
}
