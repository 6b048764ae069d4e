/**
 * When two measurements of the same differ by more than chance. Both must hold:
 *
 * - the times are further apart than the noise, which is the largest of 1 %, how far two
 *   measurements of Nexus in the same rounds were apart (in this cell, and in the median
 *   cell of either file), and the spread of block medians in either file;
 * - a rank test between block medians says so at 99 %.
 *
 * Samples next to each other are alike, because a clock or a temperature lasts longer than
 * a step; taken one by one they would make any trifle certain. So a measurement is cut into
 * blocks of neighbouring samples, and counts as often as it has blocks. No block has parts of
 * several rounds; of many rounds a block has several whole ones.
 */

import { median, quantile } from "../statistics.ts";

/** Less is not told from another card, another day or another order of allocations. */
export const LEAST_NOISE = 0.01;
/** Of chance alone finding ranks as uneven as those found. */
export const SIGNIFICANCE = 0.01;
/** Enough for a rank test at 99 % with room to spare, and with 200 samples still 20 in each. */
const BLOCKS = 10;
/** More add nothing to the test, which counts choices of ranks: their number and its time would explode. */
const MOST_BLOCKS = 20;

/** Medians of blocks of neighbouring samples. */
export function blockMedians(rounds: readonly (readonly number[])[]): number[] {
  const merged = pieces(rounds, MOST_BLOCKS).map((neighbours) => neighbours.flat());
  const perRound = Math.ceil(BLOCKS / merged.length);
  return merged.flatMap((samples) => pieces(samples, perRound).map((block) => median(block)));
}

/** Neighbouring values in at most so many lists, about equally long. */
function pieces<T>(values: readonly T[], most: number): T[][] {
  const count = Math.min(most, values.length);
  const bound = (piece: number) => Math.round((piece * values.length) / count);
  return Array.from({ length: count }, (_, piece) => values.slice(bound(piece), bound(piece + 1)));
}

/** Half the distance between the quartiles, as a share of the median. */
export function spreadOf(values: readonly number[]): number {
  return (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / median(values);
}

/**
 * Probability that two samples from one distribution have rank sums as far from the
 * expected as these: the rank-sum test of Wilcoxon, Mann and Whitney, two-sided. Exact, by
 * counting the choices of ranks for each sum; values that are equal share their mean rank.
 */
export function rankTest(a: readonly number[], b: readonly number[]): number {
  const ranks = doubledRanks([...a, ...b]);
  const total = ranks.reduce((sum, rank) => sum + rank, 0);
  // ways[n][s]: in how many ways n of the ranks seen so far add up to s.
  const ways = Array.from({ length: a.length + 1 }, () => new Float64Array(total + 1));
  (ways[0] as Float64Array)[0] = 1;
  for (const rank of ranks) {
    for (let n = a.length; n > 0; n--) {
      const [more, fewer] = [ways[n] as Float64Array, ways[n - 1] as Float64Array];
      for (let sum = total; sum >= rank; sum--) {
        more[sum] = (more[sum] as number) + (fewer[sum - rank] as number);
      }
    }
  }
  const counts = ways[a.length] as Float64Array;
  const expected = (total * a.length) / ranks.length;
  const found = ranks.slice(0, a.length).reduce((sum, rank) => sum + rank, 0);
  // Sums are whole or half numbers: the margin only absorbs the division above.
  const distance = Math.abs(found - expected) - 1e-6;
  let [all, asFar] = [0, 0];
  counts.forEach((count, sum) => {
    all += count;
    if (Math.abs(sum - expected) >= distance) asFar += count;
  });
  return asFar / all;
}

/** Twice the rank of every value, so that a mean of two ranks is whole too. */
function doubledRanks(values: readonly number[]): number[] {
  return values.map((value) => {
    const below = values.filter((each) => each < value).length;
    const equal = values.filter((each) => each === value).length;
    return 2 * below + equal + 1;
  });
}

/** The least probability that the rank test can find between so many blocks and so many. */
export function leastProbability(a: number, b: number): number {
  let choices = 1;
  for (let i = 1; i <= a; i++) choices = (choices * (b + i)) / i;
  return Math.min(1, 2 / choices);
}
