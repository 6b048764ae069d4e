/** Made-up machines for the adaptive policy, whose best division is known, and steps of them. */

import type { BudgetedSliceId, Plan } from "../../src/control/plan.ts";
import type { SliceManager } from "../../src/control/slices/manager.ts";
import type { PlanningDevice } from "../../src/control/slices/planning-device.ts";
import type { Random } from "../../src/workload/random.ts";
import { normalNumber } from "./loads.ts";

/** Half of the tokens hot, an eighth warm, the rest cold. */
export const LOAD = Int32Array.of(512, 256, 128, 50, 50, 16, 8, 4);
export const MOVED = Int32Array.of(4, 8, 16, 50, 50, 128, 256, 512);
export const SPREAD = Int32Array.of(180, 160, 150, 140, 140, 120, 100, 34);

export type Work = Readonly<Record<BudgetedSliceId, number>>;

const SLICES = ["A", "B", "C", "D"] as const;

/** Of the device what a slice keeps busy that has it for itself: so little that dividing always pays. */
export const ALONE = 1 / 64;

/** Seconds of a step in which each slice takes its work over its units, all at once; in turn they keep `alone` of the device busy. */
export function sideBySide(plan: Plan, work: Work, alone = ALONE): number {
  const units = (slice: BudgetedSliceId) => plan.slices[slice].budget.computeUnits;
  if (plan.undivided) {
    const all = SLICES.reduce((sum, slice) => sum + units(slice), 0);
    return SLICES.reduce((sum, slice) => sum + work[slice], 0) / (all * alone);
  }
  return Math.max(...SLICES.map((slice) => work[slice] / Math.max(1e-9, units(slice))));
}

export function best(device: PlanningDevice, work: Work): number {
  return (work.A + work.B + work.C + work.D) / device.computeUnits;
}

export interface Machine {
  readonly seconds: (plan: Plan) => number;
  readonly joules?: (plan: Plan) => number;
  readonly noise?: number;
}

export function simulate(
  manager: SliceManager,
  machine: Machine,
  steps: number,
  random: Random,
  counts = LOAD,
): Plan[] {
  return Array.from({ length: steps }, () => {
    const plan = manager.allocate({ counts });
    const factor = Math.exp((machine.noise ?? 0) * normalNumber(random));
    const seconds = machine.seconds(plan) * factor;
    manager.observe({ plan, seconds, tokens: 1024, joules: machine.joules?.(plan) ?? null });
    return plan;
  });
}

export const meanCost = (plans: readonly Plan[], seconds: (plan: Plan) => number) =>
  plans.reduce((sum, plan) => sum + seconds(plan), 0) / plans.length;

/**
 * How near to the best a search has to come: its smallest move is a thirty-second of the device, a fifth of what slice B needs, and by
 * chance it may stop one short.
 */
export const NEAR = 1.25;

/** Cold experts read as many weights as hot ones, and so cost far more than their tokens say. */
export const COLD_IS_DEAR: Work = { A: 30, B: 15, C: 50, D: 5 };
