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

/**
 * First samples of each batch size that are left out. A new division of the
 * device runs eagerly once and is captured once before graphs of it replay.
 */
const UNSETTLED_SAMPLES = 2;

/** Fewest samples of a batch size that have a variance. */
const MIN_STRATUM_SAMPLES = 2;

/** Samples of one kind of cost, apart by batch size. */
export class CostSamples {
  readonly #strata = new Map<number, Stratum>();
  #count = 0;

  /** Samples that count, of all batch sizes. */
  get count(): number {
    return this.#count;
  }

  /** @param cost of the whole batch, above 0 @param tokens in it, above 0 */
  add(cost: number, tokens: number): void {
    const size = Math.floor(Math.log2(tokens));
    let stratum = this.#strata.get(size);
    if (stratum === undefined) {
      stratum = { seen: 0, n: 0, mean: 0, squares: 0 };
      this.#strata.set(size, stratum);
    }
    if (++stratum.seen <= UNSETTLED_SAMPLES) return;
    // Welford's update of mean and sum of squared deviations.
    const value = Math.log(cost / tokens);
    const delta = value - stratum.mean;
    stratum.n++;
    stratum.mean += delta / stratum.n;
    stratum.squares += delta * (value - stratum.mean);
    this.#count++;
  }

  /** How much cheaper these are than `other`, or undefined while no batch size has enough of both. */
  gainOver(other: CostSamples): Gain | undefined {
    let weights = 0;
    let gain = 0;
    let variance = 0;
    for (const [size, mine] of this.#strata) {
      const theirs = other.#strata.get(size);
      if (theirs === undefined) continue;
      if (mine.n < MIN_STRATUM_SAMPLES || theirs.n < MIN_STRATUM_SAMPLES) continue;
      const weight = 1 / (1 / mine.n + 1 / theirs.n);
      weights += weight;
      gain += weight * (theirs.mean - mine.mean);
      variance += weight ** 2 * (errorOf(mine) + errorOf(theirs));
    }
    if (weights === 0) return undefined;
    return { gain: gain / weights, variance: variance / weights ** 2 };
  }
}

/** A relative saving (0.1 is about 10 % cheaper) and the square of its standard error. */
export interface Gain {
  readonly gain: number;
  readonly variance: number;
}

interface Stratum {
  /** All samples, with those left out. */
  seen: number;
  n: number;
  /** Of the logarithm of the cost per token. */
  mean: number;
  /** Sum of squared deviations from it. */
  squares: number;
}

/** Squared standard error of a stratum's mean. */
function errorOf({ n, squares }: Stratum): number {
  return squares / (n - 1) / n;
}
