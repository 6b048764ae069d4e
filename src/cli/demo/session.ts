/**
 * What `nexus demo` does: a layer of random weights runs a skewed workload whose
 * hot experts change half way, the control plane follows, and the last output is
 * checked against the float64 reference. Everything shown is measured in this
 * run; report.ts does the showing.
 */

import { EnergyMonitor, type EnergyReading } from "../../control/energy-monitor.ts";
import type { LayerSpec } from "../../data/spec.ts";
import { PLAN_INTERVAL } from "../../layer/control-loop.ts";
import type { LayerStatistics } from "../../layer/forward.ts";
import { MoELayer } from "../../layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../reference/index.ts";
import type { Tensor } from "../../tensor.ts";
import { makeHiddenStates } from "../../workload/hidden-states.ts";
import { ExpertPopularity, formatSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { type LayerShape, layerSpecOf } from "../../workload/presets.ts";
import { Random } from "../../workload/random.ts";
import { RandomLayer } from "../../workload/random-layer.ts";
import { type DeviceFlags, type DeviceSummary, openFromFlags, summaryOf } from "../device.ts";
import { median } from "../statistics.ts";
import { Progress } from "../terminal/progress.ts";
import { packageVersion } from "../version.ts";
import {
  type BudgetChange,
  budgetChanges,
  type ExpertMove,
  movesBetween,
  type PlanSummary,
  planSummary,
} from "./plan-summary.ts";

/** Small enough for a few seconds on two cores, large enough to keep them busy. */
const SHAPE: LayerShape = {
  hiddenSize: 256,
  intermediateSize: 512,
  experts: 32,
  topK: 2,
  renormalize: true,
};
const TOKENS_PER_STEP = 256;
/** Nearly four half-lives of the profiler's average: the plan has settled by the end of a phase. */
const STEPS_PER_PHASE = 60;
/** Steep enough that all three classes of experts occur. */
const SKEW: RoutingSkew = { kind: "zipf", exponent: 1.1 };
/** Largest relative error that counts as correct: float32 sums of this length stay well below, and products of numbers rounded to tf32. */
const ERROR_BOUND = { ieee: 1e-5, tf32: 2e-3 } as const;

export interface DemoOptions extends DeviceFlags {
  readonly seed: number;
}

/** One half of the run: before or after the hot experts change. */
export interface DemoPhase {
  readonly firstStep: number;
  readonly lastStep: number;
  /** Tokens per expert over the phase. */
  readonly counts: readonly number[];
  /** The plan at its end. */
  readonly plan: PlanSummary;
}

/** Tokens per second: the median over a range of steps. */
export interface Throughput {
  readonly firstStep: number;
  readonly lastStep: number;
  readonly tokensPerSecond: number;
}

export interface DemoReport {
  readonly nexus: string;
  readonly command: "demo";
  readonly seed: number;
  readonly device: DeviceSummary;
  readonly layer: { readonly spec: LayerSpec; readonly weightBytes: number };
  readonly workload: {
    readonly routing: string;
    readonly tokensPerStep: number;
    readonly steps: number;
  };
  readonly before: DemoPhase;
  readonly after: DemoPhase;
  /** From the plan of before to the plan of after. */
  readonly changes: {
    readonly moves: readonly ExpertMove[];
    readonly budgets: readonly BudgetChange[];
  };
  readonly plansMade: number;
  readonly graphs: LayerStatistics["graphs"];
  readonly throughput: {
    /** Before the change, once the plan has settled. */
    readonly before: Throughput;
    /** After the change, under the plans of before. */
    readonly changed: Throughput;
    /** After the change, once the plan has settled again. */
    readonly adapted: Throughput;
  };
  readonly energy: EnergyReading;
  readonly check: {
    readonly reference: "float64";
    readonly tokens: number;
    readonly relativeError: number;
    readonly bound: number;
  };
  readonly correct: boolean;
}

/** @throws DeviceUnavailableError, OutOfDeviceMemoryError, DeviceFailedError */
export async function runDemo(options: DemoOptions): Promise<DemoReport> {
  const random = new Random(options.seed);
  const weights = new RandomLayer(SHAPE, "float32", options.seed);
  const spec = layerSpecOf(SHAPE, "float32");
  const popularity = ExpertPopularity.draw(SKEW, SHAPE.experts, random.fork("popularity"));
  const inputs = random.fork("inputs");
  const batchOf = (wanted: ExpertPopularity) =>
    makeHiddenStates(weights, wanted, TOKENS_PER_STEP, inputs);

  await using device = await openFromFlags(options);
  // A CPU has no tf32, whatever was asked for.
  const onGpu = device.properties.kind === "cuda";
  const bound = ERROR_BOUND[onGpu ? (options.float32 ?? "ieee") : "ieee"];
  await using layer = await new MoELayer(spec, weights, { device }).ready();
  using progress = new Progress();
  const seconds: number[] = [];
  const steps = 2 * STEPS_PER_PHASE;
  const energy = new EnergyMonitor(device.energy).begin();
  let last: { hidden: Tensor<Float32Array>; output: Float32Array } | undefined;

  const phase = async (wanted: ExpertPopularity): Promise<DemoPhase> => {
    const firstStep = seconds.length + 1;
    const counts = new Array<number>(SHAPE.experts).fill(0);
    for (let i = 0; i < STEPS_PER_PHASE; i++) {
      const hidden = batchOf(wanted);
      const { output, stats } = await layer.forward(hidden);
      seconds.push(stats.seconds);
      stats.counts.forEach((count, expert) => {
        counts[expert] = (counts[expert] as number) + count;
      });
      last = { hidden, output: output.data };
      progress.show(seconds.length / steps, `step ${seconds.length} of ${steps}`);
    }
    const { plan, assignment } = await layer.control;
    const summary = planSummary(plan, assignment.streams);
    return { firstStep, lastStep: seconds.length, counts, plan: summary };
  };

  const before = await phase(popularity);
  const after = await phase(popularity.moved());
  const spent = await energy.end({ tokens: steps * TOKENS_PER_STEP });
  progress.show(1, "checking the output");
  const { hidden, output } = last as NonNullable<typeof last>;
  const reference = await referenceLayer(spec, weights, hidden.data);
  const error = relativeError(output, reference.output);

  const half = STEPS_PER_PHASE / 2;
  const throughput = (firstStep: number, lastStep: number): Throughput => ({
    firstStep,
    lastStep,
    tokensPerSecond: TOKENS_PER_STEP / median(seconds.slice(firstStep - 1, lastStep)),
  });
  const statistics = await layer.statistics();
  return {
    nexus: packageVersion(),
    command: "demo",
    seed: options.seed,
    device: await summaryOf(device),
    layer: { spec, weightBytes: statistics.weightBytes },
    workload: { routing: formatSkew(SKEW), tokensPerStep: TOKENS_PER_STEP, steps },
    before,
    after,
    changes: {
      moves: movesBetween(before.plan, after.plan),
      budgets: budgetChanges(before.plan, after.plan),
    },
    plansMade: (await layer.plan).version,
    graphs: statistics.graphs,
    throughput: {
      before: throughput(half + 1, STEPS_PER_PHASE),
      changed: throughput(STEPS_PER_PHASE + 1, STEPS_PER_PHASE + PLAN_INTERVAL),
      adapted: throughput(STEPS_PER_PHASE + half + 1, steps),
    },
    energy: spent,
    check: {
      reference: "float64",
      tokens: TOKENS_PER_STEP,
      relativeError: error,
      bound,
    },
    correct: error <= bound,
  };
}
