/** A plan as plain data for reports, and what changed from one to another. */

import {
  type Heat,
  type PlacementExplanation,
  type Plan,
  SLICE_IDS,
  type Slice,
  type SliceBudget,
  type SliceId,
} from "../../control/plan.ts";

export interface PlanSummary {
  readonly version: number;
  readonly policy: string;
  readonly realisation: string;
  readonly realisationReason: string;
  /** Of the experts. One: slices take turns with the whole device, and their compute units are put to no use. */
  readonly lanes: number;
  readonly slices: readonly Slice[];
  /** Every expert: which slice, how hot, which budget, and why. */
  readonly experts: readonly PlacementExplanation[];
}

export interface ExpertMove {
  readonly expert: number;
  readonly from: { readonly slice: SliceId; readonly heat: Heat };
  readonly to: { readonly slice: SliceId; readonly heat: Heat };
}

export interface BudgetChange {
  readonly slice: SliceId;
  readonly from: SliceBudget;
  readonly to: SliceBudget;
}

/** @param lanes that the experts were spread over under the plan */
export function planSummary(plan: Plan, lanes: number): PlanSummary {
  const { version, policy, realisation, realisationReason } = plan;
  return {
    version,
    policy,
    realisation,
    realisationReason,
    lanes,
    slices: SLICE_IDS.map((id) => plan.slices[id]),
    experts: plan.explain(),
  };
}

/** Experts that are on another slice. */
export function movesBetween(before: PlanSummary, after: PlanSummary): readonly ExpertMove[] {
  return before.experts.flatMap((from, i) => {
    const to = after.experts[i] as PlacementExplanation;
    if (to.slice === from.slice) return [];
    return [
      {
        expert: from.expert,
        from: { slice: from.slice, heat: from.heat },
        to: { slice: to.slice, heat: to.heat },
      },
    ];
  });
}

/** Slices with another budget. */
export function budgetChanges(before: PlanSummary, after: PlanSummary): readonly BudgetChange[] {
  return before.slices.flatMap(({ id, budget: from }, i) => {
    const { budget: to } = after.slices[i] as Slice;
    const same =
      from.computeUnits === to.computeUnits &&
      from.bandwidthShare === to.bandwidthShare &&
      from.cacheBytes === to.cacheBytes;
    return same ? [] : [{ slice: id, from, to }];
  });
}
