/** The bars that the project set itself before measuring, and whether a result meets them. */

import { COMMON_PEER, overCommonPeer, skewPenalties, weightRate } from "./figures.mjs";
import { percent, plural, ratio, ratioBeside } from "./format.mjs";

const FINE = "qwen3-30b-a3b";
const COARSE = "mixtral-8x7b";
/** Up to so many tokens every schedule reads the same weights: nobody has an excuse to be slower. */
const FEW_TOKENS = 256;
/** From so many tokens on tiles are full enough for the schedule to matter. */
const MANY_TOKENS = 2048;
const SKEWED_TOKENS = 1024;
const LEAST_SPEEDUP = 1.15;
const LEAST_MEAN_SPEEDUP = 1.25;
const MOST_SKEW_PENALTY = 1.1;
const SINGLE_TOKEN_US = 30;
const LEAST_BANDWIDTH = 0.85;
/** The card that the bars of single steps were set for. */
const CARD = { name: "H200", terabytesPerSecond: 4.8 };

/** @returns [{ bar, met: boolean | undefined where nothing was measured, figure }] */
export function barsOf(figures) {
  const { device } = figures;
  const bars = [
    notSlower(figures),
    everyLargeCell(figures),
    meanOverCommonPeer(figures),
    skew(figures),
    singleToken(figures),
    bandwidth(figures),
  ];
  return bars.map(({ bar, met, figure = "not measured" }) => ({
    bar,
    met,
    figure: met === undefined ? figure : `${figure}, on ${device.name}`,
  }));
}

const least = (values, of) => values.toSorted((a, b) => of(a) - of(b))[0];

/** What is to be said of a figure over cells of which these may be their hosts'. */
const uncertain = (hostPaced) =>
  hostPaced.length === 0 ? "" : `; ${plural(hostPaced.length, "cell")} not certain (above)`;

function notSlower({ compared, hostPaced }) {
  const bar = `no cell up to ${FEW_TOKENS} tokens slower than the best peer, beyond the noise`;
  const cells = compared.filter(({ tokens }) => tokens <= FEW_TOKENS);
  if (cells.length === 0) return { bar };
  const lost = cells.filter(({ beatenBy }) => beatenBy.length > 0);
  const within = cells.filter(({ speedup, beatenBy }) => speedup < 1 && beatenBy.length === 0);
  const worst = least(cells, ({ speedup }) => speedup);
  const figure =
    `${lost.length} of ${plural(cells.length, "cell")} slower, ${within.length} more within the noise; ` +
    `least ${ratio(worst.speedup)} (${worst.name})${uncertain(hostPaced)}`;
  return { bar, met: lost.length === 0, figure };
}

function everyLargeCell({ cells }) {
  const bar = `${ratio(LEAST_SPEEDUP)} or more over ${COMMON_PEER} in every cell of ${FINE} from ${MANY_TOKENS} tokens`;
  const large = cells.filter(
    (cell) =>
      cell.shape === FINE && cell.tokens >= MANY_TOKENS && overCommonPeer(cell) !== undefined,
  );
  if (large.length === 0) return { bar };
  const worst = least(large, overCommonPeer);
  const met = large.filter((cell) => overCommonPeer(cell) >= LEAST_SPEEDUP);
  const figure = `${met.length} of ${plural(large.length, "cell")}; least ${ratio(overCommonPeer(worst))} (${worst.name})`;
  return { bar, met: met.length === large.length, figure };
}

function meanOverCommonPeer({ cells, overCommonPeer: mean, hostPaced }) {
  const bar = `geometric mean of all cells over ${COMMON_PEER} ${ratio(LEAST_MEAN_SPEEDUP)} or more`;
  if (mean === undefined) return { bar };
  const count = cells.filter((cell) => overCommonPeer(cell) !== undefined).length;
  return {
    bar,
    met: mean >= LEAST_MEAN_SPEEDUP,
    figure: `${ratio(mean)} over ${plural(count, "cell")}${uncertain(hostPaced)}`,
  };
}

function skew({ cells }) {
  const bar = `Zipf 1.5 takes at most ${ratio(MOST_SKEW_PENALTY)} of uniform routing from ${SKEWED_TOKENS} tokens`;
  const penalties = skewPenalties(cells).filter(
    ({ cell, nexus }) =>
      cell.routing === "zipf:1.5" && cell.tokens >= SKEWED_TOKENS && nexus !== undefined,
  );
  if (penalties.length === 0) return { bar };
  const worst = least(penalties, ({ nexus }) => -nexus);
  const met = penalties.filter(({ nexus }) => nexus <= MOST_SKEW_PENALTY);
  const figure = `${met.length} of ${plural(penalties.length, "cell")}; most ${ratioBeside(MOST_SKEW_PENALTY, worst.nexus)} (${worst.cell.name})`;
  return { bar, met: met.length === penalties.length, figure };
}

/** Bits of a weight that products read, packed and as it is. Of the packed ones a hundredth or two are scales and flags; patches are hardly read. */
const PACKED_BITS = 12.02;
const PLAIN_BITS = 16;

function singleToken(figures) {
  const bar = `${FINE}, 1 token: less than ${SINGLE_TOKEN_US} us`;
  const cell = cellOf(figures, FINE, 1);
  if (cell === undefined) return { bar };
  const figure = `${cell.nexus.us.toFixed(1)} us, ${cell.routing}${otherCard(figures)}`;
  return { bar, met: cell.nexus.us < SINGLE_TOKEN_US, figure };
}

function bandwidth(figures) {
  const bar = `${COARSE}, 64 tokens: weights at ${percent(LEAST_BANDWIDTH)} or more of the data sheet's bandwidth`;
  const cell = cellOf(figures, COARSE, 64);
  if (cell === undefined) return { bar };
  const { dataSheetTBs } = cell.limits;
  // So many tokens read packed weights where there are any.
  const { packWeights = false } = figures;
  const read = packWeights === false ? 1 : PACKED_BITS / PLAIN_BITS;
  const rate = weightRate(cell, cell.nexus.us) * read;
  const share = rate / dataSheetTBs;
  const figure = `${rate.toFixed(2)} of ${dataSheetTBs} TB/s${read < 1 ? " of packed weights" : ""}, ${(share * 100).toFixed(1)} %, ${cell.routing}${otherCard(figures)}`;
  return { bar, met: share >= LEAST_BANDWIDTH, figure };
}

/** With uniform routing, or with the first there is: few tokens of a coarse layer reach all experts with any. */
function cellOf({ cells }, shape, tokens) {
  const found = cells.filter(
    (cell) => cell.shape === shape && cell.tokens === tokens && cell.nexus,
  );
  return found.find(({ routing }) => routing === "uniform") ?? found[0];
}

function otherCard({ device, limits }) {
  if (device.name.includes(CARD.name)) return "";
  return ` (the bar was set for an ${CARD.name} with ${CARD.terabytesPerSecond} TB/s; this card has ${limits.dataSheetTBs})`;
}

/** What the authors of the system that this project began from published. */
const CLAIMED_SPEEDUP = "2.3x to 2.4x";
const CLAIMED_SAVING = "35 % to 45 %";
const LEAST_LOOP_SPEEDUP = 15;
const LEAST_LOOP_SAVING = 0.7;

/** @param rows what loops.mjs's `loopFigures` returns */
export function loopBarsOf(rows) {
  const speedups = rows.flatMap(({ speedup }) => speedup ?? []);
  const savings = rows.flatMap(({ saving }) => saving ?? []);
  const bar = (text, values, wanted, show) => {
    if (values.length === 0) return { bar: text, met: undefined, figure: "not measured" };
    const met = values.filter((value) => value >= wanted);
    const range = `${show(Math.min(...values))} to ${show(Math.max(...values))}`;
    return {
      bar: text,
      met: met.length === values.length,
      figure: `${met.length} of ${plural(values.length, "cell")}; ${range}`,
    };
  };
  return [
    bar(
      `${LEAST_LOOP_SPEEDUP}x the throughput of the fastest loop (published: ${CLAIMED_SPEEDUP})`,
      speedups,
      LEAST_LOOP_SPEEDUP,
      (value) => `${value.toFixed(1)}x`,
    ),
    bar(
      `${percent(LEAST_LOOP_SAVING)} less energy than the fastest loop (published: ${CLAIMED_SAVING})`,
      savings,
      LEAST_LOOP_SAVING,
      percent,
    ),
  ];
}
