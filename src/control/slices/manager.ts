/**
 * The slice manager: from the load of the experts to the plan of the next steps.
 *
 * A policy says where experts should be and how the device should be divided;
 * the manager sees to it that pins, limits, reservations and the device itself
 * are respected, keeps small changes from happening, chooses how the budgets are
 * made real, and writes it all down in a plan. It runs between steps and may be
 * called at any time: plans are values, and work in flight keeps the one it has.
 */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import { isAmount, requireObject } from "../../execution/checks.ts";
import type { Realisation } from "../../execution/device.ts";
import { HeatScale } from "../heat.ts";
import type { BudgetedSliceId, ExpertLoad, ExpertSliceId, Heat, Plan, SliceId } from "../plan.ts";
import type { ProfileView } from "../profiler.ts";
import { Budgets } from "./budgets.ts";
import {
  checkDivision,
  checkNames,
  checkPlacing,
  checkPolicy,
  checkProfile,
  checkReservation,
  usableRealisations,
} from "./checks.ts";
import { Demands, type Reservation } from "./demands.ts";
import { makePlan } from "./plan-value.ts";
import {
  type PlanningDevice,
  quantaOf,
  requirePlanningDevice,
  thisMachine,
} from "./planning-device.ts";
import { AdaptivePolicy } from "./policies/adaptive.ts";
import { DynamicPolicy } from "./policies/dynamic.ts";
import { ProportionalPolicy } from "./policies/proportional.ts";
import { StaticPolicy } from "./policies/static.ts";
import type { Division, LoadView, Measurement, SlicePolicy } from "./policy.ts";
import { type Room, settle } from "./residence.ts";
import { chancesOfUse, workOf } from "./work.ts";

const POLICIES = {
  static: () => new StaticPolicy(),
  dynamic: () => new DynamicPolicy(),
  proportional: () => new ProportionalPolicy(),
  adaptive: () => new AdaptivePolicy(),
} satisfies Record<string, () => SlicePolicy>;

export type PolicyName = keyof typeof POLICIES;

export const POLICY_NAMES = Object.keys(POLICIES) as readonly PolicyName[];

/**
 * Who keeps its budget longest: hot experts decide how long a step takes, and
 * everything waits for routing and aggregation; cold experts have the most slack.
 */
const PRIORITIES: Readonly<Record<SliceId, number>> = { A: 4, D: 3, B: 2, C: 1, E: 0, F: 0 };

/** What a `SliceManager` plans for, and by which policy. */
export interface SliceManagerOptions {
  /** What to plan for; default: this machine's processors. */
  readonly device?: PlanningDevice;
  /** A built-in policy by name, or one of your own; default "dynamic". */
  readonly policy?: PolicyName | SlicePolicy;
  /** How budgets are made real, `"mig"` excepted; default "auto": shared, unless the adaptive policy measures partitions, or not dividing, to be better. */
  readonly realisation?: Realisation | "auto";
  /** Higher keeps its budget longer; default A 4, D 3, B 2, C 1. */
  readonly priorities?: Partial<Record<BudgetedSliceId, number>>;
  /** Most experts on the hot and on the warm slice; the rest goes one slice down. */
  readonly maxExperts?: { readonly A?: number; readonly B?: number };
  /** Bytes of one expert's weights. With it, cache reserved for a slice of a device that enforces it limits the experts there. */
  readonly expertBytes?: number;
}

/** Divides a device among hot, warm and cold experts: a load and a profile in, a plan out. */
export class SliceManager {
  readonly #device: PlanningDevice;
  readonly #quanta: number;
  readonly #policy: SlicePolicy;
  #realisations: readonly Realisation[];
  /** Why the device would not realise budgets by partitions, once it was asked to. */
  #refused: string | undefined;
  readonly #asked: Realisation | "auto";
  readonly #priorities: Readonly<Record<SliceId, number>>;
  readonly #maxExperts: { readonly A?: number; readonly B?: number };
  readonly #expertBytes: number | undefined;
  readonly #demands: Demands;
  readonly #budgets: Budgets;
  readonly #divisions = new WeakMap<Plan, Division>();
  #scale: HeatScale | undefined;
  #experts = 0;
  #version = 0;
  #heats: readonly Heat[] | undefined;
  #sliceOf: readonly ExpertSliceId[] | undefined;

  /**
   * @throws InvalidArgumentError for options out of range
   * @throws DeviceUnavailableError if the device cannot realise budgets as asked
   */
  constructor(options: SliceManagerOptions = {}) {
    checkNames(options);
    const { device = thisMachine(), policy = "dynamic", realisation = "auto" } = options;
    const { priorities = {}, maxExperts = {}, expertBytes } = options;
    requirePlanningDevice(device);
    requireObject(maxExperts, "maxExperts", "numbers by slice, or left out");
    this.#device = device;
    this.#quanta = quantaOf(device);
    this.#policy =
      typeof policy === "string" ? policyNamed(policy) : checkPolicy(policy, POLICY_NAMES);
    this.#asked = realisation;
    this.#realisations = usableRealisations(device, realisation);
    for (const [slice, most] of Object.entries(maxExperts)) {
      if ((slice !== "A" && slice !== "B") || !Number.isInteger(most) || most < 0) {
        throw new InvalidArgumentError(
          `maxExperts.${slice} is ${shown(most)}; slices A and B can be limited, to a whole number of experts, and slice C takes the rest.`,
        );
      }
    }
    if (expertBytes !== undefined && !(isAmount(expertBytes) && expertBytes > 0)) {
      throw new InvalidArgumentError(
        `expertBytes is ${shown(expertBytes)}; it must be a number above 0.`,
      );
    }
    this.#priorities = { ...PRIORITIES, ...priorities };
    this.#maxExperts = maxExperts;
    this.#expertBytes = expertBytes;
    this.#demands = new Demands(device, this.#quanta, maxExperts);
    this.#budgets = new Budgets(device, this.#quanta, this.#demands, this.#priorities);
  }

  get policy(): string {
    return this.#policy.name;
  }

  /**
   * Plans for a load. Heat comes from the profile where there is one, and from
   * the load's own counts otherwise, by the same thresholds.
   *
   * @param load tokens per expert [experts]; the plan remembers the object
   * @throws InvalidArgumentError if load, profile and pins do not fit together, or a policy of your
   *   own says what cannot be; whatever such a policy throws
   */
  allocate(load: ExpertLoad, profile?: ProfileView): Plan {
    this.#checkLoad(load, profile);
    const view = this.#view(load.counts, profile);
    const placing = this.#policy.place(view);
    checkPlacing(placing, this.#policy, view.experts);
    const { pins } = this.#demands;
    const wanted = placing.slices.map((slice, expert) => pins.get(expert) ?? slice);
    const used = chancesOfUse(view);
    const wantedWork = workOf(view, wanted, used);
    const cache = this.#budgets.divideCache(wantedWork);
    const rooms = { A: this.#room("A"), B: this.#room("B") };
    const { slices: sliceOf, moved } = settle(placing, pins, rooms, this.#sliceOf);

    const work = moved.size === 0 ? wantedWork : workOf(view, sliceOf, used);
    const division = this.#policy.divide(view, work);
    checkDivision(division, this.#policy);
    const { kind, reason } = this.#realise(division);
    const { budgets, reasons } = this.#budgets.next(division, work, cache);
    const plan = makePlan(
      {
        version: ++this.#version,
        policy: this.#policy.name,
        realisation: kind,
        realisationReason: reason,
        undivided: view.mayUndivide && (division.undivided ?? false),
        load,
        heats: view.heats,
        sliceOf,
        budgets,
        budgetReasons: reasons,
        priorities: this.#priorities,
        reservedCache: this.#demands.reservedCache,
        why: (expert) => moved.get(expert) ?? placing.why(expert),
      },
      this.#device,
    );
    this.#experts = load.counts.length;
    this.#sliceOf = sliceOf;
    this.#heats = view.heats;
    this.#divisions.set(plan, division);
    return plan;
  }

  /**
   * Tells the policy what a step under one of this manager's plans has cost.
   *
   * @throws InvalidArgumentError for a plan of another manager or measurements that cannot be
   */
  observe(measurement: Measurement): void {
    requireObject(measurement, "measurement", "what a step showed, { plan, seconds, tokens }");
    const { plan, seconds, tokens, joules, comparable = true } = measurement;
    requireObject(plan, "measurement.plan", "the plan that the step ran under");
    const division = this.#divisions.get(plan);
    if (division === undefined) {
      throw new InvalidArgumentError(
        `Plan ${shown(plan.version)} was not made by this slice manager. Observe it where it was allocated.`,
      );
    }
    requireAmount("seconds", seconds);
    requireAmount("tokens", tokens);
    requireAmount("joules", joules === "lost" ? 0 : (joules ?? 0));
    this.#policy.observe?.(division, { plan, seconds, tokens, joules: joules ?? null, comparable });
  }

  /**
   * The device would not realise a plan's budgets. If nobody asked for that realisation by name, plans from the next one on have
   * another.
   *
   * @param why a sentence
   * @returns whether they have
   */
  refused(realisation: Realisation, why: string): boolean {
    const others = this.#realisations.filter((each) => each !== realisation);
    if (others.length === 0 || others.length === this.#realisations.length) return false;
    this.#realisations = others;
    this.#refused = why;
    return true;
  }

  /**
   * Keeps a minimum for a slice from the next plan on, in use or not; what is
   * left out is not reserved. Where demands exceed the device, the slice of
   * lowest priority gives first, down to its own minimum.
   *
   * @throws InvalidArgumentError if it cannot be met; nothing changes then
   */
  reserve(slice: BudgetedSliceId, minimum: Reservation): void {
    checkReservation(minimum);
    this.#demands.reserve(slice, minimum);
  }

  /**
   * Sets a slice's compute units from the next plan on; the others share the rest. Sizes of several slices that do not all fit
   * beside each other and what is reserved are met in the order of their priorities, as far as there are units left, and plans say so.
   *
   * @param computeUnits a multiple of the granularity, or null for as the policy says
   * @throws InvalidArgumentError if it cannot be met beside what is reserved; nothing changes then
   */
  resize(slice: BudgetedSliceId, computeUnits: number | null): void {
    this.#demands.resize(slice, computeUnits);
  }

  /**
   * Pins an expert to a slice from the next plan on.
   *
   * @throws InvalidArgumentError if there is no such expert or no room; nothing changes then
   */
  migrate(expert: number, slice: ExpertSliceId): void {
    this.#checkExpert(expert);
    this.#demands.pin(expert, slice);
  }

  /**
   * Undoes `migrate`: from the next plan on the policy places the expert again.
   *
   * @throws InvalidArgumentError if there is no such expert
   */
  release(expert: number): void {
    this.#checkExpert(expert);
    this.#demands.unpin(expert);
  }

  /** Before the first load nobody knows how many experts there are. */
  #checkExpert(expert: number): void {
    if (this.#experts > 0 && Number.isInteger(expert) && expert >= this.#experts) {
      throw new InvalidArgumentError(
        `There is no expert ${expert}; the load has experts 0 to ${this.#experts - 1}.`,
      );
    }
  }

  #checkLoad(load: ExpertLoad, profile: ProfileView | undefined): void {
    requireObject(load, "load", "what Router.route() gave, or an object with counts");
    if (profile !== undefined) checkProfile(profile);
    const { counts } = load;
    if (!(counts instanceof Int32Array) || counts.length === 0) {
      throw new InvalidArgumentError(
        "load.counts must be an Int32Array with one entry per expert, such as Buckets has.",
      );
    }
    const negative = counts.findIndex((count) => count < 0);
    if (negative !== -1) {
      throw new InvalidArgumentError(
        `load.counts[${negative}] is ${counts[negative]}; tokens cannot be negative.`,
      );
    }
    if (this.#experts > 0 && counts.length !== this.#experts) {
      throw new InvalidArgumentError(
        `The load has ${counts.length} experts but this slice manager plans for ${this.#experts}. Use a manager per layer.`,
      );
    }
    if (profile !== undefined && profile.experts !== counts.length) {
      throw new InvalidArgumentError(
        `The profile is of ${shown(profile.experts)} experts but the load has ${counts.length}.`,
      );
    }
    this.#demands.checkPins(counts.length);
  }

  #view(counts: Int32Array, profile: ProfileView | undefined): LoadView {
    const experts = counts.length;
    const common = {
      experts,
      counts,
      quanta: this.#quanta,
      realisations: this.#realisations,
      mayUndivide: this.#asked === "auto" && !this.#demands.ofBudgets,
    };
    if (profile !== undefined) {
      // Loops, as from() with a function walks an iterator: 14 us more for 128 experts.
      const shares = new Float64Array(experts);
      for (let expert = 0; expert < experts; expert++) {
        shares[expert] = profile.averageShareOf(expert);
      }
      // All zero until a step with tokens was observed.
      if (shares.some((share) => share > 0)) {
        const heats = new Array<Heat>(experts);
        for (let expert = 0; expert < experts; expert++) heats[expert] = profile.heatOf(expert);
        return { ...common, shares, heats, basis: "of recent tokens" };
      }
    }
    const tokens = counts.reduce((sum, count) => sum + count, 0);
    const shares = Float64Array.from(counts, (count) =>
      tokens > 0 ? count / tokens : 1 / experts,
    );
    this.#scale ??= new HeatScale(experts);
    const heats = Array.from(shares, (share, expert) =>
      (this.#scale as HeatScale).classify(share, this.#heats?.[expert]),
    );
    const basis = tokens > 0 ? "of this batch" : "assumed, as nothing has been routed yet";
    return { ...common, shares, heats, basis };
  }

  /**
   * Room for experts on a slice, or undefined where nothing limits it. Only cache that was reserved
   * is set aside on the device; the rest of a cache budget is an estimate, which limits nobody.
   */
  #room(slice: "A" | "B"): Room | undefined {
    const cacheBytes = this.#demands.reservedCache[slice];
    const most = this.#maxExperts[slice];
    const byCount: Room | undefined =
      most === undefined
        ? undefined
        : { experts: most, reason: `slice ${slice} takes at most ${most} experts by maxExperts` };
    if (this.#expertBytes === undefined || !this.#device.enforces.cache.available) return byCount;
    const fit = Math.floor(cacheBytes / this.#expertBytes);
    // Where not even one expert fits, weights stream past the cache whoever is on the slice.
    if (fit === 0 || (most !== undefined && most <= fit)) return byCount;
    const reason = `slice ${slice} has ${cacheBytes} bytes of cache reserved, enough for ${fit} experts of ${this.#expertBytes} bytes`;
    return { experts: fit, reason };
  }

  #realise({ realisation }: Division): { readonly kind: Realisation; readonly reason: string } {
    const first = this.#realisations[0] as Realisation;
    if (this.#asked !== "auto") return { kind: first, reason: `${first} was asked for.` };
    const choice = this.#realisations.length > 1 ? realisation : undefined;
    if (choice !== undefined && this.#realisations.includes(choice.kind)) return choice;
    if (this.#refused !== undefined) {
      return { kind: first, reason: `The device refused the other way: ${this.#refused}` };
    }
    const { partitioned } = this.#device.realisations;
    if (!partitioned.available) {
      return { kind: first, reason: `Partitions are not available: ${partitioned.reason}` };
    }
    return {
      kind: first,
      reason: `Partitions are used only where the adaptive policy has measured them to be better; this is the ${this.#policy.name} policy.`,
    };
  }
}

function requireAmount(name: string, value: unknown): void {
  if (isAmount(value)) return;
  throw new InvalidArgumentError(`${name} is ${shown(value)}; it must be a number, 0 or more.`);
}

function policyNamed(name: string): SlicePolicy {
  if (Object.hasOwn(POLICIES, name)) return POLICIES[name as PolicyName]();
  throw new InvalidArgumentError(
    `There is no slice policy ${shown(name)}; choose one of ${POLICY_NAMES.join(", ")}.`,
  );
}
