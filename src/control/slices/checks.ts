/**
 * What the slice manager is given and its other parts would misread: names that
 * nobody looks at, policies that are none, and what policies say that cannot be.
 */

import { shown } from "../../errors/wording.ts";
import { DeviceUnavailableError, InvalidArgumentError } from "../../errors.ts";
import { type Fields, isAmount, requireFields } from "../../execution/checks.ts";
import type { Realisation } from "../../execution/device.ts";
import { BUDGETED_SLICE_IDS, type BudgetedSliceId } from "../plan.ts";
import type { ProfileView } from "../profiler.ts";
import type { Reservation } from "./demands.ts";
import type { SliceManagerOptions } from "./manager.ts";
import type { PlanningDevice } from "./planning-device.ts";
import type { Division, Placing, SlicePolicy } from "./policy.ts";

const OPTIONS: Fields<SliceManagerOptions> = {
  device: true,
  policy: true,
  realisation: true,
  priorities: true,
  maxExperts: true,
  expertBytes: true,
};
const PRIORITIES: Fields<Record<BudgetedSliceId, number>> = { A: true, B: true, C: true, D: true };
const RESERVATION: Fields<Reservation> = { computeUnits: true, cacheBytes: true };

/** How a plan's budgets can be made real, the default first. */
const DIVIDING: readonly Realisation[] = ["shared", "partitioned"];

/** @throws InvalidArgumentError naming the option that there is not, or the priority that is none */
export function checkNames(options: SliceManagerOptions): void {
  requireFields(options, "options", "an object, or left out", OPTIONS);
  const { priorities = {} } = options;
  requireFields(priorities, "priorities", "numbers by slice, or left out", PRIORITIES);
  for (const [slice, priority] of Object.entries(priorities)) {
    if (Number.isFinite(priority)) continue;
    throw new InvalidArgumentError(
      `Slice ${slice} has priority ${shown(priority)}; give a number.`,
    );
  }
}

/** @throws InvalidArgumentError unless the manager can ask it where experts should be and how to divide */
export function checkPolicy(policy: SlicePolicy, names: readonly string[]): SlicePolicy {
  const { name, place, divide, observe = () => {} } = policy ?? {};
  const methods = [place, divide, observe];
  if (typeof name === "string" && methods.every((each) => typeof each === "function")) {
    return policy;
  }
  throw new InvalidArgumentError(
    `policy is ${shown(policy)}; it must be one of ${names.join(", ")}, or an object with name, place and divide; observe may be left out.`,
  );
}

/** @throws InvalidArgumentError unless it can be asked how hot experts are */
export function checkProfile(profile: ProfileView): void {
  if (typeof profile?.heatOf === "function" && typeof profile.averageShareOf === "function") return;
  throw new InvalidArgumentError(
    `profile is ${shown(profile)}; it must be an ExpertProfiler, or left out.`,
  );
}

/** @throws InvalidArgumentError for what is no reservation */
export function checkReservation(minimum: Reservation): void {
  requireFields(minimum, "minimum", "an object such as { computeUnits: 1 }", RESERVATION);
}

/**
 * Runs at every plan, so texts are made only for what is wrong.
 *
 * @throws InvalidArgumentError naming the policy unless every one of the experts has a slice and a worth
 */
export function checkPlacing(placing: Placing, { name }: SlicePolicy, experts: number): void {
  const { slices, worth, why } = placing ?? {};
  if (slices?.length !== experts) {
    refuse(name, "place", "slices", slices, `an array of ${experts} slices, one per expert`);
  }
  if (worth?.length !== experts) {
    refuse(name, "place", "worth", worth, `an array of ${experts} numbers, one per expert`);
  }
  if (typeof why !== "function") {
    refuse(name, "place", "why", why, "a function from an expert to a sentence's end");
  }
  for (let expert = 0; expert < experts; expert++) {
    const slice = slices[expert];
    if (slice !== "A" && slice !== "B" && slice !== "C") {
      refuse(name, "place", `slices[${expert}]`, slice, '"A", "B" or "C"');
    }
    if (!isAmount(worth[expert])) {
      refuse(name, "place", `worth[${expert}]`, worth[expert], "a number, 0 or more");
    }
  }
}

/** @throws InvalidArgumentError naming the policy unless a device can be divided so */
export function checkDivision(division: Division, { name }: SlicePolicy): void {
  const { weights, realisation } = division ?? {};
  let sum = 0;
  for (const slice of BUDGETED_SLICE_IDS) {
    const weight = weights?.[slice];
    if (!isAmount(weight)) {
      refuse(name, "divide", `weights.${slice}`, weight, "a number, 0 or more");
    }
    sum += weight;
  }
  if (!isAmount(sum)) {
    refuse(name, "divide", "weights", weights, "numbers that add up to a finite one");
  }
  if (realisation !== undefined && !DIVIDING.includes(realisation?.kind)) {
    const rule = `one of ${DIVIDING.join(", ")}, or no realisation`;
    refuse(name, "divide", "realisation.kind", realisation?.kind, rule);
  }
}

function refuse(
  policy: string,
  method: string,
  field: string,
  value: unknown,
  rule: string,
): never {
  throw new InvalidArgumentError(
    `Policy ${shown(policy)}: ${field} from ${method}() is ${shown(value)}; it must be ${rule}.`,
  );
}

/**
 * The one asked for, or for "auto" those to choose from, the default first.
 *
 * @throws InvalidArgumentError if no plan has such a realisation, DeviceUnavailableError if the device has none of them
 */
export function usableRealisations(
  device: PlanningDevice,
  asked: Realisation | "auto",
): Realisation[] {
  const { name, realisations } = device;
  if (asked === "mig") {
    throw new InvalidArgumentError(
      'realisation is "mig", and no plan divides MIG instances: each is a device of its own, for a process of its own. Open them with openMigPool(), and use auto, shared or partitioned here.',
    );
  }
  if (asked !== "auto" && !DIVIDING.includes(asked)) {
    throw new InvalidArgumentError(
      `There is no realisation ${shown(asked)}; choose one of auto, ${DIVIDING.join(", ")}.`,
    );
  }
  const candidates = asked === "auto" ? DIVIDING : [asked];
  const usable = candidates.filter((each) => realisations[each].available);
  if (usable.length > 0) return usable;
  const reasons = candidates.map((each) => {
    const availability = realisations[each];
    return availability.available ? "" : `${each}: ${availability.reason}`;
  });
  throw new DeviceUnavailableError(
    `${name} cannot realise slices as asked ("${asked}"). ${reasons.join(" ")}`,
  );
}
