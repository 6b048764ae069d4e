/**
 * One planned batch, run once: the buckets a plan was made for, through a set of
 * experts, back to tokens. For batches in a row use MoELayer, which keeps its
 * buffers, replays graphs and learns from what it measures.
 */

import { budgetsInLanes } from "../control/lane-budgets.ts";
import { computeBudgetsOf, type Plan, requirePlan } from "../control/plan.ts";
import { StreamScheduler } from "../control/stream-scheduler.ts";
import { Buckets } from "../data/buckets.ts";
import { Experts } from "../data/experts.ts";
import { requireOutputWeights } from "../data/packing.ts";
import { GivenRouting } from "../data/routing.ts";
import type { AggregationSpec } from "../data/spec.ts";
import { outputWidth, StepBuffers } from "../data/step-buffers.ts";
import { validateAggregation } from "../data/validate.ts";
import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError, ShapeError } from "../errors.ts";
import { type Fields, requireFields } from "../execution/checks.ts";
import { runEagerly } from "../execution/run-eagerly.ts";
import type { Tensor } from "../tensor.ts";
import { recordStep, StepStreams } from "./step.ts";

/** Streams and aggregation of a scheduled step. */
export interface ScheduleOptions {
  /** Streams the experts are spread over; default: what the experts' device recommends. */
  readonly streams?: number;
  /** Default: weighted sum, weights on the outputs, no residual. */
  readonly aggregation?: AggregationSpec;
}

/** What a scheduled step gives. */
export interface ScheduleResult {
  /** float32 [T, H], or [T, k * H] for a concatenation. */
  readonly output: Tensor<Float32Array>;
  readonly seconds: number;
  /** Experts on each stream. */
  readonly expertsPerStream: readonly number[];
}

const OPTIONS: Fields<ScheduleOptions> = { streams: true, aggregation: true };

const WEIGHTED_SUM: AggregationSpec = {
  mode: "sum",
  weightsApplyTo: "output",
  residual: false,
};

export class Schedule {
  readonly #plan: Plan;
  readonly #buckets: Buckets;
  readonly #experts: Experts;
  readonly #options: ScheduleOptions;

  constructor(plan: Plan, buckets: Buckets, experts: Experts, options: ScheduleOptions) {
    this.#plan = plan;
    this.#buckets = buckets;
    this.#experts = experts;
    this.#options = options;
  }

  /**
   * Runs the batch.
   *
   * @throws OutOfDeviceMemoryError, DisposedError
   */
  async run(): Promise<ScheduleResult> {
    const { device, spec } = this.#experts;
    const buckets = this.#buckets;
    const { topK, experts, tokens } = buckets;
    const aggregation = this.#options.aggregation ?? WEIGHTED_SUM;
    if (device.closed) throw new DisposedError("The device");
    if (this.#experts.closed) throw new DisposedError("The set of experts");
    const { streams = device.properties.recommendedStreams } = this.#options;
    const assignment = new StreamScheduler({ streams }).assign(this.#plan);
    const sizes = {
      hiddenSize: spec.hiddenSize,
      experts,
      topK,
      expertForm: spec,
      rowWeights: this.#experts.rowWeights,
      packed: this.#experts.packed,
    };
    const shape = { ...sizes, aggregation: aggregation.mode };
    const mostTokens = Math.max(1, tokens);
    using buffers = new StepBuffers(device, shape, mostTokens);
    using stepStreams = new StepStreams(device, assignment);
    device.write(buffers.tokens, Int32Array.of(tokens));
    device.writeRows(buffers.hidden, buffers.layouts.hidden, buckets.hidden);
    device.write(buffers.ids, buckets.ids);
    device.write(buffers.weights, buckets.weights);
    device.write(buffers.buckets.laneOf, assignment.laneOf);
    device.setComputeBudgets(budgetsInLanes(this.#plan, assignment.sliceOfLane));

    const { capacityFactor } = buckets;
    const routing = new GivenRouting({
      experts,
      topK,
      ...(capacityFactor !== undefined && { capacityFactor }),
    });
    const started = performance.now();
    const parts = { routing, experts: this.#experts, topK, aggregation, decodeTokens: 0 };
    await runEagerly(device, () =>
      recordStep(stepStreams, parts, buffers, { mostTokens, outputType: "float32" }),
    );
    const seconds = (performance.now() - started) / 1000;

    const width = outputWidth(aggregation.mode, spec.hiddenSize, topK);
    const data = new Float32Array(tokens * width);
    await device.read(buffers.output, data);
    const expertsPerStream = new Array<number>(assignment.streams).fill(0);
    for (const lane of assignment.laneOf)
      expertsPerStream[lane] = (expertsPerStream[lane] ?? 0) + 1;
    return {
      output: { dtype: "float32", shape: [tokens, width], data },
      seconds,
      expertsPerStream,
    };
  }
}

/**
 * Prepares the batch that `plan` was made for.
 *
 * @param plan from `SliceManager.allocate(buckets)`; it remembers the buckets
 * @throws InvalidArgumentError if the plan was made from bare counts instead of buckets, or for a larger device; for unknown options
 * @throws ShapeError if experts and buckets do not fit together
 */
export function schedule(plan: Plan, experts: Experts, options: ScheduleOptions = {}): Schedule {
  requirePlan(plan);
  if (!(experts instanceof Experts)) {
    throw new InvalidArgumentError(
      `experts is ${shown(experts)}; it must be a set of experts, such as Experts.fromTensors() gives.`,
    );
  }
  requireFields(options, "options", "an object, or left out", OPTIONS);
  const buckets = plan.load;
  if (!(buckets instanceof Buckets)) {
    throw new InvalidArgumentError(
      "The plan was not made for routed buckets. Pass the result of Router.route() to SliceManager.allocate().",
    );
  }
  if (buckets.experts !== experts.count) {
    throw new ShapeError(
      `The buckets are for ${buckets.experts} experts, but ${experts.count} experts are given.`,
    );
  }
  const width = buckets.hidden.shape[1];
  if (width !== experts.spec.hiddenSize) {
    throw new ShapeError(
      `The routed hidden states have ${width} columns; the experts take ${experts.spec.hiddenSize}.`,
    );
  }
  const { computeUnits } = experts.device.properties;
  const planned = computeBudgetsOf(plan).units.reduce((sum, units) => sum + units, 0);
  if (planned > computeUnits) {
    throw new InvalidArgumentError(
      `The plan divides ${planned} compute units; the experts' device has ${computeUnits}. Plan for that device: new SliceManager({ device: experts.device.properties }).`,
    );
  }
  if (options.aggregation !== undefined) validateAggregation(options.aggregation);
  if (experts.packed) requireOutputWeights(options.aggregation);
  return new Schedule(plan, buckets, experts, options);
}
