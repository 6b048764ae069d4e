/**
 * One cell out of those that several parts of a benchmark hold of it: all rounds count that are of the
 * latest commit. Which parts there are, and in which order, is merge.mjs's.
 */

import { groupBy, labelOf } from "./figures.mjs";

const isMeasured = ({ failed }) => failed === undefined;

/**
 * Another seed or number of batches draws other tokens, and another number of experts (a card with less memory
 * takes half of the largest shape's) is another layer: then the latest part's count. Another commit may be another Nexus, or
 * know better settings for a peer: of a contender that a later commit measured nothing earlier counts. What failed is forgotten
 * where a later part measured it.
 *
 * @param cells of all parts, those of the earliest first
 * @returns { cells, failedCells, pooled: how many are of several parts, replaced: how many
 *   measured cells do not count }
 */
export function pool(cells, keyOf) {
  const groups = groupBy(cells, keyOf).map(([, group]) => {
    const measured = group.filter(isMeasured);
    const latest = measured.at(-1);
    const alike = measured.filter(
      ({ seed, batches, experts }) =>
        seed === latest.seed && batches === latest.batches && experts === latest.experts,
    );
    return { alike, replaced: measured.length - alike.length, failure: failureOf(group) };
  });
  return {
    cells: groups.filter(({ alike }) => alike.length > 0).map(({ alike }) => joinCells(alike)),
    failedCells: groups.flatMap(({ failure }) => failure),
    pooled: groups.filter(({ alike }) => alike.length > 1).length,
    replaced: groups.reduce((sum, { replaced }) => sum + replaced, 0),
  };
}

/** The last failure, unless what failed was measured after it. */
function failureOf(group) {
  const latest = group.at(-1);
  return isMeasured(latest) ? [] : [latest];
}

function joinCells(cells) {
  const latest = cells.at(-1);
  if (cells.length === 1) return latest;
  const limits = ofLatestCommit(withCommit(cells, ({ limit }) => limit ?? []));
  return {
    ...latest,
    /** What it was joined from. */
    parts: cells,
    queued: cells.every(({ queued }) => queued),
    paced: cells.every(({ paced }) => paced),
    ...(limits.length > 0 && { limit: joinRounds(limits) }),
    contenders: grouped(
      withCommit(cells, ({ contenders }) => contenders),
      labelOf,
    ).flatMap((group) => joinContenders(ofLatestCommit(group))),
    energy: grouped(
      withCommit(cells, ({ energy }) => energy),
      ({ contender, mode }) => labelOf({ name: contender, mode }),
    ).map((group) => joinReadings(ofLatestCommit(group))),
  };
}

/** What the cells have of something, each with the commit that it was measured at. */
const withCommit = (cells, of) =>
  cells.flatMap((cell) => [of(cell)].flat().map((each) => ({ ...each, commit: cell.commit })));

const ofLatestCommit = (group) => group.filter(({ commit }) => commit === group.at(-1).commit);

const grouped = (values, keyOf) => groupBy(values, keyOf).map(([, group]) => group);

function joinRounds(series) {
  const all = series.flatMap(({ samples, rounds = [samples] }) => rounds);
  return { ...series.at(-1), rounds: all, samples: all.flat() };
}

/** The contender as measured, if it was, and its failure after that, if it failed. */
function joinContenders(group) {
  const measured = group.filter(isMeasured);
  if (measured.length === 0) return failureOf(group);
  const most = (key) => {
    const known = measured.flatMap((each) => each[key] ?? []);
    return known.length > 0 && { [key]: Math.max(...known) };
  };
  const rejected = measured.flatMap((each) => each.rejected ?? []);
  const joined = {
    ...joinRounds(measured),
    ...most("relativeError"),
    ...most("rowError"),
    ...(rejected.length > 0 && { rejected }),
  };
  return [joined, ...failureOf(group)];
}

/** Readings of one contender as a single, longer one. */
function joinReadings(group) {
  const known = group.filter(({ joules }) => joules > 0);
  if (known.length < 2) return known[0] ?? group.at(-1);
  const total = (of) => known.reduce((sum, each) => sum + of(each), 0);
  const seconds = total((each) => each.seconds);
  return {
    ...known.at(-1),
    seconds,
    steps: total((each) => each.steps),
    joules: total((each) => each.joules),
    idleWatts: total((each) => each.idleWatts * each.seconds) / seconds,
  };
}
