/**
 * How long the L2 shall keep what a step reads and writes (kernels/triton/l2.py says what for, and how): weights that a single
 * tile reads go first, and so do those that decode's first product reads, and its second where it reads an expert once; a first product's rows
 * go last, and rows that have been read are dropped.
 *
 * Not where the L2 holds all weights: there it holds the rows, too.
 */

import type { OperatorContext } from "./context.ts";

type Facts = Pick<OperatorContext, "facts">;

/** Rows of experts between two kernels. */
export interface RowsBetween {
  readonly bytes: number;
  /** That an expert has on average. */
  readonly share: number;
  /** Bytes of the weights of all experts. */
  readonly weightBytes: number | undefined;
}

/**
 * Rows are kept and dropped where products wait for memory, and not where the L2 has written most of them to memory before they are
 * read: to drop a line takes a request. Both products and the sum on an H100, whose L2 has 50 MB: with 128 rows an expert and 67 MB of
 * rows (2048 tokens of qwen3-30b-a3b) 516 us became 506, with 512 rows 214 became 215 (medium, 4096 tokens, 17 MB) and
 * 1297 became 1307 (gpt-oss-20b's shape, 94 MB), with 2048 rows 699 became 706 (medium, 16384 tokens, 67 MB).
 */
const MOST_SHARE = 128;
const MOST_OF_L2 = 2;

/** Whether the L2 holds experts of so many bytes of weights in all; unknown ones are taken for many. */
export function inCache({ facts }: Facts, weightBytes = Number.POSITIVE_INFINITY): boolean {
  return weightBytes <= facts.l2Bytes;
}

/** Whether the L2 holds one of so many experts of so many bytes in all. */
export function expertInCache(
  context: Facts,
  weightBytes: number | undefined,
  experts: number,
): boolean {
  return inCache(context, weightBytes === undefined ? undefined : weightBytes / experts);
}

/** Whether the L2 shall keep these rows until they have been read, and then drop them. */
export function passThrough(context: Facts, { bytes, share, weightBytes }: RowsBetween): boolean {
  const few = share <= MOST_SHARE && bytes <= MOST_OF_L2 * context.facts.l2Bytes;
  return few && !inCache(context, weightBytes);
}
