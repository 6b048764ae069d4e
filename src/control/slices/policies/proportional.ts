/**
 * Follows the load at hand: experts are placed by their heat, as everywhere, but
 * slices get compute in proportion to the tokens this batch brings them. Right
 * at once after a jump in the load, and restless when batches differ.
 */

import type { Division, LoadView, Placing, SlicePolicy, WorkBySlice } from "../policy.ts";
import { placeByHeat, weighByWork } from "../policy.ts";

/** Places experts by heat, and divides the device in proportion to the tokens of the batch at hand. */
export class ProportionalPolicy implements SlicePolicy {
  readonly name = "proportional";

  place(view: LoadView): Placing {
    return placeByHeat(view);
  }

  divide(_view: LoadView, work: WorkBySlice): Division {
    const tokens = work.A.tokens + work.B.tokens + work.C.tokens;
    // A batch without tokens has no proportions; the average shares stand in.
    const measure = tokens > 0 ? "tokens" : "share";
    return {
      weights: weighByWork((slice) => work[slice][measure]),
      holdSmallChanges: true,
      why: `in proportion to ${tokens > 0 ? "this batch's tokens" : "recent use, as this batch has no tokens"}`,
    };
  }
}
