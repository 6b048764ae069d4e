/**
 * One cell of the benchmark: a layer, a batch size and a routing skew. The layer
 * and the sequential baseline run the same batches; their outputs are compared
 * first, then they are timed in turns.
 *
 * A timing covers one whole call: routing, experts, aggregation, and for the layer
 * its control plane. On a CPU it begins with hidden states in host memory and ends
 * with outputs there; on a GPU both are device tensors, and one replay of the step's
 * graph is timed by the device's own clock as well. Batches change from call to call,
 * so a small batch does not find its experts' weights in the cache merely because it
 * was there before.
 */

import { computeBudgetsOf } from "../../control/plan.ts";
import { DeviceTensor } from "../../execution/device-tensor.ts";
import { PLAN_SECONDS } from "../../layer/control-loop.ts";
import type { MoELayer } from "../../layer/moe-layer.ts";
import { relativeError } from "../../reference/index.ts";
import { type DType, toFloat32 } from "../../tensor.ts";
import { makeHiddenStates } from "../../workload/hidden-states.ts";
import { ExpertPopularity, formatSkew, type RoutingSkew } from "../../workload/popularity.ts";
import type { Preset } from "../../workload/presets.ts";
import type { Random } from "../../workload/random.ts";
import type { RandomLayer } from "../../workload/random-layer.ts";
import { IncorrectResultError } from "../failure.ts";
import { mean } from "../statistics.ts";
import { BareStep, type LoadedLayer } from "./bare-step.ts";
import { deviceSeconds, hasDeviceClock } from "./device-clock.ts";
import { Inputs } from "./inputs.ts";
import type { MachineLimits } from "./machine-limits.ts";
import type { SequentialLayer } from "./sequential.ts";
import { type Effort, type Timing, timeInTurns, timingOf } from "./timing.ts";
import { type Work, workOf } from "./work.ts";

/** Different batches that take turns. */
const BATCHES = 8;
/** Of them, those whose graphs take turns on the device's clock. */
const GRAPHS = 4;
/** Calls before timing starts, and seconds of them: more than there are between two plans, so graphs are captured and the plan has settled. */
const WARM_UP_CALLS = 12;
const LEAST_WARM_UP_SECONDS = 4 * PLAN_SECONDS;
/** Where a call takes so long, fewer must do; two, for the eager run and the capture. */
const WARM_UP_SECONDS = 1;
const LEAST_WARM_UP_CALLS = 2;
/** Replays timed by the device's clock where the effort is given in seconds. */
const MOST_REPLAYS = 1000;
const LEAST_REPLAYS = 20;
/**
 * How far layer and baseline may be apart, by the element type of the rows between
 * their products. In float32 they agree to the bit, or nearly so; in 16 bits a kernel
 * for a handful of tokens rounds in other places than one for many.
 */
export const ERROR_BOUND: Readonly<Record<DType, number>> = {
  float32: 1e-5,
  float16: 1e-3,
  bfloat16: 6e-3,
  int32: 0,
};

export interface CellSpec {
  readonly preset: Preset;
  readonly dtype: DType;
  readonly tokens: number;
  readonly skew: RoutingSkew;
}

/** A way to run the layer, measured. */
export interface Rate {
  readonly seconds: Timing;
  readonly tokensPerSecond: number;
  readonly gflops: number;
  /** Weights of the experts used, each read once a call, over the time of the call. */
  readonly gigabytesPerSecond: number;
  /** Of the measured limits, 0 to 1. */
  readonly shareOfArithmetic: number;
  readonly shareOfBandwidth: number;
}

export interface CellResult extends Work {
  readonly preset: string;
  readonly dtype: DType;
  readonly tokens: number;
  readonly routing: string;
  /** Tokens of the busiest expert over the mean of all, over all batches. */
  readonly imbalance: number;
  /** Experts that a batch uses, on average. */
  readonly expertsUsed: number;
  /** Layer against baseline. */
  readonly relativeError: number;
  readonly nexus: Rate;
  /** One replay of the step's graph, by the device's clock; absent where it has none. */
  readonly graph?: Rate;
  readonly sequential: Rate;
  /** Median time of the baseline over that of the layer. */
  readonly speedup: number;
}

/** What a preset's cells have in common. */
export interface Bench {
  readonly weights: RandomLayer;
  readonly loaded: LoadedLayer;
  readonly layer: MoELayer;
  readonly sequential: SequentialLayer;
  readonly limits: MachineLimits;
  readonly effort: Effort;
}

/** @throws IncorrectResultError if layer and baseline differ; what the device throws */
export async function measureCell(
  bench: Bench,
  cell: CellSpec,
  random: Random,
  onProgress: (done: number) => void,
): Promise<CellResult> {
  const { preset, dtype, tokens, skew } = cell;
  const { layer, sequential, limits, loaded } = bench;
  const popularity = ExpertPopularity.draw(skew, preset.experts, random);
  using inputs = new Inputs(
    loaded.device,
    dtype,
    Array.from({ length: BATCHES }, () =>
      makeHiddenStates(bench.weights, popularity, tokens, random),
    ),
  );
  const forward = async (turn: number) => {
    const result = await forwardOnce(layer, inputs.at(turn));
    result.release();
  };
  // Half a round behind, so that neither finds the weights that the other has just used.
  const baseline = (turn: number) => sequential.forward(inputs.at(turn + BATCHES / 2));

  const counts = new Array<number>(preset.experts).fill(0);
  let used = 0;
  let error = 0;
  for (let turn = 0; turn < BATCHES; turn++) {
    const { output, stats, release } = await forwardOnce(layer, inputs.at(turn));
    await sequential.forward(inputs.at(turn));
    const values = toFloat32(output instanceof DeviceTensor ? await output.toHost() : output);
    error = Math.max(error, relativeError(values, await sequential.output()));
    release();
    stats.counts.forEach((count, expert) => {
      counts[expert] = (counts[expert] as number) + count;
      if (count > 0) used += 1 / BATCHES;
    });
  }
  const bound = ERROR_BOUND[loaded.device.rowLayout(1, dtype).dtype];
  if (!(error <= bound)) {
    throw new IncorrectResultError(
      `${preset.name}, ${tokens} tokens, ${formatSkew(skew)}: layer and sequential baseline differ by ${error}, more than ${bound}.`,
    );
  }

  await warmUp(forward);
  await warmUp(baseline);
  const [ours, theirs] = await timeInTurns(forward, baseline, bench.effort, onProgress);
  const onClock = await graphTiming(bench, tokens, inputs, ours);

  const work = workOf(preset, dtype, tokens, used, loaded.modules.parts.experts.packed);
  const rate = (seconds: Timing) => rateOf({ ...work, tokens, dtype }, seconds, limits);
  return {
    preset: preset.name,
    dtype,
    tokens,
    routing: formatSkew(skew),
    imbalance: Math.max(...counts) / mean(counts),
    expertsUsed: used,
    ...work,
    relativeError: error,
    nexus: rate(ours),
    ...(onClock && { graph: rate(onClock) }),
    sequential: rate(theirs),
    speedup: theirs.median / ours.median,
  };
}

/** The same cell, its shares of other limits. */
export function beside(limits: MachineLimits, cell: CellResult): CellResult {
  const again = ({ seconds }: Rate) => rateOf(cell, seconds, limits);
  return {
    ...cell,
    nexus: again(cell.nexus),
    ...(cell.graph && { graph: again(cell.graph) }),
    sequential: again(cell.sequential),
  };
}

function rateOf(
  { gflop, weightBytes, tokens, dtype }: Pick<CellResult, keyof Work | "tokens" | "dtype">,
  seconds: Timing,
  limits: MachineLimits,
): Rate {
  const gflops = gflop / seconds.median;
  const gigabytesPerSecond = weightBytes / seconds.median / 1e9;
  return {
    seconds,
    tokensPerSecond: tokens / seconds.median,
    gflops,
    gigabytesPerSecond,
    shareOfArithmetic: gflops / (limits.gflops[dtype] as number),
    shareOfBandwidth: gigabytesPerSecond / limits.gigabytesPerSecond,
  };
}

/** One call of the layer; `release` frees what it put on the device. */
async function forwardOnce(layer: MoELayer, input: ReturnType<Inputs["at"]>) {
  if (!(input instanceof DeviceTensor)) return { ...(await layer.forward(input)), release() {} };
  const { output, stats } = await layer.forward(input);
  return { output, stats, release: () => output[Symbol.dispose]() };
}

/** The step as the layer has come to run it, graph by graph on the device's clock. */
async function graphTiming(
  { loaded, layer, effort }: Bench,
  tokens: number,
  inputs: Inputs,
  calls: Timing,
): Promise<Timing | undefined> {
  if (!hasDeviceClock(loaded.device)) return undefined;
  const { plan, assignment } = await layer.control;
  const layout = { ...assignment, budgets: computeBudgetsOf(plan) };
  const { rowType: outputType } = loaded;
  const replays =
    "repeat" in effort
      ? effort.repeat
      : Math.min(
          MOST_REPLAYS,
          Math.max(LEAST_REPLAYS, Math.ceil(effort.minimumSeconds / calls.median)),
        );
  const steps: BareStep[] = [];
  try {
    for (let turn = 0; turn < GRAPHS; turn++) {
      const step = new BareStep(loaded, layout, { tokens, outputType });
      steps.push(step);
      await step.write(inputs.at(turn));
      await step.run();
    }
    const graphs = steps.map((step) => step.graph);
    await deviceSeconds(loaded.device, graphs, GRAPHS);
    const seconds = await deviceSeconds(loaded.device, graphs, replays);
    return seconds && timingOf(seconds);
  } finally {
    for (const step of steps) step[Symbol.dispose]();
  }
}

async function warmUp(call: (turn: number) => Promise<unknown>): Promise<void> {
  const started = performance.now();
  for (let turn = 0; ; turn++) {
    const seconds = (performance.now() - started) / 1000;
    if (turn >= LEAST_WARM_UP_CALLS && seconds > WARM_UP_SECONDS) return;
    if (turn >= WARM_UP_CALLS && seconds > LEAST_WARM_UP_SECONDS) return;
    await call(turn);
  }
}
