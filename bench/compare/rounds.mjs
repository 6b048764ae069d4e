/**
 * Takes turns: in every round each contender has one burst, in an order drawn anew for every round of every cell, so that over
 * many cells nobody always follows the same other, and what changes during a cell (clocks, temperature) meets them
 * all alike. A burst goes through all batches equally often, from the first on.
 */

import { Random } from "../gpu/support.mjs";
import { Refused } from "./options.mjs";

/** A burst is about so long: long enough for the clocks to settle under this contender's load. */
const BURST_US = 20_000;
const LEAST_REPLAYS = 3;
const MOST_REPLAYS = 60;
/** An eager step is as fast as its host, which needs time to settle: all rounds of such a contender together are at least so long. */
const EAGER_US = 500_000;

/**
 * A contender that may fail (`mayFail`) has no more turns once it cannot be timed: the others go on without it.
 *
 * @param contenders [{ time(replays), mayFail?, eager? }]
 * @param plan { rounds, batches, seed, cell }: other cells have other orders, by their name
 * @returns { taken: a map from contender to its rounds, microseconds of every replay; failed: one from contender to the
 *   reason, of those that could not be timed }
 * @throws what a contender that may not fail throws, and any error that says that there is nobody to ask any more
 */
export async function takeTurns(contenders, { rounds, batches, seed, cell }) {
  const failed = new Map();
  const timed = async (contender, replays) => {
    if (failed.has(contender)) return undefined;
    try {
      return await contender.time(replays);
    } catch (error) {
      if (contender.mayFail !== true || error instanceof Refused) throw error;
      failed.set(contender, error.message);
      return undefined;
    }
  };
  const replays = new Map();
  for (const contender of contenders) {
    const look = await timed(contender, batches);
    if (look === undefined) continue;
    const us = look.reduce((sum, each) => sum + each, 0) / look.length;
    const wanted = contender.eager
      ? Math.max(LEAST_REPLAYS, Math.ceil(EAGER_US / rounds / us))
      : Math.min(MOST_REPLAYS, Math.max(LEAST_REPLAYS, Math.round(BURST_US / us)));
    replays.set(contender, Math.ceil(wanted / batches) * batches);
  }
  const random = new Random(seed).fork(`turns of ${cell}`);
  const taken = new Map(contenders.map((contender) => [contender, []]));
  for (let round = 0; round < rounds; round++) {
    for (const turn of random.permutation(contenders.length)) {
      const contender = contenders[turn];
      const burst = await timed(contender, replays.get(contender));
      if (burst !== undefined) taken.get(contender).push(burst);
    }
  }
  return { taken, failed };
}
