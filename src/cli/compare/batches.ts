/**
 * What a contender's samples say of its time. A cell has one or more batches that take turns
 * in every round, beginning with the first, and a step of one takes longer than a step of
 * another, because it reaches other experts; so each batch has a median of its own.
 */

import { mean, median } from "../statistics.ts";

interface Turns {
  readonly rounds: readonly (readonly number[])[];
  readonly batches: number;
}

/** The mean of the medians of all batches that have samples. */
export function timeOf(turns: Turns): number {
  return mean(mediansOf(turns).filter((value) => value !== undefined));
}

/** The rounds as if every batch took equally long: what varies in them then is the measurement. */
export function evenRounds(turns: Turns): number[][] {
  const medians = mediansOf(turns);
  const time = timeOf(turns);
  return turns.rounds.map((samples) =>
    samples.map((us, i) => us * (time / (medians[i % turns.batches] as number))),
  );
}

/** Of each batch; undefined for those that no round reaches. */
function mediansOf(turns: Turns): (number | undefined)[] {
  return samplesOf(turns).map((samples) => (samples.length === 0 ? undefined : median(samples)));
}

/** Of each batch, in the order of the rounds; none for those that no round reaches. */
export function samplesOf({ rounds, batches }: Turns): number[][] {
  return Array.from({ length: batches }, (_, batch) =>
    rounds.flatMap((round) => round.filter((_, i) => i % batches === batch)),
  );
}
