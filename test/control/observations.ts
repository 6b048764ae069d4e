/** Steps as a profiler is told of them. */

import type { StepObservation } from "../../src/control/observation.ts";
import type { Random } from "../../src/workload/random.ts";
import { between, chance } from "../support/seed.ts";
import { zipfCounts } from "./loads.ts";

export function step(counts: number[], rest: Partial<StepObservation> = {}): StepObservation {
  return { counts: Int32Array.from(counts), seconds: 0.01, ...rest };
}

export function randomStep(random: Random, experts: number): StepObservation {
  const counts = zipfCounts(random, experts, between(random, 0, 60), 0.7);
  const busySeconds = Float64Array.from(counts, (n) => n * 1e-5 * random.uniform());
  return {
    counts,
    seconds: random.uniform() * 0.1,
    ...(chance(random, 0.8) && { busySeconds }),
    joules: chance(random, 0.3) ? random.uniform() * 5 : null,
  };
}
