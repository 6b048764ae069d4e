/**
 * Wall-clock times of repeated work. Two ways to do the same are timed in turns, so
 * that whatever else happens on the machine meanwhile falls on both alike.
 */

import { quantile } from "../statistics.ts";

/** Fewer samples than this say little about spread. */
const MINIMUM_SAMPLES = 5;
/** More samples than this say nothing new. */
const MAXIMUM_SAMPLES = 1000;

export interface Timing {
  readonly median: number;
  readonly lowerQuartile: number;
  readonly upperQuartile: number;
  /** Every measured time, in order, in seconds. */
  readonly samples: readonly number[];
}

/** When to stop: after so many samples of each, or once each has run so long. */
export type Effort = { readonly repeat: number } | { readonly minimumSeconds: number };

/**
 * @param first, second do one piece of work; `turn` counts up from 0
 * @param onTurn told how far the measurement is, 0 to 1
 */
export async function timeInTurns(
  first: (turn: number) => Promise<unknown>,
  second: (turn: number) => Promise<unknown>,
  effort: Effort,
  onTurn: (done: number) => void,
): Promise<[Timing, Timing]> {
  const samples: [number[], number[]] = [[], []];
  const spent: [number, number] = [0, 0];
  for (let turn = 0; turn < MAXIMUM_SAMPLES; turn++) {
    const done =
      "repeat" in effort
        ? turn / effort.repeat
        : Math.min(turn / MINIMUM_SAMPLES, Math.min(...spent) / effort.minimumSeconds);
    if (done >= 1) break;
    onTurn(done);
    // Who goes first changes every turn: the second finds the caches as the first left them.
    const order: readonly (0 | 1)[] = turn % 2 === 0 ? [0, 1] : [1, 0];
    for (const which of order) {
      const started = performance.now();
      await (which === 0 ? first(turn) : second(turn));
      const seconds = (performance.now() - started) / 1000;
      samples[which].push(seconds);
      spent[which] += seconds;
    }
  }
  return [timingOf(samples[0]), timingOf(samples[1])];
}

/** One way by itself. @param work does one piece; `turn` counts up from 0 */
export async function timeOne(
  work: (turn: number) => Promise<unknown>,
  effort: Effort,
): Promise<Timing> {
  const samples: number[] = [];
  let spent = 0;
  for (let turn = 0; turn < MAXIMUM_SAMPLES; turn++) {
    const done =
      "repeat" in effort
        ? turn >= effort.repeat
        : turn >= MINIMUM_SAMPLES && spent >= effort.minimumSeconds;
    if (done) break;
    const started = performance.now();
    await work(turn);
    const seconds = (performance.now() - started) / 1000;
    samples.push(seconds);
    spent += seconds;
  }
  return timingOf(samples);
}

/** Half the distance between the quartiles. */
export function spreadOf({ lowerQuartile, upperQuartile }: Timing): number {
  return (upperQuartile - lowerQuartile) / 2;
}

/** Whether two medians are no farther apart than the times of either spread: their ratio then says nothing. */
export function withinSpread(a: Timing, b: Timing): boolean {
  return Math.abs(a.median - b.median) <= Math.max(spreadOf(a), spreadOf(b));
}

export function timingOf(samples: readonly number[]): Timing {
  return {
    median: quantile(samples, 0.5),
    lowerQuartile: quantile(samples, 0.25),
    upperQuartile: quantile(samples, 0.75),
    samples,
  };
}
