/**
 * From a policy's division to budgets that fit the device, and no more changes
 * than they are worth: graphs follow shared budgets, but a partition is part of
 * every captured graph, so a new one costs a capture for each batch size in use.
 *
 * Compute follows the policy. Bandwidth and cache follow what they are for:
 * bandwidth goes where weights have to be read (every expert in use once,
 * however few tokens it has), cache where reads repeat (tokens). Whether the
 * device enforces either is its own affair; here they are divided all the same.
 */

import {
  BUDGETED_SLICE_IDS,
  type BudgetedSliceId,
  EXPERT_SLICE_IDS,
  type SliceBudget,
} from "../plan.ts";
import { apportion } from "./apportion.ts";
import type { Demands } from "./demands.ts";
import type { PlanningDevice } from "./planning-device.ts";
import { type Division, percent, type WorkBySlice, weighByWork } from "./policy.ts";

/**
 * Budgets stay as they are unless the step is predicted to get shorter by this
 * part. With partitions an eager step and a capture together cost a few steps' time, so
 * a tenth is earned back within some tens of steps; smaller gains drown in the noise of
 * the load they are predicted from, partitions or not.
 */
const MIN_BUDGET_GAIN = 0.1;

/** Bandwidth and cache shares stay unless one moves by this part of the whole; below it they only follow noise. */
const MIN_SHARE_MOVE = 0.1;

/** Bandwidth shares are multiples of this (2^-10), so that they add up to 1 exactly. */
const BANDWIDTH_QUANTA = 1024;

type PerSlice = Readonly<Record<BudgetedSliceId, number>>;

interface Held {
  readonly parts: PerSlice;
  /** The demands it was made under. */
  readonly demands: number;
}

export class Budgets {
  readonly #device: PlanningDevice;
  readonly #quanta: number;
  readonly #demands: Demands;
  readonly #priorities: PerSlice;
  #compute: Held | undefined;
  #bandwidth: Held | undefined;
  #cache: Held | undefined;

  constructor(device: PlanningDevice, quanta: number, demands: Demands, priorities: PerSlice) {
    this.#device = device;
    this.#quanta = quanta;
    this.#demands = demands;
    this.#priorities = priorities;
  }

  /** The next plan's budgets, frozen, and why they are so. @param cache what `divideCache` said for the same plan */
  next(
    division: Division,
    work: WorkBySlice,
    cache: PerSlice | null,
  ): {
    readonly budgets: Readonly<Record<BudgetedSliceId, SliceBudget>>;
    readonly reasons: Readonly<Record<BudgetedSliceId, string>>;
  } {
    const { parts, kept } = this.#divideCompute(division, work);
    const bandwidth = this.#divideBandwidth(work);
    const budget = (slice: BudgetedSliceId): SliceBudget =>
      Object.freeze({
        computeUnits: parts[slice] * this.#device.computeUnitGranularity,
        bandwidthShare: bandwidth[slice] / BANDWIDTH_QUANTA,
        cacheBytes: cache === null ? null : cache[slice],
      });
    const reason = (slice: BudgetedSliceId): string => {
      const target = this.#demands.target(slice);
      if (parts[slice] === target) return "as resized";
      if (target !== undefined && parts[slice] < target) {
        const wanted = target * this.#device.computeUnitGranularity;
        return `resized to ${wanted}, but what other slices keep or were resized to leaves fewer`;
      }
      if (parts[slice] === this.#demands.reserved(slice)) return "as reserved";
      if (kept) return `kept, as dividing anew would save less than ${percent(MIN_BUDGET_GAIN)}`;
      return division.why;
    };
    return { budgets: bySlice(budget), reasons: bySlice(reason) };
  }

  /** Bytes of cache per slice, or null where the device does not tell. @param work by wanted placement, before limits */
  divideCache(work: WorkBySlice): PerSlice | null {
    const total = this.#device.cacheBytes;
    if (total === null) return null;
    const weights = weighByWork((slice) => work[slice].share);
    const parts = this.#apportion(total, weights, (slice) => this.#demands.reservedCache[slice]);
    this.#cache = this.#hold(this.#cache, parts, total * MIN_SHARE_MOVE);
    return this.#cache.parts;
  }

  #divideCompute(
    division: Division,
    work: WorkBySlice,
  ): { readonly parts: PerSlice; readonly kept: boolean } {
    const demands = this.#demands;
    const floor = (slice: BudgetedSliceId) =>
      Math.max(leastFor(slice, work), demands.reserved(slice));
    const target = (slice: BudgetedSliceId) => demands.target(slice);
    const parts = this.#apportion(this.#quanta, division.weights, floor, target);
    const held = this.#compute;
    const holds =
      division.holdSmallChanges &&
      held?.demands === demands.version &&
      BUDGETED_SLICE_IDS.every((slice) => held.parts[slice] >= floor(slice)) &&
      stepTime(division, parts) >= (1 - MIN_BUDGET_GAIN) * stepTime(division, held.parts);
    if (holds) {
      const same = BUDGETED_SLICE_IDS.every((slice) => held.parts[slice] === parts[slice]);
      return { parts: held.parts, kept: !same };
    }
    this.#compute = { parts, demands: demands.version };
    return { parts, kept: false };
  }

  #divideBandwidth(work: WorkBySlice): PerSlice {
    const weights = weighByWork((slice) => work[slice].weightReads);
    const floor = (slice: BudgetedSliceId) => leastFor(slice, work);
    const parts = this.#apportion(BANDWIDTH_QUANTA, weights, floor);
    const served = BUDGETED_SLICE_IDS.every(
      (slice) => (this.#bandwidth?.parts[slice] ?? 0) >= floor(slice),
    );
    const held = served ? this.#bandwidth : undefined;
    this.#bandwidth = this.#hold(held, parts, BANDWIDTH_QUANTA * MIN_SHARE_MOVE);
    return this.#bandwidth.parts;
  }

  #hold(held: Held | undefined, parts: PerSlice, room: number): Held {
    const near =
      held?.demands === this.#demands.version &&
      BUDGETED_SLICE_IDS.every((slice) => Math.abs(held.parts[slice] - parts[slice]) <= room);
    return near ? held : { parts, demands: this.#demands.version };
  }

  #apportion(
    total: number,
    weights: PerSlice,
    floor: (slice: BudgetedSliceId) => number,
    target?: (slice: BudgetedSliceId) => number | undefined,
  ): PerSlice {
    const claims = BUDGETED_SLICE_IDS.map((slice) => ({
      weight: weights[slice],
      floor: floor(slice),
      target: target?.(slice),
      priority: this.#priorities[slice],
    }));
    const [A = 0, B = 0, C = 0, D = 0] = apportion(total, claims);
    return { A, B, C, D };
  }
}

/**
 * One quantum for the auxiliary slice and for every slice that holds experts,
 * with tokens or without: the next batch is on its way before its counts are
 * known, and may bring tokens to any of them.
 */
function leastFor(slice: BudgetedSliceId, work: WorkBySlice): number {
  return slice === "D" || work[slice].experts > 0 ? 1 : 0;
}

function bySlice<T>(of: (slice: BudgetedSliceId) => T): Readonly<Record<BudgetedSliceId, T>> {
  return { A: of("A"), B: of("B"), C: of("C"), D: of("D") };
}

/** Time of a step in arbitrary units, if slices run side by side and each takes its work over its units. */
function stepTime({ weights }: Division, parts: PerSlice): number {
  return Math.max(
    ...[...EXPERT_SLICE_IDS, "D" as const].map((slice) =>
      weights[slice] > 0 ? weights[slice] / parts[slice] : 0,
    ),
  );
}
