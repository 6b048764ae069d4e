/**
 * What a stretch of work cost in joules, from whatever counter the device has.
 *
 * Two ways to ask. A window, for a stretch that the caller marks: `begin()`, the
 * work, `await window.end({ tokens })`. And sampling, for a loop that never
 * ends: call `sample()` after every step and get a reading now and then, when
 * enough time has passed for one to mean something. Sampling reads the counter
 * in the background, at most once per minimum window, and never waits.
 *
 * A reading is a measurement or it is not there: it is never scaled, filled in
 * or estimated. Without a counter nothing here touches the disk or sets a timer.
 * The counter sees everything its domain does, so a reading is the cost of this
 * work only as far as the machine does nothing else meanwhile.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { isAmount, requireObject } from "../execution/checks.ts";
import type { EnergySource } from "../execution/device.ts";

/** Energy measured over a stretch of work. */
export interface EnergyMeasured {
  readonly available: true;
  readonly joules: number;
  /** Between the two readings of the counter. */
  readonly seconds: number;
  readonly watts: number;
  readonly tokens: number;
  readonly tokensPerJoule: number;
  /** Null when no tokens were processed. */
  readonly joulesPerToken: number | null;
  /** What was counted, e.g. `"RAPL package-0"`. */
  readonly domain: string;
}

/** What a window cost, or why nobody can say. */
export type EnergyReading =
  | EnergyMeasured
  | {
      readonly available: false;
      readonly reason: string;
      /** Set while the work is still being counted: a later reading will cover it. Otherwise none ever will. */
      readonly pending?: true;
    };

/** A stretch of work whose energy is being counted. */
export interface EnergyWindow {
  /**
   * Energy since `begin()`. May be asked again later, each time from the beginning.
   *
   * @throws InvalidArgumentError (as a rejection) unless `tokens` is a whole number, 0 or more
   */
  end(work: { readonly tokens: number }): Promise<EnergyReading>;
}

/**
 * Steps must fill at least half of a sampled window. Below that most of the
 * joules are the machine's idle power, and joules per token would say how long
 * the pauses were rather than what the tokens cost.
 */
const MINIMUM_BUSY_SHARE = 0.5;

/** The answer to `sample()` most of the time. */
const WINDOW_OPEN: EnergyReading = {
  available: false,
  reason: "The measuring window is not over yet; a later step brings the reading.",
  pending: true,
};

/** One look at the counter, or why it failed. */
type Point = Look | { readonly failure: string };

interface Look {
  readonly joules: number;
  readonly at: number;
}

type AvailableSource = Extract<EnergySource, { available: true }>;

/** Measures the energy of windows and of steps. Holds nothing that must be closed. */
export class EnergyMonitor {
  /** What it reads, or why it cannot. */
  readonly source: EnergySource;
  readonly #now: () => number;

  /** Where the sampled window began; undefined before the first look and after a failed one. */
  #opening: Look | undefined;
  /** When the counter was last looked at for `sample()`. */
  #lookedAt = Number.NEGATIVE_INFINITY;
  #looking = false;
  #tokens = 0;
  #busySeconds = 0;
  #finished = WINDOW_OPEN;

  /**
   * @param now a clock in milliseconds that never goes back
   * @throws InvalidArgumentError if there is no source
   */
  constructor(source: EnergySource, now: () => number = () => performance.now()) {
    requireSource(source);
    this.source = source;
    this.#now = now;
  }

  /**
   * Opens a window; any number may be open at once. The counter is read without
   * waiting for it, so the window opens with the event loop's next turns: leave
   * it some before a long synchronous stretch.
   */
  begin(): EnergyWindow {
    const source = this.source;
    const opening = source.available ? this.#look(source) : undefined;
    return {
      end: async (work) => {
        requireObject(work, "work", "what was done, such as { tokens: 512 }");
        const { tokens } = work;
        checkTokens(tokens);
        if (!source.available) return source;
        return readingBetween(source, (await opening) as Point, await this.#look(source), tokens);
      },
    };
  }

  /**
   * Books one finished step. Answers at once: with a measurement of all the steps
   * since the one before it, which is handed out once, and otherwise with why
   * there is none, be it only that the window is not over yet. After a failed
   * look at the counter sampling starts over.
   *
   * @param tokens processed by the step
   * @param seconds that the step took
   * @throws InvalidArgumentError for a count or a time that is negative or not finite
   */
  sample(tokens: number, seconds: number): EnergyReading {
    const source = this.source;
    checkTokens(tokens);
    if (!isAmount(seconds)) {
      throw new InvalidArgumentError(
        `seconds is ${shown(seconds)}; it must be the measured time of the step, 0 or more.`,
      );
    }
    if (!source.available) return source;
    this.#tokens += tokens;
    this.#busySeconds += seconds;
    if (!this.#looking && this.#now() - this.#lookedAt >= source.minimumWindowSeconds * 1e3) {
      this.#looking = true;
      void this.#look(source).then((point) => this.#close(source, point));
    }
    const finished = this.#finished;
    this.#finished = WINDOW_OPEN;
    return finished;
  }

  /** Power drawn at this moment in watts, or null where the source counts energy alone. Never a measure of energy. */
  async watts(): Promise<number | null> {
    const { source } = this;
    return (source.available && (await source.watts?.())) || null;
  }

  /** Ends the sampled window at `point` and begins the next one there. */
  #close(source: AvailableSource, point: Point): void {
    if (this.#opening !== undefined || "failure" in point) {
      const from = this.#opening ?? point;
      this.#finished = sampledReading(source, from, point, this.#tokens, this.#busySeconds);
    }
    this.#opening = "failure" in point ? undefined : point;
    this.#lookedAt = this.#now();
    this.#looking = false;
    this.#tokens = 0;
    this.#busySeconds = 0;
  }

  async #look(source: AvailableSource): Promise<Point> {
    try {
      const joules = await source.joules();
      return { joules, at: this.#now() };
    } catch (error) {
      return { failure: error instanceof Error ? error.message : String(error) };
    }
  }
}

function readingBetween(
  source: AvailableSource,
  from: Point,
  to: Point,
  tokens: number,
): EnergyReading {
  if ("failure" in from) return counterFailed(from.failure);
  if ("failure" in to) return counterFailed(to.failure);
  const seconds = (to.at - from.at) / 1e3;
  const joules = to.joules - from.joules;
  if (seconds < source.minimumWindowSeconds) {
    return unavailable(
      `The window of ${seconds.toFixed(4)} s is shorter than the ${source.minimumWindowSeconds} s that ${source.domain} needs. Measure more steps at once.`,
    );
  }
  if (!(joules >= 0)) {
    return unavailable(`${source.domain} went back from ${from.joules} J to ${to.joules} J.`);
  }
  if (joules === 0) {
    return unavailable(`${source.domain} stood still for ${seconds.toFixed(4)} s.`);
  }
  return {
    available: true,
    joules,
    seconds,
    watts: joules / seconds,
    tokens,
    tokensPerJoule: tokens / joules,
    joulesPerToken: tokens === 0 ? null : joules / tokens,
    domain: source.domain,
  };
}

/** As `readingBetween`, but refused where the steps were too few for the time that passed. */
function sampledReading(
  source: AvailableSource,
  from: Point,
  to: Point,
  tokens: number,
  busySeconds: number,
): EnergyReading {
  const reading = readingBetween(source, from, to, tokens);
  if (!reading.available) return reading;
  const busyShare = busySeconds / reading.seconds;
  if (busyShare >= MINIMUM_BUSY_SHARE) return reading;
  return unavailable(
    `Steps filled only ${(busyShare * 100).toFixed(1)} % of ${reading.seconds.toFixed(3)} s, so most of the ${reading.joules.toFixed(3)} J are not theirs.`,
  );
}

function counterFailed(failure: string): EnergyReading {
  return unavailable(`The energy counter failed: ${failure}`);
}

function unavailable(reason: string): EnergyReading {
  return { available: false, reason };
}

/** @throws InvalidArgumentError unless it can be read, or says that it cannot */
function requireSource(source: EnergySource): void {
  const rule = "an energy source, such as device.energy";
  requireObject(source, "source", rule);
  if (source.available === false) return;
  const { available, joules, minimumWindowSeconds } = source;
  if (available === true && typeof joules === "function" && isAmount(minimumWindowSeconds)) return;
  throw new InvalidArgumentError(`source is ${shown(source)}; it must be ${rule}.`);
}

function checkTokens(tokens: number): void {
  if (!Number.isInteger(tokens) || tokens < 0) {
    throw new InvalidArgumentError(
      `tokens is ${shown(tokens)}; it must be a whole number, 0 or more.`,
    );
  }
}
