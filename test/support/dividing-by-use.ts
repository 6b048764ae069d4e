/** A policy for tests that look at what becomes of its divisions: experts by heat, budgets by use. */

import {
  type Division,
  placeByHeat,
  type SlicePolicy,
  weighByWork,
} from "../../src/control/slices/policy.ts";

/** @param more asked at every plan for what else its division says */
export function dividingByUse(more: () => Partial<Division> = () => ({})): SlicePolicy {
  return {
    name: "by use",
    place: placeByHeat,
    divide: (_view, work) => ({
      weights: weighByWork((slice) => work[slice].share),
      ...more(),
      holdSmallChanges: true,
      why: "to see",
    }),
  };
}
