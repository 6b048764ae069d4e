/**
 * Whether one way of running is really cheaper than another, from noisy
 * measurements of both.
 *
 * Costs are compared as logarithms, so a difference is a relative one and a slow
 * outlier does not drown the rest. They are compared only within batches of
 * about the same size, because the cost per token of 4 tokens and of 4,000 are
 * different things; the differences of all sizes are then averaged. The error is
 * that of Welch's two-sample comparison.
 */

import { RecentMean } from "./recent-mean.ts";

/** What is tried has to save this much: less is not worth the graphs that it needs. */
const MIN_ADAPTIVE_GAIN = 0.02;

/** And its gain has to be this many standard errors: by chance alone one trial in some hundreds shows that. */
const CONFIDENCE = 3;

/** A relative saving (0.1 is about 10 % cheaper) and the square of its standard error. */
export interface Gain {
  readonly gain: number;
  readonly variance: number;
}

/** Samples of one kind of cost, apart by batch size. */
export class CostSamples {
  readonly #sizes = new Map<number, RecentMean>();
  #count = 0;

  /** Samples of all batch sizes. */
  get count(): number {
    return this.#count;
  }

  /** @param cost of the whole batch, above 0 @param tokens in it, above 0 */
  add(cost: number, tokens: number): void {
    const size = sizeClass(tokens);
    let samples = this.#sizes.get(size);
    if (samples === undefined) {
      samples = new RecentMean();
      this.#sizes.set(size, samples);
    }
    samples.add(costPerToken(cost, tokens));
    this.#count++;
  }

  /** How much cheaper these are than `other`, or undefined while no batch size has enough of both. */
  gainOver(other: CostSamples): Gain | undefined {
    const gains: WeightedGain[] = [];
    for (const [size, mine] of this.#sizes) {
      const theirs = other.#sizes.get(size);
      // The fewest that have a variance.
      if (theirs === undefined || mine.n < 2 || theirs.n < 2) continue;
      gains.push({
        weight: 1 / (1 / mine.n + 1 / theirs.n),
        gain: theirs.mean - mine.mean,
        variance: mine.error + theirs.error,
      });
    }
    return averageOf(gains);
  }
}

/** Batches of one class have about the same size: it doubles from class to class. */
export function sizeClass(tokens: number): number {
  return Math.floor(Math.log2(tokens));
}

/** As a logarithm. */
export function costPerToken(cost: number, tokens: number): number {
  return Math.log(cost / tokens);
}

export interface WeightedGain extends Gain {
  readonly weight: number;
}

/** Of gains in batches of several sizes; undefined of none. */
export function averageOf(gains: readonly WeightedGain[]): Gain | undefined {
  const weights = gains.reduce((sum, { weight }) => sum + weight, 0);
  if (weights === 0) return undefined;
  let mean = 0;
  let errors = 0;
  for (const { weight, gain, variance } of gains) {
    const part = weight / weights;
    mean += part * gain;
    errors += part ** 2 * variance;
  }
  return { gain: mean, variance: errors };
}

/** Of time and of energy, where that is known: the gain in their product. */
export function productOf(time: Gain | undefined, energy: Gain | undefined): Gain | undefined {
  if (time === undefined || energy === undefined) return time;
  return { gain: time.gain + energy.gain, variance: time.variance + energy.variance };
}

/** Enough to go by it. */
export function isCheaper(result: Gain | undefined): result is Gain {
  return result !== undefined && result.gain > Math.max(MIN_ADAPTIVE_GAIN, marginOf(result));
}

/** Whether it is all but out of the question that more samples would show enough. */
export function isHopeless(result: Gain | undefined): boolean {
  return result !== undefined && result.gain + marginOf(result) < MIN_ADAPTIVE_GAIN;
}

export function marginOf({ variance }: Gain): number {
  return CONFIDENCE * Math.sqrt(variance);
}
