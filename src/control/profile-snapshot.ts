/**
 * A profiler's state as a plain, versioned value that survives JSON unchanged,
 * and the check that a value read back is one. Numbers are whole or are float64
 * values that JSON prints exactly, so a restored profiler goes on with the same bits.
 */

import { z } from "zod";
import { InvalidArgumentError } from "../errors.ts";

export const SNAPSHOT_FORMAT = "nexus-expert-profile";
/** Raised whenever a field comes, goes or changes its meaning. */
export const SNAPSHOT_VERSION = 2;

/** zod's `int()` stops where whole numbers in float64 do. */
const whole = z.number().int().nonnegative();
const finite = z.number().nonnegative();

const schema = z.strictObject({
  format: z.literal(SNAPSHOT_FORMAT),
  version: z.literal(SNAPSHOT_VERSION),
  options: z.strictObject({
    experts: whole,
    window: whole,
    halfLife: finite,
    minimumDwell: whole,
    thresholds: z.strictObject({
      hotEnter: finite,
      hotLeave: finite,
      coldEnter: finite,
      coldLeave: finite,
    }),
  }),
  /** Steps observed, and those of them that had tokens. */
  steps: whole,
  stepsWithTokens: whole,
  averageShares: z.array(finite),
  heats: z.array(z.enum(["hot", "warm", "cold"])),
  stepsInHeat: z.array(whole),
  /** Rows of the window, oldest first: per expert, then per step [slots, tokens, ticks, ticks were measured]. */
  counts: z.array(z.array(whole)),
  ticks: z.array(z.array(whole)),
  totals: z.array(z.array(whole).length(4)),
  energy: z.strictObject({
    microjoules: z.array(z.array(whole)),
    microjoulesByReads: z.array(z.array(whole)),
    tokens: z.array(z.array(whole)),
    timed: z.array(z.array(whole.max(1))),
    pendingTokens: z.array(whole),
    pendingReads: z.array(whole),
    pendingTicks: z.array(whole),
  }),
});

/** A profiler's state as plain JSON, checked when it is restored. */
export type ProfileSnapshot = z.infer<typeof schema>;

/** @throws InvalidArgumentError naming the first field that is wrong */
export function checkSnapshot(value: unknown): ProfileSnapshot {
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const where = issue?.path.length ? issue.path.join(".") : "the value itself";
    throw refuse(`${where}: ${issue?.message}`);
  }
  const snapshot = parsed.data;
  const { experts, window } = snapshot.options;
  const perExpert = {
    averageShares: snapshot.averageShares,
    heats: snapshot.heats,
    stepsInHeat: snapshot.stepsInHeat,
    "energy.pendingTokens": snapshot.energy.pendingTokens,
    "energy.pendingReads": snapshot.energy.pendingReads,
    "energy.pendingTicks": snapshot.energy.pendingTicks,
  };
  for (const [name, values] of Object.entries(perExpert)) {
    if (values.length !== experts) {
      throw refuse(`${name} has ${values.length} entries for ${experts} experts`);
    }
  }
  const steps = Math.min(snapshot.steps, window);
  checkRows("counts", snapshot.counts, steps, experts);
  checkRows("ticks", snapshot.ticks, steps, experts);
  checkRows("totals", snapshot.totals, steps, 4);
  const readings = snapshot.energy.microjoules.length;
  if (readings > window) throw refuse(`energy has ${readings} readings in a window of ${window}`);
  checkRows("energy.microjoules", snapshot.energy.microjoules, readings, experts);
  checkRows("energy.microjoulesByReads", snapshot.energy.microjoulesByReads, readings, experts);
  checkRows("energy.tokens", snapshot.energy.tokens, readings, experts);
  checkRows("energy.timed", snapshot.energy.timed, readings, 1);
  if (snapshot.stepsWithTokens > snapshot.steps) {
    throw refuse(
      `stepsWithTokens is ${snapshot.stepsWithTokens}, more than ${snapshot.steps} steps`,
    );
  }
  return snapshot;
}

function checkRows(name: string, rows: readonly number[][], count: number, width: number): void {
  if (rows.length !== count) throw refuse(`${name} has ${rows.length} rows instead of ${count}`);
  const wrong = rows.findIndex((row) => row.length !== width);
  if (wrong !== -1) {
    throw refuse(`${name}.${wrong} has ${rows[wrong]?.length} entries instead of ${width}`);
  }
}

function refuse(what: string): InvalidArgumentError {
  return new InvalidArgumentError(
    `Not a profile snapshot of version ${SNAPSHOT_VERSION}: ${what}. Pass what ExpertProfiler.snapshot() returned.`,
  );
}
