/**
 * Arguments of the slice manager that its other parts would misread: names that
 * nobody looks at, policies that are none.
 */

import { InvalidArgumentError } from "../../errors.ts";
import { type Fields, requireFields, shown } from "../../execution/checks.ts";
import type { BudgetedSliceId } from "../plan.ts";
import type { Reservation } from "./demands.ts";
import type { SliceManagerOptions } from "./manager.ts";
import type { SlicePolicy } from "./policy.ts";

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

/** @throws InvalidArgumentError naming the option that there is not */
export function checkNames(options: SliceManagerOptions): void {
  requireFields(options, "options", "an object, or left out", OPTIONS);
  const { priorities = {} } = options;
  requireFields(priorities, "priorities", "numbers by slice, or left out", PRIORITIES);
}

/** @throws InvalidArgumentError unless the manager can ask it where experts should be and how to divide */
export function checkPolicy(policy: SlicePolicy, names: readonly string[]): SlicePolicy {
  const { name, place, divide } = policy ?? {};
  if (typeof name === "string" && typeof place === "function" && typeof divide === "function") {
    return policy;
  }
  throw new InvalidArgumentError(
    `policy is ${shown(policy)}; it must be one of ${names.join(", ")}, or an object with name, place and divide.`,
  );
}

/** @throws InvalidArgumentError for what is no reservation */
export function checkReservation(minimum: Reservation): void {
  requireFields(minimum, "minimum", "an object such as { computeUnits: 1 }", RESERVATION);
}
