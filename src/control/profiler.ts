/**
 * What the experts have been doing lately, from what finished steps report:
 * tokens, time and joules per expert over a rolling window, an exponential
 * average of each expert's share, and from that average how hot it is.
 *
 * The profiler only remembers. It does not decide where an expert runs (the
 * slice manager does), and it does not measure: counts, seconds and joules come
 * from the device, one or more steps late, and what was not measured is null.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { type Fields, isAmount, requireFields } from "../execution/checks.ts";
import { type EnergyBasis, ExpertEnergy } from "./expert-energy.ts";
import { HEAT_MULTIPLES, type HeatMultiples, HeatScale } from "./heat.ts";
import {
  checkObservation,
  checkWhole,
  type StepJoules,
  type StepObservation,
} from "./observation.ts";
import type { Heat } from "./plan.ts";
import {
  checkSnapshot,
  type ProfileSnapshot,
  SNAPSHOT_FORMAT,
  SNAPSHOT_VERSION,
} from "./profile-snapshot.ts";
import { RollingSums } from "./rolling-sums.ts";

/** Most experts a layer may have; the router has the same limit. */
const MAX_EXPERTS = 1024;

/** Longest window, in steps. With it a profile of 1024 experts takes 128 MiB. */
const MAX_WINDOW = 4096;

/** Four half-lives of the average: the figures shown cover about what the heat rests on. */
const DEFAULT_WINDOW = 64;

/**
 * Steps after which a past share counts half. Long enough to average out the
 * draw of single batches, short enough that an expert at ten times the even
 * share is no longer hot 45 steps after its tokens stopped.
 */
const DEFAULT_HALF_LIFE = 16;

/**
 * Steps an expert stays in a class before it may change again. A change moves
 * it to another slice; half a half-life keeps moves rarer than the noise while
 * delaying a real change by less than the average itself does.
 */
const DEFAULT_MINIMUM_DWELL = 8;

/** A longer dwell would mean that heat never changes. */
const MAX_DWELL = 1_000_000;

/** Time is counted in whole ticks, so that sums over the window are exact; 100 ns is the devices' own unit. */
const TICKS_PER_SECOND = 1e7;

/** How many experts there are, and how fast a profiler forgets. */
export interface ProfilerOptions {
  /** Number of experts, 1 to 1024. */
  readonly experts: number;
  /** Steps that tokens and time are summed over (and readings that joules are), 1 to 4096; default 64. */
  readonly window?: number;
  /** Steps after which a past share counts half in the average; default 16. */
  readonly halfLife?: number;
  /** Steps an expert stays hot, warm or cold at least; default 8. */
  readonly minimumDwell?: number;
  /** When an expert becomes and stops being hot or cold. */
  readonly thresholds?: HeatMultiples;
}

const OPTIONS: Fields<ProfilerOptions> = {
  experts: true,
  window: true,
  halfLife: true,
  minimumDwell: true,
  thresholds: true,
};

/** One expert over the window. */
export interface ExpertProfile {
  readonly expert: number;
  readonly heat: Heat;
  readonly tokens: number;
  /** Share of all slots (token and choice) in the window, 0 to 1. */
  readonly share: number;
  /** Exponential average of the share in each step. */
  readonly averageShare: number;
  /** Compute-unit time; null where it was never measured. */
  readonly seconds: number | null;
  /** The part of the measured joules attributed to it, over the readings in the window; null without one. */
  readonly joules: number | null;
  /** The part that it would have if all energy went into reading weights. */
  readonly joulesByReads: number | null;
  /** Its tokens per joule over these readings; null without one, and where it used nothing. */
  readonly tokensPerJoule: number | null;
}

/** What a profiler knows of the steps in its window, expert by expert. */
export interface ProfileReport {
  /** Steps ever observed, and those in the window. */
  readonly steps: number;
  readonly windowSteps: number;
  /** Over the window. */
  readonly tokens: number;
  readonly seconds: number;
  /** What the experts' `joules` go by: an attribution, not a measurement. Null without a reading. */
  readonly energyBasis: EnergyBasis | null;
  readonly experts: readonly ExpertProfile[];
}

/** What a slice manager reads of a profile. */
export interface ProfileView {
  readonly experts: number;
  /** Steps ever observed; at 0 the rest says nothing. */
  readonly steps: number;
  heatOf(expert: number): Heat;
  averageShareOf(expert: number): number;
}

/** Learns from finished steps how hot every expert is and what it costs. */
export class ExpertProfiler implements ProfileView {
  readonly experts: number;
  readonly window: number;
  readonly #halfLife: number;
  readonly #decay: number;
  readonly #minimumDwell: number;
  readonly #scale: HeatScale;
  readonly #counts: RollingSums;
  readonly #ticks: RollingSums;
  /** Per step: slots, tokens, ticks, whether expert ticks were measured. */
  readonly #totals: RollingSums;
  readonly #energy: ExpertEnergy;
  readonly #averageShares: Float64Array;
  readonly #heats: Heat[];
  readonly #stepsInHeat: Int32Array;
  /** The step observed last; kept, so that observing allocates nothing. */
  readonly #stepCounts: Int32Array;
  readonly #stepTicks: Float64Array;
  readonly #stepTotals = new Float64Array(4);
  #stepJoules: StepJoules | undefined;
  #unsettled = false;
  #steps = 0;
  #stepsWithTokens = 0;

  /** @throws InvalidArgumentError for options out of range */
  constructor(options: ProfilerOptions) {
    requireFields(options, "options", "an object such as { experts: 8 }", OPTIONS);
    const { experts, window = DEFAULT_WINDOW, halfLife = DEFAULT_HALF_LIFE } = options;
    const { minimumDwell = DEFAULT_MINIMUM_DWELL, thresholds = HEAT_MULTIPLES } = options;
    checkWhole(experts, 1, MAX_EXPERTS, "experts");
    checkWhole(window, 1, MAX_WINDOW, "window");
    checkWhole(minimumDwell, 0, MAX_DWELL, "minimumDwell");
    if (!(isAmount(halfLife) && halfLife > 0)) {
      throw new InvalidArgumentError(
        `halfLife is ${shown(halfLife)}; it must be a number of steps above 0.`,
      );
    }
    this.experts = experts;
    this.window = window;
    this.#halfLife = halfLife;
    this.#decay = 1 - 2 ** (-1 / halfLife);
    this.#minimumDwell = minimumDwell;
    this.#scale = new HeatScale(experts, thresholds);
    this.#counts = new RollingSums(window, experts);
    this.#ticks = new RollingSums(window, experts);
    this.#totals = new RollingSums(window, 4);
    this.#energy = new ExpertEnergy(experts, window);
    this.#averageShares = new Float64Array(experts);
    this.#heats = new Array<Heat>(experts).fill("warm");
    this.#stepsInHeat = new Int32Array(experts);
    this.#stepCounts = new Int32Array(experts);
    this.#stepTicks = new Float64Array(experts);
  }

  get steps(): number {
    this.settle();
    return this.#steps;
  }

  /**
   * Takes in one finished step. Linear in the number of experts; most of that is left to `settle`.
   *
   * @throws InvalidArgumentError for lengths or values that cannot be; nothing is taken in then
   */
  observe(step: StepObservation): void {
    const slots = checkObservation(step, this.experts);
    this.settle();
    const { counts, busySeconds, tokens = slots, seconds, joules } = step;
    // Copies, as the caller may fill its arrays anew.
    this.#stepCounts.set(counts);
    const ticks = this.#stepTicks;
    let timed = 0;
    if (busySeconds === undefined) ticks.fill(0);
    for (let e = 0; busySeconds !== undefined && e < ticks.length; e++) {
      ticks[e] = Math.round((busySeconds[e] as number) * TICKS_PER_SECOND);
      if (ticks[e] !== 0) timed = 1;
    }
    this.#stepTotals[0] = slots;
    this.#stepTotals[1] = tokens;
    this.#stepTotals[2] = Math.round(seconds * TICKS_PER_SECOND);
    this.#stepTotals[3] = timed;
    this.#stepJoules = joules;
    this.#unsettled = true;
  }

  /**
   * Works the step that was observed last into sums and averages, unless that is done. Whatever tells of them does
   * so first. A step's end is no time for it, and while the next one runs there is some.
   */
  settle(): void {
    if (!this.#unsettled) return;
    this.#unsettled = false;
    const counts = this.#stepCounts;
    const joules = this.#stepJoules;
    const slots = this.#stepTotals[0] as number;
    this.#counts.push(counts);
    this.#ticks.push(this.#stepTicks);
    this.#totals.push(this.#stepTotals);
    this.#energy.addWork(counts, this.#stepTicks);
    if (typeof joules === "number") this.#energy.addReading(joules);
    else if (joules === "lost") this.#energy.dropWork();
    this.#steps++;
    // A step without tokens says nothing about who is popular.
    if (slots > 0) this.#average(counts, slots);
  }

  heatOf(expert: number): Heat {
    this.#checkExpert(expert);
    this.settle();
    return this.#heats[expert] as Heat;
  }

  /** Exponential average of an expert's share of the slots, 0 to 1; 0 before the first step. */
  averageShareOf(expert: number): number {
    this.#checkExpert(expert);
    this.settle();
    return this.#averageShares[expert] as number;
  }

  /** Everything known about every expert. */
  report(): ProfileReport {
    this.settle();
    const [slots = 0, tokens = 0, ticks = 0, timed = 0] = this.#totals.sums;
    const profileOf = (heat: Heat, expert: number): ExpertProfile => {
      const expertTokens = this.#counts.sums[expert] as number;
      return {
        expert,
        heat,
        tokens: expertTokens,
        share: slots > 0 ? expertTokens / slots : 0,
        averageShare: this.#averageShares[expert] as number,
        seconds: timed > 0 ? (this.#ticks.sums[expert] as number) / TICKS_PER_SECOND : null,
        joules: this.#energy.joulesOf(expert),
        joulesByReads: this.#energy.joulesByReadsOf(expert),
        tokensPerJoule: this.#energy.tokensPerJouleOf(expert),
      };
    };
    return {
      steps: this.#steps,
      windowSteps: this.#totals.filled,
      tokens,
      seconds: ticks / TICKS_PER_SECOND,
      energyBasis: this.#energy.basis,
      experts: this.#heats.map(profileOf),
    };
  }

  /** The whole state as a plain value for JSON; `ExpertProfiler.restore` goes on from it exactly. */
  snapshot(): ProfileSnapshot {
    this.settle();
    return {
      format: SNAPSHOT_FORMAT,
      version: SNAPSHOT_VERSION,
      options: {
        experts: this.experts,
        window: this.window,
        halfLife: this.#halfLife,
        minimumDwell: this.#minimumDwell,
        thresholds: { ...this.#scale.multiples },
      },
      steps: this.#steps,
      stepsWithTokens: this.#stepsWithTokens,
      averageShares: Array.from(this.#averageShares),
      heats: [...this.#heats],
      stepsInHeat: Array.from(this.#stepsInHeat),
      counts: this.#counts.rows(),
      ticks: this.#ticks.rows(),
      totals: this.#totals.rows(),
      energy: this.#energy.state(),
    };
  }

  /**
   * A profiler that goes on where another one stood.
   *
   * @param value what `snapshot()` returned, also after a trip through JSON
   * @throws InvalidArgumentError naming the field that is wrong
   */
  static restore(value: unknown): ExpertProfiler {
    const snapshot = checkSnapshot(value);
    const profiler = new ExpertProfiler(snapshot.options);
    profiler.#steps = snapshot.steps;
    profiler.#stepsWithTokens = snapshot.stepsWithTokens;
    profiler.#averageShares.set(snapshot.averageShares);
    profiler.#stepsInHeat.set(snapshot.stepsInHeat);
    profiler.#heats.splice(0, profiler.experts, ...snapshot.heats);
    for (const row of snapshot.counts) profiler.#counts.push(row);
    for (const row of snapshot.ticks) profiler.#ticks.push(row);
    for (const row of snapshot.totals) profiler.#totals.push(row);
    profiler.#energy.load(snapshot.energy);
    return profiler;
  }

  #average(counts: Int32Array, slots: number): void {
    const first = this.#stepsWithTokens === 0;
    this.#stepsWithTokens++;
    // A plain mean until the exponential one has enough behind it: otherwise the
    // first batch would weigh as much as a whole half-life.
    const weight = Math.max(this.#decay, 1 / this.#stepsWithTokens);
    const shares = this.#averageShares;
    const heats = this.#heats;
    const stepsInHeat = this.#stepsInHeat;
    const scale = this.#scale;
    const minimumDwell = this.#minimumDwell;
    for (let e = 0; e < shares.length; e++) {
      const before = shares[e] as number;
      const share = before + weight * ((counts[e] as number) / slots - before);
      shares[e] = share;
      const heat = heats[e] as Heat;
      const dwelt = (stepsInHeat[e] as number) + 1;
      const next = scale.classify(share, first ? undefined : heat);
      if (first || (next !== heat && dwelt >= minimumDwell)) {
        heats[e] = next;
        stepsInHeat[e] = 0;
      } else {
        stepsInHeat[e] = Math.min(dwelt, minimumDwell);
      }
    }
  }

  #checkExpert(expert: number): void {
    checkWhole(expert, 0, this.experts - 1, "expert");
  }
}
