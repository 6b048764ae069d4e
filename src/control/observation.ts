/** What a finished step shows the profiler, and the check that it can have been so. */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { isAmount, requireObject } from "../execution/checks.ts";

/** A longer step is a mistake in units, and would cost the profiler's sums their exactness. */
const MAX_STEP_SECONDS = 86_400;

/** As above. */
const MAX_READING_JOULES = 1e6;

/** Tokens and counts are int32 on the devices. */
const MAX_TOKENS = 2 ** 31 - 1;

/** Joules measured; null: no reading yet; "lost": no reading will ever cover these steps. */
export type StepJoules = number | null | "lost";

/** What one finished step showed. */
export interface StepObservation {
  /** Tokens per expert [experts]. */
  readonly counts: Int32Array;
  /** How long the step took. */
  readonly seconds: number;
  /** Tokens of the batch; default: the sum of the counts, which is right for top-1 routing. */
  readonly tokens?: number | undefined;
  /** Compute-unit time per expert [experts], where the device measures it. */
  readonly busySeconds?: Float64Array | undefined;
  /** Energy of all the steps since the last one that came with joules, this one included. */
  readonly joules?: StepJoules | undefined;
}

/**
 * @param experts how many there are
 * @returns the sum of the counts
 * @throws InvalidArgumentError for lengths or values that cannot be
 */
export function checkObservation(step: StepObservation, experts: number): number {
  requireObject(step, "step", "what a step showed, such as { counts, seconds }");
  const { counts, busySeconds, seconds, tokens, joules } = step;
  if (!(counts instanceof Int32Array) || counts.length !== experts) {
    throw new InvalidArgumentError(
      `counts must be an Int32Array of ${experts} entries, one per expert; got ${describe(counts)}.`,
    );
  }
  let slots = 0;
  for (let e = 0; e < counts.length; e++) {
    const count = counts[e] as number;
    if (count < 0) {
      throw new InvalidArgumentError(`counts[${e}] is ${count}; tokens cannot be negative.`);
    }
    slots += count;
  }
  checkSeconds(seconds, "seconds");
  if (tokens !== undefined) checkWhole(tokens, 0, MAX_TOKENS, "tokens");
  if (busySeconds !== undefined) {
    if (!(busySeconds instanceof Float64Array) || busySeconds.length !== experts) {
      throw new InvalidArgumentError(
        `busySeconds must be a Float64Array of ${experts} entries, one per expert; got ${describe(busySeconds)}.`,
      );
    }
    for (let e = 0; e < busySeconds.length; e++) {
      checkSeconds(busySeconds[e] as number, `busySeconds[${e}]`);
    }
  }
  const read = joules !== undefined && joules !== null && joules !== "lost";
  if (read && !(isAmount(joules) && joules <= MAX_READING_JOULES)) {
    throw new InvalidArgumentError(
      `joules is ${shown(joules)}; a reading must be 0 to ${MAX_READING_JOULES} J, null where there is none yet, or "lost".`,
    );
  }
  return slots;
}

function checkSeconds(value: number, name: string): void {
  if (!(isAmount(value) && value <= MAX_STEP_SECONDS)) {
    throw new InvalidArgumentError(
      `${name} is ${shown(value)}; it must be a time in seconds, 0 to ${MAX_STEP_SECONDS}.`,
    );
  }
}

/** @throws InvalidArgumentError unless the value is a whole number in that range */
export function checkWhole(value: number, least: number, most: number, name: string): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new InvalidArgumentError(
      `${name} is ${shown(value)}; it must be a whole number from ${least} to ${most}.`,
    );
  }
}

function describe(value: unknown): string {
  return ArrayBuffer.isView(value) && "length" in value
    ? `${value.constructor.name} of ${value.length}`
    : typeof value;
}
