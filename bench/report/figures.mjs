/**
 * What follows from the samples of a result: times, who is fastest, by how much, how
 * much of that is noise, and how far from the machine's limits. All of the report's
 * tables and charts start from these figures.
 */

import { timesOf } from "./batches.mjs";
import { cellName } from "./format.mjs";
import { geometricMean, mean, spread } from "./statistics.mjs";

/**
 * Differences up to this are not told from noise, however small the noise that one pair of
 * measurements showed: it is a single draw, and small by luck as often as not.
 */
export const LEAST_NOISE = 0.01;
/**
 * A graph that takes less may have waited for Python to hand it over, unless bursts were queued before they ran: that took 10 to
 * 20 us a replay. In two runs of the same cells peers of less than this are up to 1.9 times apart, those of 30 to 45 us 1 %.
 */
export const HOST_PACE_US = 30;
/** The schedule that most servers run: the one peer that has bars and a skew penalty of its own. */
export const COMMON_PEER = "vllm-schedule";

const NEXUS = "nexus";
/** Nexus measured a second time in the same rounds: its time is the mean of both, the noise their difference. */
const AGAIN = "nexus-again";
const ROUTINGS = ["uniform", "zipf:1", "zipf:1.5", "hot"];

/** @param result what merge.mjs's `merge` returns */
export function figuresOf(result) {
  const shapes = result.shapes.map(({ name }) => name);
  const cells = result.cells
    .map(cellFigures)
    .sort(
      (a, b) =>
        rank(shapes, a.shape) - rank(shapes, b.shape) ||
        a.tokens - b.tokens ||
        byRouting(a.routing, b.routing),
    );
  const compared = cells.filter(({ speedup }) => speedup !== undefined);
  return {
    ...result,
    cells,
    compared,
    fastest: compared.filter(({ speedup }) => speedup > 1),
    clearlyFastest: compared.filter(({ speedup, threshold }) => speedup > 1 + threshold),
    lost: compared.filter(({ beatenBy }) => beatenBy.length > 0),
    overBestPeer: geometricMeanOf(compared.map(({ speedup }) => speedup)),
    overCommonPeer: geometricMeanOf(cells.flatMap((cell) => overCommonPeer(cell) ?? [])),
    ...hostPacedFigures(compared),
  };
}

/** Cells whose best peer's time may be its host's, and the means without them. */
function hostPacedFigures(compared) {
  const isHostPaced = ({ queued, bestPeer }) =>
    !queued && bestPeer.mode === "graph" && bestPeer.us < HOST_PACE_US;
  const sure = compared.filter((cell) => !isHostPaced(cell));
  return {
    hostPaced: compared.filter(isHostPaced),
    surelyOverBestPeer: geometricMeanOf(sure.map(({ speedup }) => speedup)),
    surelyOverCommonPeer: geometricMeanOf(sure.flatMap((cell) => overCommonPeer(cell) ?? [])),
  };
}

/** From even to skewed, then others by name. */
export const byRouting = (a, b) => rank(ROUTINGS, a) - rank(ROUTINGS, b) || a.localeCompare(b);
const rank = (order, value) => (order.includes(value) ? order.indexOf(value) : order.length);
const geometricMeanOf = (values) => (values.length === 0 ? undefined : geometricMean(values));

function cellFigures(cell) {
  const entries = entriesOf(cell);
  const nexus = fastestOf(entries, isNexus);
  const peers = entries.filter(isPeer).sort((a, b) => a.us - b.us);
  const noise = nexus?.noise;
  const threshold = Math.max(noise ?? 0, LEAST_NOISE);
  const [bestPeer] = peers;
  return {
    ...cell,
    name: cellName(cell),
    entries,
    failed: cell.contenders.filter(({ failed }) => failed !== undefined),
    nexus,
    peers,
    bestPeer,
    noise,
    threshold,
    ...(nexus && bestPeer && { speedup: bestPeer.us / nexus.us }),
    /** Peers that are faster beyond the noise, the fastest first. */
    beatenBy: nexus ? peers.filter(({ us }) => nexus.us / us > 1 + threshold) : [],
    roofline: floorOf(cell, cell.limits.dataSheetTBs, cell.limits.dataSheetTFlops),
    reachable: floorOf(cell, cell.limits.copyTBs, cell.limits.matrixTFlops),
    // A single graph, whatever the batches.
    ...(cell.limit && { productsUs: timesOf(cell.limit).us }),
  };
}

/** What was measured, without what failed; Nexus once, with its `noise` if it was measured twice. */
export function entriesOf({ contenders, batches }) {
  const measured = contenders
    .filter(({ failed }) => failed === undefined)
    .map((contender) => ({
      ...contender,
      label: labelOf(contender),
      ...timesOf(contender, batches),
    }));
  return measured.filter(({ name }) => name !== AGAIN).map((entry) => withAgain(entry, measured));
}

function withAgain(entry, measured) {
  const again =
    isNexus(entry) && measured.find(({ name, mode }) => name === AGAIN && mode === entry.mode);
  if (!again) return entry;
  return {
    ...entry,
    us: mean([entry.us, again.us]),
    spread: spread([...entry.relative, ...again.relative]),
    noise: Math.abs(again.us / entry.us - 1),
  };
}

/** A graph is how everybody runs who can; the other way is named. */
export function labelOf({ name, mode }) {
  return mode === undefined || mode === "graph" ? name : `${name} (${mode})`;
}

export function isPeer({ name }) {
  return name !== NEXUS && !name.startsWith(`${NEXUS}-`);
}

export function isNexus({ name }) {
  return name === NEXUS;
}

export function fastestOf(entries, wanted) {
  return entries.filter(wanted).sort((a, b) => a.us - b.us)[0];
}

/** The shortest time that a bandwidth and an arithmetic rate leave for a step, and which of them it is. */
function floorOf({ weightBytes, gflop }, terabytesPerSecond, teraflops) {
  const bandwidth = weightBytes / (terabytesPerSecond * 1e6);
  const arithmetic = (gflop * 1e3) / teraflops;
  return bandwidth >= arithmetic
    ? { us: bandwidth, by: "bandwidth" }
    : { us: arithmetic, by: "arithmetic" };
}

export function commonPeerOf(cell) {
  return fastestOf(cell.entries, ({ name }) => name === COMMON_PEER);
}

/** Speed-up over the common peer, or undefined. */
export function overCommonPeer(cell) {
  const peer = commonPeerOf(cell);
  return cell.nexus && peer && peer.us / cell.nexus.us;
}

/** Terabytes of weights a second that a step of `us` needs to read. */
export function weightRate({ weightBytes }, us) {
  return weightBytes / us / 1e6;
}

/**
 * What skew costs: time over that of uniform routing, with as many tokens of the same shape, of the same commit where that measured it.
 *
 * @returns one of each cell with another routing: { cell, nexus?, common? }
 */
export function skewPenalties(cells) {
  return cells
    .filter(({ routing }) => routing !== "uniform")
    .map((cell) => {
      const uniform = cells.find(
        ({ shape, tokens, routing }) =>
          shape === cell.shape && tokens === cell.tokens && routing === "uniform",
      );
      const even = uniform && ofCommit(uniform, commitOf(cell));
      const over = (entry, base) => (entry && base ? entry.us / base.us : undefined);
      return {
        cell,
        nexus: over(cell.nexus, even?.nexus),
        common: over(commonPeerOf(cell), even && commonPeerOf(even)),
      };
    })
    .filter(({ nexus, common }) => nexus !== undefined || common !== undefined);
}

/** The commit that Nexus's rounds are of. */
const commitOf = ({ nexus, commit }) => nexus?.commit ?? commit;

/** A cell that was joined from several parts as the one of a commit has it, where there is such a part. */
function ofCommit(cell, commit) {
  const part =
    commitOf(cell) === commit ? undefined : cell.parts?.find((each) => each.commit === commit);
  return part === undefined ? cell : cellFigures(part);
}

/** Readings of some cells that hold joules, each with the latency of its contender; others say why they hold none. */
export function energyOf(cells) {
  return cells.flatMap((cell) => {
    const entries = entriesOf(cell);
    const latencyOf = ({ contender: name, mode }) =>
      entries.find(({ label }) => label === labelOf({ name, mode }))?.us;
    return cell.energy
      .filter(({ joules }) => joules > 0)
      .map((reading) => ({ ...reading, latencyUs: latencyOf(reading) }));
  });
}

/** A window whose steps take so much longer than the latency, as a share, is marked: its joules are not those of the step that was timed. */
export const LEAST_OFF_PACE = 0.03;

/**
 * Joules of one step, and what remains without what the idle card would have drawn meanwhile; microseconds of a step in the window, and
 * how much more that is than the latency.
 */
export function energyFigures({ seconds, steps, joules, idleWatts, ...rest }) {
  const windowUs = (seconds * 1e6) / steps;
  const perStep = joules / steps;
  const aboveIdle = (joules - idleWatts * seconds) / steps;
  return {
    ...rest,
    label: labelOf({ name: rest.contender, mode: rest.mode }),
    seconds,
    windowUs,
    ...(rest.latencyUs !== undefined && { offPace: windowUs / rest.latencyUs - 1 }),
    perStep,
    aboveIdle,
    watts: joules / seconds,
    tokensPerJoule: rest.tokens / perStep,
    tokensPerJouleAboveIdle: rest.tokens / aboveIdle,
  };
}

/** [[cell name, figures of each contender with `overNexus`]...] */
export function energyGroups(energy) {
  return groupBy(energy.map(energyFigures), cellName).map(([name, group]) => {
    const ours = group.find(({ contender }) => isNexus({ name: contender }));
    return [
      name,
      group.map((each) => ({ ...each, overNexus: ours && each.perStep / ours.perStep })),
    ];
  });
}

/** Groups in order of first appearance: [[key, values]...]. */
export function groupBy(values, keyOf) {
  const groups = new Map();
  for (const value of values) {
    const key = keyOf(value);
    if (groups.has(key)) groups.get(key).push(value);
    else groups.set(key, [value]);
  }
  return [...groups];
}
