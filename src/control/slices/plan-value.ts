/**
 * The making of a plan: everything the manager decided, as one frozen value that
 * can tell, in words, why each expert is where it is. Sentences are put together
 * only when somebody asks; a plan is made between two steps and should cost as
 * little as possible.
 */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import type { MigInstance, Realisation } from "../../execution/device.ts";
import {
  BUDGETED_SLICE_IDS,
  type BudgetedSliceId,
  EXPERT_SLICE_IDS,
  type ExpertLoad,
  type ExpertSliceId,
  type Heat,
  type Placement,
  type PlacementExplanation,
  type Plan,
  type Slice,
  type SliceBudget,
  type SliceId,
} from "../plan.ts";
import type { PlanningDevice } from "./planning-device.ts";
import { percent } from "./policy.ts";

/** What the manager decided. */
export interface Decisions {
  readonly version: number;
  readonly policy: string;
  readonly realisation: Realisation;
  readonly realisationReason: string;
  readonly undivided: boolean;
  readonly load: ExpertLoad;
  readonly heats: readonly Heat[];
  /** By expert index. */
  readonly sliceOf: readonly ExpertSliceId[];
  readonly budgets: Readonly<Record<BudgetedSliceId, SliceBudget>>;
  /** Why the compute units are what they are: the end of a sentence about them. */
  readonly budgetReasons: Readonly<Record<BudgetedSliceId, string>>;
  readonly priorities: Readonly<Record<SliceId, number>>;
  /** Bytes of cache reserved by hand. */
  readonly reservedCache: Readonly<Record<BudgetedSliceId, number>>;
  /** Why an expert is on its slice: the end of a sentence about it. */
  why(expert: number): string;
}

const ROLES: Readonly<Record<SliceId, string>> = {
  A: "hot experts",
  B: "warm experts",
  C: "cold experts, queued and time-sliced",
  D: "routing, aggregation, residual and shared experts",
  E: "router backward",
  F: "MIG instances, for processes of their own",
};

const NO_BUDGET = { computeUnits: 0, bandwidthShare: 0 };

export function makePlan(decisions: Decisions, device: PlanningDevice): Plan {
  const { version, policy, realisation, realisationReason, undivided, load, heats, sliceOf } =
    decisions;
  // The caller may fill its counts anew for the next batch; explanations speak of this one.
  const counts = load.counts.slice();
  const slices = makeSlices(decisions, counts, device);

  let placements: readonly Placement[] | undefined;
  const describe = (slice: ExpertSliceId, expert: number): Placement =>
    Object.freeze({
      expert,
      slice,
      heat: heats[expert] as Heat,
      tokens: counts[expert] as number,
      reason: `Expert ${expert} ${decisions.why(expert)}; slice ${slice} runs it with ${budgetInWords(decisions, slice, device)}.`,
    });
  const describeAll = () => {
    placements ??= Object.freeze(sliceOf.map(describe));
    return placements;
  };
  function explain(): readonly PlacementExplanation[];
  function explain(expert: number): PlacementExplanation;
  function explain(expert?: number): PlacementExplanation | readonly PlacementExplanation[] {
    const withBudget = (placement: Placement) => ({
      ...placement,
      budget: slices[placement.slice].budget,
    });
    if (expert === undefined) return describeAll().map(withBudget);
    const slice = Number.isInteger(expert) ? sliceOf[expert] : undefined;
    if (slice === undefined) {
      throw new InvalidArgumentError(
        `There is no expert ${shown(expert)} in this plan; it has experts 0 to ${sliceOf.length - 1}.`,
      );
    }
    return withBudget(describe(slice, expert));
  }

  const cacheReserved = BUDGETED_SLICE_IDS.some((id) => decisions.reservedCache[id] > 0);
  return Object.freeze({
    version,
    policy,
    realisation,
    realisationReason,
    undivided,
    slices,
    get placements() {
      return describeAll();
    },
    load,
    budgetKey: budgetKey(realisation, slices),
    ...(cacheReserved && { reservedCacheBytes: Object.freeze({ ...decisions.reservedCache }) }),
    explain,
  });
}

function makeSlices(
  { budgets, priorities, sliceOf }: Decisions,
  counts: Int32Array,
  device: PlanningDevice,
): Plan["slices"] {
  const cacheBytes = device.cacheBytes === null ? null : 0;
  const slice = (id: SliceId, rest: Partial<Slice> & Pick<Slice, "state" | "reason">): Slice =>
    Object.freeze({
      id,
      role: ROLES[id],
      priority: priorities[id],
      budget: Object.freeze({ ...NO_BUDGET, cacheBytes }),
      experts: Object.freeze([]),
      ...rest,
    });

  const experts: Record<ExpertSliceId, number[]> = { A: [], B: [], C: [] };
  const tokens: Record<ExpertSliceId, number> = { A: 0, B: 0, C: 0 };
  sliceOf.forEach((id, expert) => {
    experts[id].push(expert);
    tokens[id] += counts[expert] as number;
  });
  const [A, B, C] = EXPERT_SLICE_IDS.map((id) => {
    const held = experts[id].length;
    return slice(id, {
      budget: budgets[id],
      experts: Object.freeze(experts[id]),
      state: tokens[id] > 0 ? "active" : "idle",
      reason:
        tokens[id] > 0
          ? `It has ${counted(held, "expert")} with ${counted(tokens[id], "token")}.`
          : held > 0
            ? `It has ${counted(held, "expert")}, without tokens in this load.`
            : "No expert is on it.",
    });
  }) as [Slice, Slice, Slice];
  return Object.freeze({
    A,
    B,
    C,
    D: slice("D", {
      budget: budgets.D,
      state: "active",
      reason: "Every step is routed and aggregated.",
    }),
    E: slice("E", {
      state: "reserved",
      reason: "Kept for the router's backward pass; inference has none.",
    }),
    F: slice("F", ofMig(device)),
  });
}

/** No plan puts experts there: an instance is a device of its own. So F says what there is, and how to use it. */
function ofMig({ realisations, migInstances }: PlanningDevice) {
  const { mig } = realisations;
  if (!mig.available) return { state: "absent", reason: mig.reason } as const;
  const reason = `Plans use no MIG instance; openMigPool() has a worker process for each of ${counted(migInstances.length, "instance")}: ${migInstances.map(inWords).join(", ")}.`;
  return { state: "idle", reason, migInstances: Object.freeze([...migInstances]) } as const;
}

function inWords({ profile, uuid, computeUnits, memoryBytes }: MigInstance): string {
  const sizes = [
    computeUnits === null ? "compute units unknown" : `${computeUnits} compute units`,
    memoryBytes === null ? "memory unknown" : `${(memoryBytes / MIB).toFixed(0)} MiB`,
  ];
  return `${profile} ${uuid} (${sizes.join(", ")})`;
}

function budgetKey(realisation: Realisation, slices: Plan["slices"]): string {
  const units = BUDGETED_SLICE_IDS.map((id) => `${id}${slices[id].budget.computeUnits}`);
  return `${realisation} ${units.join(" ")}`;
}

const MIB = 2 ** 20;

function counted(n: number, what: string): string {
  return `${n} ${what}${n === 1 ? "" : "s"}`;
}

function budgetInWords(
  { budgets, budgetReasons, undivided }: Decisions,
  slice: BudgetedSliceId,
  device: PlanningDevice,
): string {
  const { enforces, computeUnits } = device;
  const budget = budgets[slice];
  const units = undivided
    ? `all ${computeUnits} compute units, in turn with the other slices (${budgetReasons[slice]})`
    : `${budget.computeUnits} of ${computeUnits} compute units (${budgetReasons[slice]})`;
  const { bandwidth, cache } = enforces;
  const caveat = (enforced: { readonly available: boolean }) =>
    enforced.available ? "" : " (accounted for, not enforced)";
  const bytes =
    budget.cacheBytes === null
      ? "a cache of unknown size"
      : `${(budget.cacheBytes / MIB).toFixed(1)} MiB of cache${caveat(cache)}`;
  return `${units}, ${percent(budget.bandwidthShare)} of the bandwidth${caveat(bandwidth)} and ${bytes}`;
}
