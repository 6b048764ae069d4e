/** How much work a batch is for every slice, with experts on the slices as they are or should be. */

import type { ExpertSliceId } from "../plan.ts";
import type { LoadView, WorkBySlice } from "./policy.ts";

/** By expert the chance that at least one of the batch's slots falls on it. */
export function chancesOfUse({ counts, shares }: LoadView): Float64Array {
  const slots = Math.max(
    1,
    counts.reduce((sum, count) => sum + count, 0),
  );
  return shares.map((share) => 1 - (1 - Math.min(1, share)) ** slots);
}

/**
 * @param sliceOf by expert the slice that it is on
 * @param used what `chancesOfUse` says: it takes longer than all the rest, and is the same wherever experts are
 */
export function workOf(
  { counts, shares }: LoadView,
  sliceOf: readonly ExpertSliceId[],
  used: Float64Array,
): WorkBySlice {
  const none = () => ({ experts: 0, tokens: 0, share: 0, weightReads: 0 });
  const work = { A: none(), B: none(), C: none() };
  sliceOf.forEach((slice, expert) => {
    const at = work[slice];
    at.experts++;
    at.tokens += counts[expert] as number;
    at.share += shares[expert] as number;
    at.weightReads += used[expert] as number;
  });
  return work;
}
