/**
 * The plan: who runs where, as a plain value. The slice manager makes it, the
 * stream scheduler and the layer read it, and it is all that the control plane
 * tells the data plane.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import {
  type ComputeBudgets,
  MAX_GROUPS,
  type MigInstance,
  type Realisation,
} from "../execution/device.ts";

/** A hot, B warm, C cold (queued, time-sliced), D auxiliary (routing, aggregation, residual, shared experts), E router backward (reserved), F MIG. */
export type SliceId = "A" | "B" | "C" | "D" | "E" | "F";

/** The slices that experts can be on. */
export type ExpertSliceId = "A" | "B" | "C";

/** The slices that get a part of the device. */
export type BudgetedSliceId = ExpertSliceId | "D";

export const EXPERT_SLICE_IDS: readonly ExpertSliceId[] = ["A", "B", "C"];

export const BUDGETED_SLICE_IDS: readonly BudgetedSliceId[] = ["A", "B", "C", "D"];

export const SLICE_IDS: readonly SliceId[] = ["A", "B", "C", "D", "E", "F"];

/** Device compute group that a slice's work is charged to. */
export const GROUP_OF_SLICE: Readonly<Record<SliceId, number>> = {
  A: 0,
  B: 1,
  C: 2,
  D: 3,
  E: 4,
  F: 5,
};

/**
 * Device compute group of work that is charged to no slice, and so has the whole device:
 * the last one, which slices would need two more of to reach.
 */
export const UNBUDGETED_GROUP = MAX_GROUPS - 1;

/** How busy an expert has been lately. */
export type Heat = "hot" | "warm" | "cold";

/** What a slice may use. */
export interface SliceBudget {
  /** In the device's compute units; a multiple of its granularity. */
  readonly computeUnits: number;
  /** Share of the device's memory bandwidth, 0 to 1. */
  readonly bandwidthShare: number;
  /** Bytes of last-level cache; null where the device does not tell its size. */
  readonly cacheBytes: number | null;
}

/** A part of the device: who is on it, and what it may use. */
export interface Slice {
  readonly id: SliceId;
  readonly role: string;
  /** `active` has work, `idle` has none now, `reserved` waits for work of a later kind, `absent` cannot be had here. */
  readonly state: "active" | "idle" | "reserved" | "absent";
  /** Why it is in this state, in words. */
  readonly reason: string;
  /** Higher keeps its budget and its experts longer. */
  readonly priority: number;
  readonly budget: SliceBudget;
  /** Expert indices, ascending. */
  readonly experts: readonly number[];
  /** Of slice F: the instances of the device's GPU, which `openMigPool()` opens. Absent: none. */
  readonly migInstances?: readonly MigInstance[];
}

/** Why one expert is where it is. */
export interface Placement {
  readonly expert: number;
  readonly slice: ExpertSliceId;
  readonly heat: Heat;
  /** Tokens this plan was made for. */
  readonly tokens: number;
  readonly reason: string;
}

/** What the slice manager needs to know of a batch: tokens per expert. `Buckets` is one. */
export interface ExpertLoad {
  /** Tokens per expert. */
  readonly counts: Int32Array;
}

/** One expert's line in `plan.explain()`. */
export interface PlacementExplanation extends Placement {
  readonly budget: SliceBudget;
}

/** Which expert is on which slice, and what each slice may use: a value, which a later plan replaces and does not change. */
export interface Plan {
  /** Counts up with every plan a manager makes. */
  readonly version: number;
  readonly policy: string;
  readonly realisation: Realisation;
  /** Why this realisation, in words. */
  readonly realisationReason: string;
  /** Whether slices take turns with the whole device, on one stream; their compute units are then put to no use. */
  readonly undivided: boolean;
  readonly slices: Readonly<Record<SliceId, Slice>>;
  /** By expert index. */
  readonly placements: readonly Placement[];
  /** The load the plan was made for: the very object, so that buckets find their way to `schedule`. */
  readonly load: ExpertLoad;
  /** Same string, same compute budgets and realisation: the part of a graph's key that the plan decides, unless budgets are shared. */
  readonly budgetKey: string;
  /** Bytes of cache that were reserved by hand, by slice; absent: none. */
  readonly reservedCacheBytes?: Readonly<Record<BudgetedSliceId, number>>;
  /** For every expert (or the one asked for): which slice, which budget and why. */
  explain(): readonly PlacementExplanation[];
  explain(expert: number): PlacementExplanation;
}

/** @throws InvalidArgumentError unless it is a plan, and not, say, the load it was made for */
export function requirePlan(plan: Plan): void {
  if (SLICE_IDS.every((id) => Array.isArray(plan?.slices?.[id]?.experts))) return;
  throw new InvalidArgumentError(
    `plan is ${shown(plan)}; it must be what SliceManager.allocate() gave.`,
  );
}

/**
 * A plan's budgets as a device takes them, by group. Cache is asked for only where it was
 * reserved by hand: what is set aside for one slice's weights is lost to everything else,
 * and how the plan divides the rest of it is an estimate of what will be used.
 */
export function computeBudgetsOf(plan: Plan): ComputeBudgets {
  const { realisation, slices, reservedCacheBytes } = plan;
  const units: number[] = [];
  for (const id of SLICE_IDS) units[GROUP_OF_SLICE[id]] = slices[id].budget.computeUnits;
  if (reservedCacheBytes === undefined) return { realisation, units };
  const cacheBytes = new Array<number>(units.length).fill(0);
  for (const id of BUDGETED_SLICE_IDS) cacheBytes[GROUP_OF_SLICE[id]] = reservedCacheBytes[id];
  return { realisation, units, cacheBytes };
}
