/**
 * Follows recent use: experts are placed by their heat, and slices get compute
 * in proportion to their experts' average share of the tokens. Smooth, because
 * the averages are; blind to what this very batch looks like.
 */

import type { Division, LoadView, Placing, SlicePolicy, WorkBySlice } from "../policy.ts";
import { placeByHeat, weighByWork } from "../policy.ts";

/** Places experts by heat, and divides the device in proportion to their recent use. */
export class DynamicPolicy implements SlicePolicy {
  readonly name = "dynamic";

  place(view: LoadView): Placing {
    return placeByHeat(view);
  }

  divide(_view: LoadView, work: WorkBySlice): Division {
    return {
      weights: weighByWork((slice) => work[slice].share),
      holdSmallChanges: true,
      why: "in proportion to recent use",
    };
  }
}
