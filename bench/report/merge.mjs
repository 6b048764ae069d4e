/** Parts of one benchmark, and measurements beside it, as one result. Reading them is read.mjs's. */

import { cellsOf as cellsOfPart, PARTS } from "../compare/cells.mjs";
import { loopCells } from "../compare/loops.mjs";
import { groupBy } from "./figures.mjs";
import { cellName, plural } from "./format.mjs";
import { pool } from "./pool.mjs";
import { kindOf, ResultError } from "./read.mjs";

/** The part that sets Nexus beside loops over the experts; its cells stand in a table of their own. */
const LOOPS = "loops";
/** Dense bfloat16 by the data sheet, TFLOP/s, for results from before they named it. */
const KNOWN_CARD = { name: /^NVIDIA H(100|200)/, teraflops: 989 };

/**
 * Every cell keeps the limits that were measured beside it, because a card is not equally
 * fast at all times; cells that several parts hold are pooled. The order of the results does
 * not matter: they are sorted by date.
 *
 * @param unsorted the results that `readResults` returned
 * @throws ResultError if they come from different devices, Nexus keeps its weights in different ways, or none of them is of peers
 */
export function merge(unsorted) {
  const results = unsorted.toSorted(byDate);
  const parts = results.filter((result) => kindOf(result) === undefined);
  const [first] = parts;
  if (first === undefined) throw new ResultError("None of the files is a result beside peers.");
  for (const { device } of results) {
    if (device.name === first.device.name) continue;
    throw new ResultError(
      `Results of different devices make no one report: ${first.device.name} and ${device.name}.`,
    );
  }
  const kept = new Set(parts.map(({ packWeights = false }) => packWeights));
  if (kept.size > 1) {
    throw new ResultError(
      `Results with weights kept in different ways make no one report: packWeights is ${[...kept].join(" and ")}.`,
    );
  }
  const all = (key) => parts.flatMap((part) => part[key] ?? []);
  const { cells, failedCells, pooled, replaced } = pool(parts.flatMap(cellsOf), cellKey);
  const beside = (kind) => results.filter((result) => kindOf(result) === kind);
  return {
    ...first,
    mode: distinct(parts, ({ mode }) => mode)
      .map(({ mode }) => mode)
      .join(" + "),
    commit: distinct(parts, ({ commit }) => commit)
      .map(({ commit }) => commit)
      .join(", "),
    limits: knownLimits(first),
    warnings: [
      ...differences(results, parts),
      ...(pooled === 0
        ? []
        : [
            `${plural(pooled, "cell")} ${pooled === 1 ? "was" : "were"} measured in more than one part: all rounds count that are of the latest commit.`,
          ]),
      ...(replaced === 0
        ? []
        : [
            `${plural(replaced, "cell")} measured again with another seed, number of batches or number of experts: the later part counts.`,
          ]),
      ...unknownLimits(parts),
    ],
    cells: cells.filter(({ part }) => part !== LOOPS),
    failedCells,
    missingCells: missingFrom(parts),
    loopCells: cells.filter(({ part }) => part === LOOPS),
    shapes: distinct(all("shapes"), ({ name }) => name),
    unavailable: distinct(all("unavailable"), ({ name, reason }) => `${name}: ${reason}`),
    conditions: all("conditions"),
    idleWatts: all("idleWatts"),
    drifts: beside("drifts"),
    traffics: beside("traffics"),
    counters: beside("counters"),
    ablations: beside("ablations"),
  };
}

/** Dates are in the form of ISO 8601 and in UTC, so their texts sort; of one date anything fixed will do. */
function byDate(a, b) {
  const compare = (one, two) => (one < two ? -1 : one > two ? 1 : 0);
  return compare(a.date ?? "", b.date ?? "") || compare(JSON.stringify(a), JSON.stringify(b));
}

/** Cells of a part with what belongs to them: limits and energy. */
function cellsOf(part) {
  const { mode, commit, cells, energy = [] } = part;
  return cells.map((cell) => ({
    ...cell,
    commit,
    part: mode,
    experts: cell.experts ?? expertsOf(part, cell.shape),
    queued: part.queuedBursts === true,
    paced: part.pacedWindows === true,
    limits: knownLimits(part),
    energy: energy.filter((each) => cellName(each) === cellName(cell)),
  }));
}

/** Cells from before they named their number of experts: what the file says of their shape. */
const expertsOf = ({ shapes }, name) => shapes.find((shape) => shape.name === name)?.experts;

/** Cells of the loops are others than those beside peers, even of the same layer and batch. */
const cellKey = (cell) => `${cellName(cell)}${cell.part === LOOPS ? ", loops" : ""}`;

/** Cells that a part is made of and that none of the parts holds, measured or failed; those that were not asked for are not missed. */
function missingFrom(parts) {
  const held = new Set(parts.flatMap(cellsOf).map(cellKey));
  const expected = parts.flatMap(({ mode: part, options = {} }) =>
    cellsIn(part)
      .filter(({ tokens }) => options.tokens?.includes(tokens) ?? true)
      .filter(({ routing }) => options.routings?.includes(routing) ?? true)
      .map((cell) => ({ ...cell, part })),
  );
  return distinct(expected, cellKey).filter((cell) => !held.has(cellKey(cell)));
}

/** Of a part by its name, as bench/compare measures them. */
function cellsIn(part) {
  const shapes =
    part === LOOPS ? loopCells() : PARTS.includes(part) ? cellsOfPart(part, Infinity) : [];
  return shapes.flatMap(({ shape, cells }) =>
    cells.map(({ tokens, routing }) => ({ shape: shape.name, tokens, routing })),
  );
}

function knownLimits({ limits, device }) {
  return {
    ...limits,
    dataSheetTBs: limits.dataSheetTBs ?? limits.copyTBs,
    dataSheetTFlops: dataSheetTeraflops(limits, device) ?? limits.matrixTFlops,
  };
}

function dataSheetTeraflops({ dataSheetTFlops }, { name }) {
  return dataSheetTFlops ?? (KNOWN_CARD.name.test(name) ? KNOWN_CARD.teraflops : undefined);
}

function unknownLimits(parts) {
  const unknown = (what, standIn) =>
    `The ${what} of this card's data sheet is not known; what ${standIn} reached stands in its place.`;
  return [
    ...(parts.some(({ limits }) => limits.dataSheetTBs === null)
      ? [unknown("bandwidth", "a copy")]
      : []),
    ...(parts.some(({ limits, device }) => dataSheetTeraflops(limits, device) === undefined)
      ? [unknown("arithmetic rate", "a product of matrices")]
      : []),
  ];
}

/** What should be the same in all files, or in all parts, and is not; files that do not say are left out. */
function differences(results, parts) {
  const differing = (what, files, of) => {
    const known = files.filter((file) => of(file) !== undefined);
    const groups = groupBy(known, (file) => JSON.stringify(of(file)));
    if (groups.length < 2) return [];
    const texts = groups.map(
      ([value, group]) => `${value} (${[...new Set(group.map(fileTitle))].join(", ")})`,
    );
    return [`The files have different ${what}: ${texts.join(", ")}.`];
  };
  return [
    ...differing("drivers", results, ({ device }) => device.driver),
    ...differing("commits", results, ({ commit }) => commit),
    ...differing("seeds", parts, ({ seed }) => seed),
    ...differing("versions", parts, ({ versions }) => versions),
    ...[...new Set(parts.flatMap(({ shapes }) => shapes.map(({ name }) => name)))].flatMap((name) =>
      differing(`numbers of experts of ${name}`, parts, (part) => expertsOf(part, name)),
    ),
  ];
}

/** What a file says it is. */
const fileTitle = ({ format, command, mode }) => mode ?? format ?? command;

/** The last value of each key, in order of first appearance. */
function distinct(values, keyOf) {
  return [...new Map(values.map((value) => [keyOf(value), value])).values()];
}
