/**
 * One cell of the benchmark: a layer, a batch size and a routing skew. The layer
 * and the sequential baseline run the same batches; their outputs are compared
 * first, then they are timed in turns.
 *
 * A timing covers one whole call, from hidden states in host memory to outputs in
 * host memory: copies, routing, experts, aggregation, and for the layer its
 * control plane. Batches change from call to call, so a small batch does not find
 * its experts' weights in the cache merely because it was there before.
 */

import type { MoELayer } from "../../layer/moe-layer.ts";
import { relativeError } from "../../reference/index.ts";
import type { DType, Tensor } from "../../tensor.ts";
import { BYTES_PER_ELEMENT } from "../../tensor.ts";
import { makeHiddenStates } from "../../workload/hidden-states.ts";
import { ExpertPopularity, formatSkew, type RoutingSkew } from "../../workload/popularity.ts";
import type { Preset } from "../../workload/presets.ts";
import type { Random } from "../../workload/random.ts";
import type { RandomLayer } from "../../workload/random-layer.ts";
import { IncorrectResultError } from "../failure.ts";
import { mean } from "../statistics.ts";
import type { MachineLimits } from "./machine-limits.ts";
import type { SequentialLayer } from "./sequential.ts";
import { type Effort, type Timing, timeInTurns } from "./timing.ts";

/** Different batches that take turns. */
const BATCHES = 8;
/** Calls before timing starts: more than the steps between two plans, so graphs are captured and the plan has settled. */
const WARM_UP_CALLS = 12;
/** Where a call takes so long, fewer must do; two, for the eager run and the capture. */
const WARM_UP_SECONDS = 1;
const LEAST_WARM_UP_CALLS = 2;
/** Layer and baseline run the same kernels on the same rows; they should agree to the bit. */
const ERROR_BOUND = 1e-5;

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

export interface CellResult {
  readonly preset: string;
  readonly dtype: DType;
  readonly tokens: number;
  readonly routing: string;
  /** Tokens of the busiest expert over the mean of all, over all batches. */
  readonly imbalance: number;
  /** Experts that a batch uses, on average. */
  readonly expertsUsed: number;
  /** Arithmetic of one call: products of the gate and of the experts. */
  readonly gflop: number;
  /** Bytes of weights one call needs, on average. */
  readonly weightBytes: number;
  /** Layer against baseline. */
  readonly relativeError: number;
  readonly nexus: Rate;
  readonly sequential: Rate;
  /** Median time of the baseline over that of the layer. */
  readonly speedup: number;
}

/** What a preset's cells have in common. */
export interface Bench {
  readonly weights: RandomLayer;
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
  const { layer, sequential, limits } = bench;
  const popularity = ExpertPopularity.draw(skew, preset.experts, random);
  const batches = Array.from({ length: BATCHES }, () =>
    makeHiddenStates(bench.weights, popularity, tokens, random),
  );
  const batch = (turn: number) => batches[turn % BATCHES] as Tensor<Float32Array>;

  const counts = new Array<number>(preset.experts).fill(0);
  let used = 0;
  let error = 0;
  for (const hidden of batches) {
    const { output, stats } = await layer.forward(hidden);
    error = Math.max(error, relativeError(output.data, await sequential.forward(hidden)));
    stats.counts.forEach((count, expert) => {
      counts[expert] = (counts[expert] as number) + count;
      if (count > 0) used += 1 / BATCHES;
    });
  }
  if (!(error <= ERROR_BOUND)) {
    throw new IncorrectResultError(
      `${preset.name}, ${tokens} tokens, ${formatSkew(skew)}: layer and sequential baseline differ by ${error}, more than ${ERROR_BOUND}.`,
    );
  }

  const forward = (turn: number) => layer.forward(batch(turn));
  // Half a round behind, so that neither finds the weights that the other has just used.
  const baseline = (turn: number) => sequential.forward(batch(turn + BATCHES / 2));
  await warmUp(forward);
  await warmUp(baseline);
  const [ours, theirs] = await timeInTurns(forward, baseline, bench.effort, onProgress);

  const work = workOf(preset, dtype, tokens, used);
  const rate = (seconds: Timing): Rate => {
    const gflops = work.gflop / seconds.median;
    const gigabytesPerSecond = work.weightBytes / seconds.median / 1e9;
    return {
      seconds,
      tokensPerSecond: tokens / seconds.median,
      gflops,
      gigabytesPerSecond,
      shareOfArithmetic: gflops / (limits.gflops[dtype] as number),
      shareOfBandwidth: gigabytesPerSecond / limits.gigabytesPerSecond,
    };
  };
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
    sequential: rate(theirs),
    speedup: theirs.median / ours.median,
  };
}

async function warmUp(call: (turn: number) => Promise<unknown>): Promise<void> {
  const started = performance.now();
  for (let turn = 0; turn < WARM_UP_CALLS; turn++) {
    const seconds = (performance.now() - started) / 1000;
    if (turn >= LEAST_WARM_UP_CALLS && seconds > WARM_UP_SECONDS) break;
    await call(turn);
  }
}

/** A gated expert is three products of hidden x intermediate; the gate is one of hidden x experts. */
function workOf(preset: Preset, dtype: DType, tokens: number, expertsUsed: number) {
  const { hiddenSize, intermediateSize, experts, topK } = preset;
  const expertWeights = 3 * hiddenSize * intermediateSize;
  const gateWeights = hiddenSize * experts;
  return {
    gflop: (2 * tokens * (topK * expertWeights + gateWeights)) / 1e9,
    weightBytes:
      expertsUsed * expertWeights * BYTES_PER_ELEMENT[dtype] +
      gateWeights * BYTES_PER_ELEMENT.float32,
  };
}
