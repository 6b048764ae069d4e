/** `project` with packed weights: products of the experts on a lane's work lists, by kernels of their own. */

import { FAST_MEMORY } from "../../fast-memory.ts";
import type { BucketRows, ProjectOperator } from "../../operators.ts";
import type { PackedProjection } from "../packed-projection.ts";
import type { CudaProjection } from "../projection.ts";
import { activationValues } from "./activation.ts";
import { addsBiasFirst, packedKernel } from "./choice.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { persistentGrid } from "./grids.ts";
import { type BitsOf, LARGE_SHARE, type LaneList, laneOf, projectBits } from "./lane.ts";
import { inCache } from "./lasting.ts";
import { mapOf, mappedRows, rowValues } from "./product.ts";

/**
 * Most rows that a matrix has on average where products read packed weights and could read plain ones: of large matrices (of more than
 * LARGE_SHARE of the L2), of others, and of others with fewer than PIECES pieces a multiprocessor, of which some programs have twice as
 * many as others if loads are skewed.
 *
 * Whole steps on an H100, plain and packed, uniform and Zipf 1.5. 64 rows: matrices of 235 MB 935 us to 809 and 1072 to 1017, but of 6.3
 * MB 434 to 416 and 443 to 495; 32 rows of 33 MB 528 to 441 and 537 to 496, but of 8.4 MB, 16 of them, 81 to 71 and 81 to 91; 16 rows
 * of 6.3 MB 402 to 326; 256 rows 659 to 940. All that with two warp groups, and pieces of second products half as wide: PIECES counts
 * those of the lowest kernel as it is now.
 */
const LARGE_ROWS = 64;
const PACKED_ROWS = 48;
const FEW_PIECES_ROWS = 16;
const PIECES = 2;
/**
 * Where memory is fast: most rows of a matrix on average. None of matrices that are not large and have few pieces.
 *
 * Both products on an H200, plain and packed, uniform, Zipf 1 and one expert hot. 64 tokens: 6.3 and 3.1 MB 265 us to 221, 236 to 200 and
 * 267 to 222; 8.4 and 4.2 MB 185 to 152, 180 to 149, 184 to 154; 33 and 17 MB 362 to 295, 355 to 296, 361 to 294; 235 and 117 MB, on
 * tiles of 64 rows, 636 to 526, 632 to 538, 636 to 534; 16 of 8.4 and 4.2 MB, of which the second has half a piece a multiprocessor,
 * 55 to 57, 55 to 57, 57 to 65. 256 tokens: 6.3 and 3.1 MB 278 to 226, 294 to 264, 285 to 247; 33 and 17 MB 367 to 319, 393 to 372,
 * 384 to 378; 235 and 117 MB, 64 rows each, 669 to 656, 797 to 900, 811 to 900.
 */
const FAST_MEMORY_ROWS = 32;

/**
 * On tiles of at most so many rows pieces are claimed, on tiles of more where the L2 could hold a matrix; otherwise programs come by them as
 * with plain weights. By themselves on an H200, dealt and claimed, first products of 16 tokens of qwen3-30b-a3b 97.5 us and 95.2, of 64 141.8
 * and 140.5, of 256 with Zipf 1.5 173.0 and 168.3, of gpt-oss-20b's shape 188.4 and 183.7, 193.5 and 187.0 (64 tokens), of large 175.0 and
 * 172.4, 188.4 and 186.0; second ones within 4 %, most of them less. Steps on tiles of 64 rows, 256 tokens, uniform and Zipf 1.5: gpt-oss-20b's
 * shape 314.7 to 309.9 and 353.0 to 350.4, olmoe-1b-7b 167.5 to 167.9 and 197.1 to 196.4; large, one expert hot, 345.2 to 340.6.
 */
const CLAIM_HEIGHT = 32;
const CLAIM_HEIGHT_OF_FITTING = 64;

export const PLAIN_REMEDY = "Use a projection whose weights are not packed.";

/**
 * Whether a product on a list takes less time with packed weights than with plain ones: where it waits for weights, and the L2 does not hold
 * them. Not where there is no kernel for it.
 */
export function paysPacked(
  { activation }: ProjectOperator,
  rows: BucketRows,
  { spec, element, n, weightBytes }: CudaProjection,
  { reads, inputScale }: LaneList,
  { context }: OperatorEncoder,
): boolean {
  const { gated, bias, count } = spec;
  if (inputScale !== null || rows.gather !== gated) return false;
  if (inCache(context, rows.buckets.weightBytes)) return false;
  const needs = { element, gated, activation, bias, gather: gated, rows: 1 };
  const kernel = packedKernel(context, needs);
  if (kernel === undefined) return false;
  if (reads !== undefined) return reads === "packed";
  const share = (rows.mostTokens * rows.topK) / count;
  const { multiprocessors, l2Bytes, memoryBytesPerSecond } = context.facts;
  const pieces =
    (count * Math.ceil(n / (kernel.entry.grid.columns_per_block ?? n))) / multiprocessors;
  const large = weightBytes / count > LARGE_SHARE * l2Bytes;
  const few = !large && pieces < PIECES;
  if (memoryBytesPerSecond >= FAST_MEMORY) return share <= FAST_MEMORY_ROWS && !few;
  return share <= (large ? LARGE_ROWS : few ? FEW_PIECES_ROWS : PACKED_ROWS);
}

/** Of weights that are there packed alone. */
export function encodePacked(
  operator: ProjectOperator,
  projection: PackedProjection,
  to: OperatorEncoder,
): void {
  const { rows } = operator;
  const { gated } = projection.spec;
  if (rows.from === "all") to.fail('rows.from is "all", and the weights are packed', PLAIN_REMEDY);
  if (rows.inputScale !== undefined) {
    to.fail("rows.inputScale is given, and the weights are packed", PLAIN_REMEDY);
  }
  if (rows.gather !== gated) {
    to.fail(
      `rows.gather is ${rows.gather}, and the weights are packed and ${gated ? "" : "not "}gated`,
      `Packed weights gather rows if they are gated, and else do not. ${PLAIN_REMEDY}`,
    );
  }
  const { output, lists, bitsOf } = laneOf(operator, rows, projection, to);
  for (const list of lists) encodePackedList(operator, projection, list, bitsOf, to);
  to.mirror(output);
}

/** One list's products. What is wrong with the operator, other than that there is no kernel for it, has been found. */
export function encodePackedList(
  operator: ProjectOperator,
  projection: PackedProjection,
  list: LaneList,
  bitsOf: BitsOf,
  to: OperatorEncoder,
): void {
  const { gated, bias } = projection.spec;
  const activation = activationValues(operator.activation, gated, to);
  const { element, n, k } = projection;
  const needs = { element, gated, activation: operator.activation, bias, gather: gated };
  const kernel =
    packedKernel(to.context, { ...needs, rows: list.height }) ??
    to.fail(
      `there is no kernel for ${operator.activation.kind} behind ${gated ? "gated" : "plain"} packed weights on tiles of ${list.height} rows`,
      PLAIN_REMEDY,
    );
  const beginsWithBias =
    bias && addsBiasFirst(to.context, { ...needs, ...bitsOf, inputScale: false, k });
  const fits = projection.weightBytes / projection.spec.count <= to.context.facts.l2Bytes;
  const claimed = list.height <= (fits ? CLAIM_HEIGHT_OF_FITTING : CLAIM_HEIGHT);
  const walk = list.walk(projection.weightBytes);
  const claim = list.counts && (walk.claim || claimed);
  const inStep = walk.inStep && !claim;
  const w = mapOf(kernel.entry, "w");
  to.kernel(
    kernel,
    {
      ...rowValues(kernel, projection, list.buffers, to),
      ...(w && { w: projection.tensorMap(w) }),
      ...projection.tables,
      ...activation,
      ...list.values,
      options:
        list.options |
        projectBits(to, { claim, in_step: inStep, bias_last: bias && !beginsWithBias }),
    },
    persistentGrid(kernel.entry, list.most, n, to.context.facts.multiprocessors),
    { ...list.work, weights: projection.weights, ...mappedRows(kernel, list.buffers) },
  );
}
