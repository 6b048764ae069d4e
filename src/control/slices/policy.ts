/**
 * What a slice policy is: it says which slice each expert should be on and how
 * the device should be divided, and nothing more. Pins, limits, reservations,
 * rounding and the making of the plan are the manager's work and the same for
 * every policy, and it refuses what cannot be (checks.ts), so no policy can exceed
 * the device or leave an expert unserved.
 */

import type { Realisation } from "../../execution/device.ts";
import type { StepJoules } from "../observation.ts";
import type { BudgetedSliceId, ExpertSliceId, Heat, Plan } from "../plan.ts";

/** What a policy sees of the load. */
export interface LoadView {
  readonly experts: number;
  /** Tokens per expert of the batch at hand. */
  readonly counts: Int32Array;
  /** Each expert's share of the tokens: the profile's average, or the batch's own where there is no profile. */
  readonly shares: Float64Array;
  readonly heats: readonly Heat[];
  /** Where the shares are from, in words that end a sentence, e.g. `"of recent tokens"`. */
  readonly basis: string;
  /** Pieces that compute budgets are made of. */
  readonly quanta: number;
  /** How budgets may be realised, the default first. */
  readonly realisations: readonly Realisation[];
  /** Whether the device may be left undivided: not where budgets or a realisation were asked for by hand, which would be put to no use. */
  readonly mayUndivide: boolean;
}

/** Where experts should be. */
export interface Placing {
  /** By expert index. */
  readonly slices: readonly ExpertSliceId[];
  /** By expert index: of two that compete for room on a slice the larger stays. 0 or more. */
  readonly worth: ArrayLike<number>;
  /** Why an expert should be there: the end of a sentence about it. */
  why(expert: number): string;
}

/** What a slice has on it, after pins and limits. */
export interface SliceWork {
  readonly experts: number;
  /** Tokens of the batch at hand. */
  readonly tokens: number;
  /** Sum of its experts' shares. */
  readonly share: number;
  /** How many of its experts a batch of this size is expected to use; the weights of each are read once. */
  readonly weightReads: number;
}

/** Work of the three slices that experts are on. */
export type WorkBySlice = Readonly<Record<ExpertSliceId, SliceWork>>;

/** How the device should be divided. */
export interface Division {
  /** Relative parts of the compute units, 0 or more. They stand for the work: twice the weight, twice the time on equal units. */
  readonly weights: Readonly<Record<BudgetedSliceId, number>>;
  /** False if the policy weighs itself whether a change is worth it. */
  readonly holdSmallChanges: boolean;
  /** Why the parts are what they are: ends a sentence about a slice's compute units. */
  readonly why: string;
  /** True: not at all. Slices take turns with the whole device, on one stream, and the parts are put to no use. */
  readonly undivided?: boolean;
  /** Absent: no opinion. */
  readonly realisation?: { readonly kind: Realisation; readonly reason: string };
}

/** What running under a plan was measured to cost. */
export interface Measurement {
  readonly plan: Plan;
  readonly seconds: number;
  readonly tokens: number;
  /** Energy of all the steps since the last one that came with joules, this one included. */
  readonly joules: StepJoules;
  /**
   * False: its time says nothing of the plan, as that of a step that was captured or ran eagerly,
   * or had no lanes. Absent: true.
   */
  readonly comparable?: boolean;
}

/** Where experts are to be and how the device is to be divided: implement it for a policy of your own. */
export interface SlicePolicy {
  readonly name: string;
  place(view: LoadView): Placing;
  divide(view: LoadView, work: WorkBySlice): Division;
  /** Told of every measured step, with the division that its plan was made from. */
  observe?(division: Division, measurement: Measurement): void;
}

/**
 * The auxiliary slice's part of the device. Routing and aggregation move a few
 * per cent of the bytes that the experts move, but everything waits for them,
 * and a shared expert is as large as one routed expert.
 */
export const AUXILIARY_SHARE = 1 / 8;

const SLICE_OF_HEAT: Readonly<Record<Heat, ExpertSliceId>> = { hot: "A", warm: "B", cold: "C" };

/** Hot experts on A, warm ones on B, cold ones on C. */
export function placeByHeat({ heats, shares, basis, experts }: LoadView): Placing {
  return {
    slices: heats.map((heat) => SLICE_OF_HEAT[heat]),
    worth: shares,
    why: (expert) => {
      const share = shares[expert] as number;
      const times = (share * experts).toFixed(2);
      return `is ${heats[expert]} with ${percent(share)} ${basis}, ${times} times the even share`;
    },
  };
}

/** Weights in proportion to the work, and the auxiliary slice's fixed share. */
export function weighByWork(work: (slice: ExpertSliceId) => number): Division["weights"] {
  const [A, B, C] = [work("A"), work("B"), work("C")];
  const all = A + B + C;
  const D = all > 0 ? (all * AUXILIARY_SHARE) / (1 - AUXILIARY_SHARE) : 1;
  return { A, B, C, D };
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}
