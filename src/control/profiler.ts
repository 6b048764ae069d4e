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
import { type Fields, isAmount, requireFields, requireObject } from "../execution/checks.ts";
import { type EnergyBasis, ExpertEnergy } from "./expert-energy.ts";
import { HEAT_MULTIPLES, type HeatMultiples, HeatScale } from "./heat.ts";
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

/** A longer step is a mistake in units, and would cost the sums their exactness. */
const MAX_STEP_SECONDS = 86_400;

/** As above. */
const MAX_READING_JOULES = 1e6;

/** Tokens and counts are int32 on the devices. */
const MAX_TOKENS = 2 ** 31 - 1;

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
  /** Scratch, so that observing allocates nothing. */
  readonly #stepTicks: Float64Array;
  readonly #stepTotals = new Float64Array(4);
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
    this.#stepTicks = new Float64Array(experts);
  }

  get steps(): number {
    return this.#steps;
  }

  /**
   * Takes in one finished step. Linear in the number of experts.
   *
   * @throws InvalidArgumentError for lengths or values that cannot be; nothing is taken in then
   */
  observe(step: StepObservation): void {
    const slots = this.#check(step);
    const { counts, busySeconds, joules } = step;
    const ticks = this.#stepTicks;
    let timed = 0;
    for (let e = 0; e < ticks.length; e++) {
      ticks[e] = busySeconds ? Math.round((busySeconds[e] as number) * TICKS_PER_SECOND) : 0;
      if (ticks[e] !== 0) timed = 1;
    }
    this.#counts.push(counts);
    this.#ticks.push(ticks);
    this.#stepTotals[0] = slots;
    this.#stepTotals[1] = step.tokens ?? slots;
    this.#stepTotals[2] = Math.round(step.seconds * TICKS_PER_SECOND);
    this.#stepTotals[3] = timed;
    this.#totals.push(this.#stepTotals);
    this.#energy.addWork(counts, ticks);
    if (typeof joules === "number") this.#energy.addReading(joules);
    else if (joules === "lost") this.#energy.dropWork();
    this.#steps++;
    // A step without tokens says nothing about who is popular.
    if (slots > 0) this.#average(counts, slots);
  }

  heatOf(expert: number): Heat {
    this.#checkExpert(expert);
    return this.#heats[expert] as Heat;
  }

  /** Exponential average of an expert's share of the slots, 0 to 1; 0 before the first step. */
  averageShareOf(expert: number): number {
    this.#checkExpert(expert);
    return this.#averageShares[expert] as number;
  }

  /** Everything known about every expert. */
  report(): ProfileReport {
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

  /** @returns the sum of the counts */
  #check(step: StepObservation): number {
    requireObject(step, "step", "what a step showed, such as { counts, seconds }");
    const { counts, busySeconds, seconds, tokens, joules } = step;
    if (!(counts instanceof Int32Array) || counts.length !== this.experts) {
      throw new InvalidArgumentError(
        `counts must be an Int32Array of ${this.experts} entries, one per expert; got ${describe(counts)}.`,
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
      if (!(busySeconds instanceof Float64Array) || busySeconds.length !== this.experts) {
        throw new InvalidArgumentError(
          `busySeconds must be a Float64Array of ${this.experts} entries, one per expert; got ${describe(busySeconds)}.`,
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

  #checkExpert(expert: number): void {
    checkWhole(expert, 0, this.experts - 1, "expert");
  }
}

function checkSeconds(value: number, name: string): void {
  if (!(isAmount(value) && value <= MAX_STEP_SECONDS)) {
    throw new InvalidArgumentError(
      `${name} is ${shown(value)}; it must be a time in seconds, 0 to ${MAX_STEP_SECONDS}.`,
    );
  }
}

function checkWhole(value: number, least: number, most: number, name: string): void {
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
