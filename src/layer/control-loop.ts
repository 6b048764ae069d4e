/**
 * The loop that the control plane closes around a layer: what was measured in
 * past steps (profiler) decides the plan (slice manager) and the lanes (stream
 * scheduler) of the next ones. It sees counts, seconds and joules; never a tensor.
 */

import { budgetsInLanes } from "../control/lane-budgets.ts";
import type { StepJoules } from "../control/observation.ts";
import type { Plan } from "../control/plan.ts";
import { ExpertProfiler, type ProfilerOptions } from "../control/profiler.ts";
import { SliceManager, type SliceManagerOptions } from "../control/slices/manager.ts";
import { type StreamAssignment, StreamScheduler } from "../control/stream-scheduler.ts";
import type { ComputeBudgets, DeviceProperties } from "../execution/device.ts";

/**
 * Steps between two plans at least: a changed partition costs a graph capture, and the profile
 * that a plan rests on moves over tens of steps. The first measured step always gets a plan of its own.
 */
export const PLAN_INTERVAL = 8;

/**
 * Seconds of steps between two plans at least. A plan costs the host 50 to 120 us, which a long step hides; a
 * short one waits for it, and would be waiting for a fifth of its time.
 */
export const PLAN_SECONDS = 2.5e-3;

/** Streams, slices and profiler of a layer. */
export interface ControlOptions {
  /** Streams the experts are spread over; default: what the device recommends. */
  readonly streams?: number;
  readonly slices?: Omit<SliceManagerOptions, "device">;
  readonly profiler?: Omit<ProfilerOptions, "experts">;
}

/** What one finished step showed. */
export interface StepFeedback {
  /** The plan it ran under; there may be a newer one by the time it is finished. */
  readonly plan: Plan;
  readonly tokens: number;
  readonly counts: Int32Array;
  /** Seconds of compute-unit time per expert; absent where the device cannot tell. */
  readonly busySeconds?: Float64Array;
  readonly seconds: number;
  readonly joules: StepJoules;
  /** Whether its time tells one plan from another: it had lanes, and replayed a graph of them. */
  readonly comparable: boolean;
}

/** What a layer learns from its steps, and the plan it makes of it. */
export class ControlLoop {
  readonly profiler: ExpertProfiler;
  readonly slices: SliceManager;
  readonly scheduler: StreamScheduler;
  #plan: Plan;
  #assignment: StreamAssignment;
  #budgets: ComputeBudgets;
  #stepsSincePlan = 0;
  #secondsSincePlan = 0;
  #stepsObserved = 0;
  /** Counts that a plan is due for. */
  #due: Int32Array | undefined;

  /**
   * @param experts how many there are
   * @param expertBytes weights of one expert, which an enforced cache budget is held against
   */
  constructor(
    experts: number,
    expertBytes: number,
    device: DeviceProperties,
    options: ControlOptions,
  ) {
    this.profiler = new ExpertProfiler({ experts, ...options.profiler });
    this.slices = new SliceManager({ device, expertBytes, ...options.slices });
    const { streams = device.recommendedStreams } = options;
    this.scheduler = new StreamScheduler({ streams });
    // Nothing is known before the first batch: every expert counts the same.
    this.#plan = this.slices.allocate({
      counts: new Int32Array(experts).fill(1),
    });
    this.#assignment = this.scheduler.assign(this.#plan);
    this.#budgets = budgetsInLanes(this.#plan, this.#assignment.sliceOfLane);
  }

  get plan(): Plan {
    return this.#plan;
  }

  get assignment(): StreamAssignment {
    return this.#assignment;
  }

  /** What the device is told for the plan. */
  get budgets(): ComputeBudgets {
    return this.#budgets;
  }

  /** Takes a finished step in. Now and then a plan is due then, which `catchUp` makes. */
  observe(feedback: StepFeedback): void {
    this.profiler.observe(feedback);
    this.slices.observe(feedback);
    this.#stepsObserved++;
    this.#stepsSincePlan++;
    this.#secondsSincePlan += feedback.seconds;
    const later = this.#stepsSincePlan >= PLAN_INTERVAL && this.#secondsSincePlan >= PLAN_SECONDS;
    if (this.#stepsObserved === 1 || later) {
      // The caller of the step has the array, too, and the plan is made later.
      this.#due = feedback.counts.slice();
    }
  }

  /** Takes in what is left of the last step, and plans anew if that is due: for whenever the device is busy and the host is not. Work in flight is not touched. */
  catchUp(): void {
    this.profiler.settle();
    if (this.#due !== undefined) this.replan(this.#due);
  }

  /** Plans for the given load now, instead of when the interval is over. */
  replan(counts: Int32Array): void {
    this.#plan = this.slices.allocate({ counts }, this.profiler);
    this.#assignment = this.scheduler.assign(this.#plan);
    this.#budgets = budgetsInLanes(this.#plan, this.#assignment.sliceOfLane);
    this.#due = undefined;
    this.#stepsSincePlan = 0;
    this.#secondsSincePlan = 0;
  }
}
