/**
 * Who chose whom: for every 32 tokens and expert a word, with a bit for each of the
 * tokens that chose the expert. `route` writes the bits (or `mark`, for ids that the
 * host wrote, into sets that are cleared in front of it), `bucket` counts them.
 *
 * The sets belong to the ids buffer, since that is what both operators name. The
 * counts buffer is `route`'s argument but is written by `bucket`, so the sets also
 * remember which one it is.
 */

import type { CudaBuffer } from "../buffer.ts";
import type { Kernel, KernelSet } from "../bundle/kernel-set.ts";
import type { OperatorContext } from "./context.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { Scratch } from "./scratch.ts";

/** Tokens to a word. */
export const WORD_TOKENS = 32;

/** Most experts that a token can choose: the routing kernel has a lane of a warp for each. */
export const MOST_CHOICES = 32;

export interface ChoiceSets {
  readonly buffer: CudaBuffer;
  readonly words: number;
  /** Where the counts of these sets go: the counts of the `route` operator that was encoded last. */
  counts: CudaBuffer | undefined;
}

const sets = new Scratch<ChoiceSets>();

/** The sets of an ids buffer for rows of `padded` experts. */
export function setsOf(
  ids: CudaBuffer,
  padded: number,
  mostTokens: number,
  context: OperatorContext,
): ChoiceSets {
  return sets.of(ids, [padded, mostTokens], () => {
    const words = Math.ceil(mostTokens / WORD_TOKENS) * padded;
    const buffer = context.scratch(words * 4, `choices of ${ids.label}`);
    return { buffer, words, counts: undefined };
  });
}

/** The sets that `setsOf` has made, if it has. */
export function findSets(
  ids: CudaBuffer,
  padded: number,
  mostTokens: number,
): ChoiceSets | undefined {
  return sets.find(ids, padded, mostTokens);
}

/** The kernel for so many experts: the smallest that has room for them. */
export function kernelForExperts(
  to: OperatorEncoder,
  kernels: KernelSet,
  operator: "route" | "bucket",
  experts: number,
  selects: Readonly<Record<string, string | boolean>> = {},
): { readonly kernel: Kernel; readonly padded: number } {
  const found = kernels
    .all({ operator, ...selects })
    .map((kernel) => ({ kernel, padded: Number(kernel.entry.selects["experts"]) }))
    .sort((a, b) => a.padded - b.padded);
  const fits = found.find(({ padded }) => padded >= experts);
  if (fits !== undefined) return fits;
  const most = found.at(-1)?.padded ?? kernels.missing({ operator, ...selects });
  return to.fail(`experts is ${experts}`, `Use at most ${most}.`);
}
