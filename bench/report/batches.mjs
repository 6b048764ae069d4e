/**
 * What a contender's samples say of its time and of how far they scatter. How the batches of a
 * cell make one time is the package's to say: `nexus bench --compare` shows the same figure.
 */

import { samplesOf, timeOf } from "../../dist/src/cli/compare/batches.js";
import { median, spread } from "./statistics.mjs";

/**
 * @param contender with `rounds`, bursts that each begin with the first batch and go on in
 *   turn, or with `samples` of a single burst
 * @returns { us: the mean of the batches' medians, relative: samples as shares of their batch's
 *   median, spread: of those }
 */
export function timesOf({ samples, rounds = [samples] }, batches = 1) {
  const turns = { rounds, batches };
  const relative = samplesOf(turns).flatMap((samples) => {
    const usual = median(samples);
    return samples.map((us) => us / usual);
  });
  return { us: timeOf(turns), relative, spread: spread(relative) };
}
