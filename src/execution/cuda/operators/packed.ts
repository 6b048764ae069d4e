/** `project` with packed weights: products of the experts on a lane's work list, by kernels of their own. */

import { FAST_MEMORY } from "../../fast-memory.ts";
import type { ProjectOperator } from "../../operators.ts";
import type { PackedProjection } from "../packed-projection.ts";
import type { CudaProjection } from "../projection.ts";
import { activationValues } from "./activation.ts";
import { addsBiasFirst, packedKernel } from "./choice.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { persistentGrid } from "./grids.ts";
import { LARGE_SHARE, laneOf, projectBits } from "./lane.ts";
import { inCache } from "./lasting.ts";
import { mapOf, mappedRows, rowValues } from "./product.ts";

/**
 * Most rows that a matrix has on average where products read packed weights and could read plain ones: of large matrices (of more than
 * LARGE_SHARE of the L2), of others, and of those with fewer than PIECES pieces a multiprocessor, of which some programs have twice as many
 * as others if loads are skewed.
 *
 * Whole steps on an H100, plain and packed, uniform and Zipf 1.5. 64 rows: matrices of 235 MB 935 us to 809 and 1072 to 1017, but of 6.3
 * MB 434 to 416 and 443 to 495; 32 rows of 33 MB 528 to 441 and 537 to 496, but of 8.4 MB, 16 of them, 81 to 71 and 81 to 91; 16 rows
 * of 6.3 MB 402 to 326; 256 rows 659 to 940.
 */
const LARGE_ROWS = 64;
const PACKED_ROWS = 48;
const FEW_PIECES_ROWS = 16;
const PIECES = 2;
/**
 * Where memory is fast: most rows of a matrix on average, least inputs, and least pieces a multiprocessor. With fewer inputs pieces are so
 * short that what each takes beside its steps is more than is saved, and with fewer pieces some programs have twice as many as others.
 *
 * Products on an H200, plain and packed, uniform and Zipf 1.5. 32 rows of 33 MB 245 us to 216 and 253 to 244 (2880 inputs, first products),
 * 135 to 118 and 142 to 133 (second ones), 64 of 235 MB 460 to 465 and 464 to 539. 16 tokens, 768 inputs 62 to 66 and 36 to 40, 1024
 * inputs 58 to 64 and 42 to 41, 2880 inputs 111 to 109 and 64 to 62; 2048 inputs but one piece a multiprocessor 17 to 20 and 15 to
 * 19; 14336 inputs and two pieces 211 to 186.
 */
const FAST_MEMORY_ROWS = 32;
const FAST_MEMORY_INPUTS = 1536;
const FAST_MEMORY_PIECES = 1.5;

export const PLAIN_REMEDY = "Use a projection whose weights are not packed.";

/**
 * Whether a product takes less time with packed weights than with plain ones: where it waits for weights, and the L2 does not hold them. Not
 * where there is no kernel for it. What is wrong with the operator is left to whoever encodes it.
 */
export function paysPacked(
  { rows, activation }: ProjectOperator,
  { spec, element, n, k, weightBytes }: CudaProjection,
  { context }: OperatorEncoder,
): boolean {
  const { gated, bias, count } = spec;
  if (rows.from === "all" || rows.inputScale != null || rows.gather !== gated) return false;
  if (inCache(context, rows.buckets.weightBytes)) return false;
  const needs = { element, gated, activation, bias, gather: gated, rows: 1 };
  const kernel = packedKernel(context, needs);
  if (kernel === undefined) return false;
  const { multiprocessors, l2Bytes, memoryBytesPerSecond } = context.facts;
  const pieces =
    (count * Math.ceil(n / (kernel.entry.grid.columns_per_block ?? n))) / multiprocessors;
  const share = (rows.mostTokens * rows.topK) / count;
  if (memoryBytesPerSecond >= FAST_MEMORY) {
    return share <= FAST_MEMORY_ROWS && k >= FAST_MEMORY_INPUTS && pieces >= FAST_MEMORY_PIECES;
  }
  const large = weightBytes / count > LARGE_SHARE * l2Bytes;
  return share <= (pieces < PIECES ? FEW_PIECES_ROWS : large ? LARGE_ROWS : PACKED_ROWS);
}

export function encodePacked(
  operator: ProjectOperator,
  projection: PackedProjection,
  to: OperatorEncoder,
): void {
  const { rows } = operator;
  const { gated, bias } = projection.spec;
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
  const activation = activationValues(operator.activation, gated, to);
  const lane = laneOf(operator, rows, projection, to);
  const { element, n, k } = projection;
  const needs = { element, gated, activation: operator.activation, bias, gather: gated };
  const kernel =
    packedKernel(to.context, { ...needs, rows: lane.height }) ??
    to.fail(
      `there is no kernel for ${operator.activation.kind} behind ${gated ? "gated" : "plain"} packed weights on tiles of ${lane.height} rows`,
      PLAIN_REMEDY,
    );
  // Bits are those of the kernel that plain weights would have.
  const beginsWithBias =
    bias &&
    addsBiasFirst(to.context, {
      ...needs,
      inStep: lane.walk.inStep,
      inputScale: false,
      k,
      rows: lane.height,
    });
  const w = mapOf(kernel.entry, "w");
  to.kernel(
    kernel,
    {
      ...rowValues(kernel, projection, lane.buffers, to),
      ...(w && { w: projection.tensorMap(w) }),
      ...projection.tables,
      ...activation,
      ...lane.values,
      options: lane.options | projectBits(to, { bias_last: bias && !beginsWithBias }),
    },
    persistentGrid(kernel.entry, lane.most, n, to.context.facts.multiprocessors),
    { ...lane.work, ...mappedRows(kernel, lane.buffers) },
  );
  to.mirror(lane.buffers.output);
}
