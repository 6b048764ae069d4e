/**
 * A plan's budgets on the lanes that it has. What is set aside of a cache is lost to all
 * else, so it is set aside only for slices whose weights are told from others' by the lane
 * that reads them: a single lane serves all slices, and several slices that share a lane
 * are charged to the first.
 */

import type { ComputeBudgets } from "../execution/device.ts";
import {
  computeBudgetsOf,
  EXPERT_SLICE_IDS,
  type ExpertSliceId,
  GROUP_OF_SLICE,
  type Plan,
  type SliceId,
} from "./plan.ts";

/** The slices without a lane to be charged to. @param sliceOfLane of a stream assignment */
export function slicesWithoutLane(sliceOfLane: readonly SliceId[]): readonly ExpertSliceId[] {
  return EXPERT_SLICE_IDS.filter((id) => sliceOfLane.length === 1 || !sliceOfLane.includes(id));
}

/** What a device is told for a plan. @param sliceOfLane of its stream assignment */
export function budgetsInLanes(plan: Plan, sliceOfLane: readonly SliceId[]): ComputeBudgets {
  const budgets = computeBudgetsOf(plan);
  if (budgets.cacheBytes === undefined) return budgets;
  const cacheBytes = [...budgets.cacheBytes];
  for (const id of slicesWithoutLane(sliceOfLane)) cacheBytes[GROUP_OF_SLICE[id]] = 0;
  return { ...budgets, cacheBytes };
}
