/**
 * What a contender's samples say of its time. A cell has one or more batches that take turns,
 * and a step of one takes longer than a step of another, because it reaches other experts; so
 * each batch has a median of its own. Which samples there are is the result's.
 */

import { mean, median, spread } from "./statistics.mjs";

/**
 * @param contender with `rounds`, bursts that each begin with the first batch and go on in
 *   turn, or with `samples` of a single burst
 * @returns { us: the mean of the batches' medians, relative: samples as shares of their batch's
 *   median, spread: of those }
 */
export function timesOf({ samples, rounds = [samples] }, batches = 1) {
  const ofBatch = Array.from({ length: batches }, () => []);
  for (const burst of rounds) {
    for (const [i, us] of burst.entries()) ofBatch[i % batches].push(us);
  }
  // A short burst does not reach the last batches.
  const known = ofBatch.filter(({ length }) => length > 0);
  const medians = known.map(median);
  const relative = known.flatMap((values, i) => values.map((us) => us / medians[i]));
  return { us: mean(medians), relative, spread: spread(relative) };
}
