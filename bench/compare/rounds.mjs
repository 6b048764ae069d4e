/**
 * Takes turns: in every round each contender has one burst, beginning with another one each
 * time, so that what changes during a cell (clocks, temperature) meets them all alike.
 */

/** A burst is about so long: long enough for the clocks to settle under this contender's load. */
const BURST_US = 20_000;
const LEAST_REPLAYS = 3;
const MOST_REPLAYS = 60;
/** Replays that tell how long a burst gets. */
const FIRST_LOOK = 3;

/**
 * @param contenders [{ name, time(replays) }]
 * @returns a map from contender to { samples, rounds }: microseconds
 */
export async function takeTurns(contenders, rounds) {
  const replays = new Map();
  for (const contender of contenders) {
    const [us] = (await contender.time(FIRST_LOOK)).sort((a, b) => a - b);
    const count = Math.round(BURST_US / us);
    replays.set(contender, Math.min(MOST_REPLAYS, Math.max(LEAST_REPLAYS, count)));
  }
  const taken = new Map(contenders.map((contender) => [contender, []]));
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < contenders.length; turn++) {
      const contender = contenders[(round + turn) % contenders.length];
      taken.get(contender).push(await contender.time(replays.get(contender)));
    }
  }
  return taken;
}
