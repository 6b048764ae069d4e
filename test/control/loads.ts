/** Made-up loads and devices for planning tests: counts and plain values, no tensors. */

import type { Plan, SliceId } from "../../src/control/plan.ts";
import type { PlanningDevice } from "../../src/control/slices/planning-device.ts";
import type { Random } from "../../src/workload/random.ts";

/** Tokens of two hot experts, one warm, five cold. */
export const SKEWED: readonly number[] = [512, 256, 128, 64, 40, 12, 8, 4];

export function load(counts: readonly number[]): { readonly counts: Int32Array } {
  return { counts: Int32Array.from(counts) };
}

/** Compute units of each slice. */
export function unitsOf(plan: Plan): number[] {
  return Object.values(plan.slices).map((slice) => slice.budget.computeUnits);
}

export function expertsOf(plan: Plan, slice: SliceId): number[] {
  return [...plan.slices[slice].experts];
}

/** Tokens per expert: `slots` draws from Zipf's law, expert 0 the busiest. */
export function zipfCounts(
  random: Random,
  experts: number,
  slots: number,
  exponent = 1,
): Int32Array {
  const ends = new Float64Array(experts);
  let total = 0;
  for (let e = 0; e < experts; e++) ends[e] = total += (e + 1) ** -exponent;
  const counts = new Int32Array(experts);
  for (let i = 0; i < slots; i++) {
    const at = random.uniform() * total;
    const expert = ends.findIndex((end) => at <= end);
    counts[expert] = (counts[expert] as number) + 1;
  }
  return counts;
}

/** One standard normal number. */
export function normalNumber(random: Random): number {
  return random.fillNormal(new Float32Array(1))[0] as number;
}

/** A GPU of 132 multiprocessors that enforces cache budgets; change what matters. */
export function gpu(changes: Partial<PlanningDevice> = {}): PlanningDevice {
  return {
    name: "a GPU",
    computeUnits: 132,
    computeUnitGranularity: 2,
    cacheBytes: 50_000_000,
    realisations: {
      shared: { available: true },
      partitioned: { available: true },
      mig: { available: false, reason: "MIG mode is off." },
    },
    migInstances: [],
    enforces: {
      bandwidth: { available: false, reason: "There is no switch for bandwidth." },
      cache: { available: true },
    },
    ...changes,
  };
}

/** A CPU of some threads. */
export function cpu(computeUnits = 2, changes: Partial<PlanningDevice> = {}): PlanningDevice {
  const missing = { available: false, reason: "A CPU has none." } as const;
  return gpu({
    name: "a CPU",
    computeUnits,
    computeUnitGranularity: 1 / 16,
    cacheBytes: 32 << 20,
    realisations: { shared: { available: true }, partitioned: missing, mig: missing },
    enforces: { bandwidth: missing, cache: missing },
    ...changes,
  });
}
