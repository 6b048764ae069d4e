/**
 * Takes turns: in every round each contender has one burst, in an order drawn anew, so that nobody
 * always follows the same other and what changes during a cell (clocks, temperature) meets them
 * all alike. A burst goes through all batches equally often, from the first on.
 */

import { Random } from "../gpu/support.mjs";

/** A burst is about so long: long enough for the clocks to settle under this contender's load. */
const BURST_US = 20_000;
const LEAST_REPLAYS = 3;
const MOST_REPLAYS = 60;

/**
 * @param contenders [{ time(replays) }]
 * @param plan { rounds, batches, seed }
 * @returns a map from contender to its rounds: microseconds of every replay
 */
export async function takeTurns(contenders, { rounds, batches, seed }) {
  const replays = new Map();
  for (const contender of contenders) {
    const look = await contender.time(batches);
    const us = look.reduce((sum, each) => sum + each, 0) / look.length;
    const wanted = Math.min(MOST_REPLAYS, Math.max(LEAST_REPLAYS, Math.round(BURST_US / us)));
    replays.set(contender, Math.ceil(wanted / batches) * batches);
  }
  const random = new Random(seed).fork("turns");
  const taken = new Map(contenders.map((contender) => [contender, []]));
  for (let round = 0; round < rounds; round++) {
    for (const turn of random.permutation(contenders.length)) {
      const contender = contenders[turn];
      taken.get(contender).push(await contender.time(replays.get(contender)));
    }
  }
  return taken;
}
