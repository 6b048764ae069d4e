/** Parts of one benchmark, and measurements beside it, as one result. Reading them is read.mjs's. */

import { cellName, plural } from "./format.mjs";
import { kindOf, ResultError } from "./read.mjs";

/** The part that sets Nexus beside loops over the experts; its cells stand in a table of their own. */
const LOOPS = "loops";

/**
 * Every cell keeps the limits that were measured beside it, because a card is not equally
 * fast at all times. A cell that two parts hold counts as the later one has it.
 *
 * @param results what `readResult` returned
 * @throws ResultError if they come from different devices, or none of them is of peers
 */
export function merge(results) {
  const parts = results.filter((result) => kindOf(result) === undefined);
  const [first] = parts;
  if (first === undefined) throw new ResultError("None of the files is a result beside peers.");
  for (const { device } of results) {
    if (device.name === first.device.name) continue;
    throw new ResultError(
      `Results of different devices make no one report: ${first.device.name} and ${device.name}.`,
    );
  }
  const all = (key) => parts.flatMap((part) => part[key] ?? []);
  const measured = parts.flatMap(cellsOf);
  const cells = distinct(measured, cellKey);
  const repeated = measured.length - cells.length;
  const beside = (kind) => results.filter((result) => kindOf(result) === kind);
  return {
    ...first,
    mode: distinct(parts, ({ mode }) => mode)
      .map(({ mode }) => mode)
      .join(" + "),
    limits: knownLimits(first.limits),
    warnings: [
      ...differences(parts),
      ...(repeated === 0
        ? []
        : [`${plural(repeated, "cell")} measured again in a later part, which counts.`]),
      ...(first.limits.dataSheetTBs === null
        ? [
            "The bandwidth of this card's data sheet is not known; what a copy reached stands in its place.",
          ]
        : []),
    ],
    cells: cells.filter(({ failed, part }) => failed === undefined && part !== LOOPS),
    failedCells: cells.filter(({ failed }) => failed !== undefined),
    loopCells: cells.filter(({ failed, part }) => failed === undefined && part === LOOPS),
    shapes: distinct(all("shapes"), ({ name }) => name),
    unavailable: distinct(all("unavailable"), ({ name, reason }) => `${name}: ${reason}`),
    conditions: all("conditions"),
    drifts: beside("drifts"),
    traffics: beside("traffics"),
    ablations: beside("ablations"),
  };
}

/** Cells of a part with what belongs to them: limits and energy. */
function cellsOf({ mode, limits, cells, energy = [] }) {
  return cells.map((cell) => ({
    ...cell,
    part: mode,
    limits: knownLimits(limits),
    energy: energy.filter((each) => cellName(each) === cellName(cell)),
  }));
}

/** Cells of the loops are others than those beside peers, even of the same layer and batch. */
const cellKey = (cell) => `${cellName(cell)}${cell.part === LOOPS ? ", loops" : ""}`;

const knownLimits = (limits) => ({
  ...limits,
  dataSheetTBs: limits.dataSheetTBs ?? limits.copyTBs,
});

function differences(parts) {
  const differing = (what, of) => {
    const values = [...new Set(parts.map((part) => JSON.stringify(of(part))))];
    return values.length > 1 ? [`The parts have different ${what}: ${values.join(", ")}.`] : [];
  };
  return [
    ...differing("drivers", ({ device }) => device.driver),
    ...differing("commits", ({ commit }) => commit),
    ...differing("seeds", ({ seed }) => seed),
    ...differing("versions", ({ versions }) => versions),
  ];
}

/** The last value of each key, in order of first appearance. */
function distinct(values, keyOf) {
  return [...new Map(values.map((value) => [keyOf(value), value])).values()];
}
