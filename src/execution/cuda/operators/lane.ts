/**
 * A lane of bucket rows, which a product goes through by the work lists of the lane, one for each class of tiles: its checked arguments,
 * its lists, and how programs go through each. Which kernel multiplies is left to those who have one: project.ts, packed.ts.
 */

import { BYTES_PER_ELEMENT } from "../../../tensor.ts";
import type { BucketRows, ProjectOperator } from "../../operators.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { KernelValues } from "../launch/launch.ts";
import type { CudaProjection } from "../projection.ts";
import type { OperatorEncoder } from "./encoder.ts";
import type { WorkOptions } from "./kernel-work.ts";
import { inCache, passThrough } from "./lasting.ts";
import { findLists, listSizes, mayCount, type TileList } from "./lists.ts";
import { type RowBuffers, rowBuffers } from "./product.ts";
import type { TileClass } from "./tile-classes.ts";

/**
 * Tiles of more rows than this are tall. First products on them do not start early: behind buckets, which leave most of
 * the GPU free, blocks then settle in another order than they walk in. On an H100 up to 2.7 % of a step; with lower tiles
 * early starts gain up to 2.7 %.
 */
const LOW_ROWS = 64;

/**
 * Products on tiles of at most so many rows, whose blocks share multiprocessors, let the kernel behind them start late, when it need
 * not crowd (kernels/triton/overlap.py); so second ones start early however few their blocks. So do first ones: behind buckets
 * nearly all of the GPU is free.
 */
export const LATE_ROWS = 16;

/**
 * How programs come by their pieces (kernels/triton/experts/pieces.py). On tall tiles of matrices that have on average up to
 * CLAIM_ROWS rows, and wait for memory, they claim them, unless the L2 could not hold even one matrix. Matrices of more than
 * LARGE_SHARE of the L2 are large: what programs read of them at about the same time is all that the L2 holds for the others. So where
 * pieces are dealt programs go in step, as they do where matrices have few rows, unless the L2 holds all weights. Tall tiles of few
 * rows may take half the time (experts/many.py) where pieces are claimed, and where matrices are neither large nor have many rows.
 *
 * Claimed, on an H100, both products, uniform and Zipf 1.5, in bursts, before (dealt or in step) and after: 128 rows of 33 MB 615 us to
 * 597 and 644 to 625, of 34 MB 604 to 594 and 650 to 626, of 8.4 MB 337 to 318 and 336 to 324, of 6.3 MB 503 to 481 and 506 to 489 (64
 * rows: 437 to 438, 463 to 452), of 235 MB 1051 to 1041 and 1115 to 1110, but of 59 MB 4093 to 4132 and 4483 to 4647; 192 rows of 6.3
 * MB 529 to 541 and 567 to 552, 256 of 34 MB 757 to 784 and 803 to 812. On tiles of 64 rows 1 % less to 3 % more.
 *
 * In step, on an H100, whose L2 has 50 MB, both products of 1024 tokens, uniform: matrices of 33 and 17 MB 720 us to 659, of 34
 * and 17 MB 650 to 647, of 59 and 29 MB 3910 to 3811 (2048 tokens: 4808 to 4087), of 235 and 117 MB 1278 to 1276; of 4096 with Zipf
 * 1.5, which are mixed: 1305 to 1314, 1326 to 1336, 7401 to 5448, 4196 to 4141, and of small ones, 6.3 and 3.1 MB, 688 to 696.
 * Steps of small matrices with 64 rows: 6.3 MB 457 us to 452, Zipf 1 472 to 464, 1.5 475 to 470, 8.4 MB 305 to 302; with 128 rows
 * between 4 % less and 1 % more. On tiles of 64 rows, 256 tokens, uniform and Zipf 1.5, first products by many.py along with it: 33
 * MB 547 to 540 and 565 to 548, 34 MB 547 to 543 and 569 to 558, 59 MB 3699 to 3672 and 3450 to 3379, 8.4 MB 286 to 286 and 293 to
 * 290; weights that the L2 holds 24.8 to 25.1 and 24.0 to 25.2.
 * Half the time: matrices of 6.3 MB with 256 rows 701 us to 685 a step and with 64 rows, one expert hot, 492 to 484; of 8.4 MB with
 * 512 rows 760 to 785; of 29 MB with 256 rows 5600 to 5870.
 */
const CLAIM_ROWS = 128;
export const LARGE_SHARE = 1 / 4;
const IN_STEP_ROWS = 64;
const HALF_TIME_ROWS = 256;

/** What a product on a lane is encoded from. */
export interface Lane {
  /** Rows that it writes. */
  readonly output: CudaBuffer;
  /** That of the tallest tiles first. */
  readonly lists: readonly LaneList[];
  readonly bitsOf: BitsOf;
}

/** Tiles of plain weights whose bits all lists have that read packed ones, whatever other tokens put an expert on which of them. */
export interface BitsOf {
  readonly rows: number;
  readonly inStep: boolean;
}

/** What a product on a list of a lane is encoded from, whichever its kernel. */
export interface LaneList {
  readonly buffers: RowBuffers;
  /** Rows of the list's tiles. */
  readonly height: number;
  /** As its class has it. */
  readonly reads: TileClass["reads"];
  /** Tiles that the list has room for. */
  readonly most: number;
  /** Address of what scales the input's rows, or null. */
  readonly inputScale: bigint | null;
  /** Whether programs may count pieces. */
  readonly counts: boolean;
  /** How programs go through it that read so many bytes of weights, those of all matrices. */
  walk(weightBytes: number): Walk;
  /** The list and the choices, as arguments of a kernel. */
  readonly values: KernelValues;
  /** Bits of `options`, for all that is the same whichever the kernel: not how programs come by pieces. */
  readonly options: number;
  readonly work: WorkOptions;
}

/** How programs come by pieces, and whether tall tiles of few rows may take half the time. */
export interface Walk {
  readonly claim: boolean;
  readonly inStep: boolean;
  readonly halfTime: boolean;
}

/** Checks the arguments of a product on a lane and finds its lists. */
export function laneOf(
  operator: ProjectOperator,
  rows: BucketRows,
  projection: CudaProjection,
  to: OperatorEncoder,
): Lane {
  const { spec, element } = projection;
  const { context } = to;
  const { gather } = rows;
  const experts = spec.count;
  const topK = to.integer("rows.topK", rows.topK, 1);
  const mostTokens = to.integer("rows.mostTokens", rows.mostTokens, 1);
  const slots = to.slots("rows.mostTokens", mostTokens, topK);
  const lanes = to.integer("rows.lanes", rows.lanes, 1);
  const lane = to.integer("rows.lane", rows.lane, 0, lanes - 1);
  const order = to.input("rows.buckets.order", rows.buckets.order, slots);
  const inputScale = to.optional("rows.inputScale", rows.inputScale, slots);
  // Not filled: the device says so in `timesExperts`.
  to.optional("rows.busy", rows.busy, experts, "int32");
  const buffers = rowBuffers(operator, projection, gather ? mostTokens : slots, slots, to);
  const { weightBytes } = rows.buckets;
  const share = slots / experts;
  const told = { experts, lanes, mostTokens, topK };
  const sizes = listSizes(context, element, rows.buckets, told);
  const lists = findLists(order, sizes)?.byLane[lane];
  if (lists === undefined) {
    to.fail(
      `rows.buckets have no work lists for ${experts} experts, ${lanes} lanes, topK ${topK} and up to ${mostTokens} tokens with ${element} rows`,
      "Enqueue the bucket operator that fills them first, with the same sizes, weightBytes and packedBeside; a projection needs one matrix for each expert.",
    );
  }
  const cached = inCache(context, weightBytes);
  const bytes = slots * projection.outputPitch * BYTES_PER_ELEMENT[element];
  const options = projectBits(to, {
    read_once: !cached,
    keep: gather && passThrough(context, { bytes, share, weightBytes }),
    gather,
    bias: spec.bias,
  });
  // Of weights kept both ways it does not matter which are read.
  const counting = to.projection("projection", operator.projection);
  const ofList = (list: TileList): LaneList => {
    const { rows: height, reads } = list.class;
    const counts = mayCount(list, gather, counting);
    return {
      buffers,
      height,
      reads,
      most: list.most,
      inputScale,
      counts,
      walk: (ofWeights) =>
        walkOf(height, share, ofWeights / experts / context.facts.l2Bytes, cached, counts),
      values: { tiles: list.tiles, tile_count: list.counts, order: order.address, top_k: topK },
      options,
      work: {
        budgeted: true,
        weights: projection.weights,
        behindProducts: !gather,
        ...(gather && height > LOW_ROWS && { early: false }),
      },
    };
  };
  const found = lists.map(ofList).reverse();
  const [tallest] = found as [LaneList];
  const bitsOf = { rows: tallest.height, inStep: tallest.walk(projection.weightBytes).inStep };
  return { output: buffers.output, lists: found, bitsOf };
}

/** The bits of a product's `options` that are set. */
export function projectBits(
  { context }: OperatorEncoder,
  set: Readonly<Record<string, boolean>>,
): number {
  const bits = context.kernels.manifest.options["project"] ?? {};
  return Object.entries(set).reduce((sum, [name, on]) => (on ? sum | (bits[name] ?? 0) : sum), 0);
}

/**
 * How programs go through tiles of so many rows, by the rows that an expert has on average, its matrix's share of the L2,
 * whether that holds all weights and whether programs may count pieces.
 */
function walkOf(
  height: number,
  share: number,
  ofL2: number,
  cached: boolean,
  counts: boolean,
): Walk {
  const tall = height > LOW_ROWS;
  const large = ofL2 > LARGE_SHARE;
  const claim = counts && tall && share <= CLAIM_ROWS && ofL2 <= 1;
  const inStep = height > LATE_ROWS && !cached && (large || share <= IN_STEP_ROWS);
  return {
    claim,
    inStep: counts && !claim && inStep,
    halfTime: claim || (tall && !large && share <= HALF_TIME_ROWS),
  };
}
