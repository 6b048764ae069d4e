/**
 * The tables of a report that others quote: geometric means by shape and by number of tokens, and microseconds of a few cells. page.mjs
 * puts those of several reports beside each other.
 */

import { heading, NONE, paragraph, right, table } from "./document.mjs";
import { COMMON_PEER, fastestOf, overCommonPeer } from "./figures.mjs";
import { number, plural, ratio } from "./format.mjs";
import { geometricMean } from "./statistics.mjs";

/** The shapes of the microseconds: many small experts, and few large ones. */
const SHOWN = ["qwen3-30b-a3b", "mixtral-8x7b"];

const startsWith = (text) => (entry) => entry.name.startsWith(text);
/** Columns of the microseconds beside Nexus: the fastest of those that are meant. */
const PEERS = [
  [COMMON_PEER, ({ name }) => name === COMMON_PEER],
  ["scattermoe-schedule", startsWith("scattermoe")],
  ["torch-grouped_mm", startsWith("torch-grouped_mm")],
  ["transformers", startsWith("transformers")],
  ["fastest loop", startsWith("loop")],
];

export function glanceBlocks(figures) {
  const { compared, cells } = figures;
  if (compared.length === 0) return [];
  return [
    heading(2, "At a glance"),
    paragraph("Geometric means of the speed-up."),
    ...[bySize("shape"), bySize("tokens")].map((by) => meansTable([["", figures]], by)),
    ...microsecondsBlocks(cells),
  ];
}

/** How cells are divided in a table of means: what they differ by, and how its values are written. */
export function bySize(key) {
  return { of: (cell) => cell[key], sort: key === "tokens" ? (a, b) => a - b : () => 0 };
}

/** @param reports [[title, figures]] of one or several reports, whose rows follow each other */
export function meansTable(reports, { of, sort }) {
  const values = [...new Set(reports.flatMap(([, { compared }]) => compared.map(of)))].toSorted(
    sort,
  );
  const mean = (cells, speedup) => {
    const known = cells.flatMap((cell) => speedup(cell) ?? []);
    return known.length === 0 ? NONE : ratio(geometricMean(known));
  };
  const row = (title, compared, speedup) => [
    title,
    ...values.map((value) =>
      mean(
        compared.filter((cell) => of(cell) === value),
        speedup,
      ),
    ),
    mean(compared, speedup),
  ];
  return table(
    [{ title: "over" }, ...values.map((value) => right(`${value}`)), right("all")],
    reports.flatMap(([title, { compared }]) => {
      const before = title === "" ? "" : `${title}: `;
      return [
        row(`${before}the best peer`, compared, ({ speedup }) => speedup),
        row(`${before}${COMMON_PEER}`, compared, overCommonPeer),
      ];
    }),
  );
}

/** A table of the uniform cells of two shapes, if there are any. */
function microsecondsBlocks(cells) {
  const shown = uniformCells(cells);
  if (shown.length === 0) return [];
  return [
    paragraph("Microseconds of a step, uniform routing:"),
    microsecondsTable(shown, [["", cells]]),
  ];
}

export function uniformCells(cells) {
  return SHOWN.flatMap((shape) =>
    cells.filter((cell) => cell.shape === shape && cell.routing === "uniform"),
  );
}

/**
 * @param shown the cells whose contenders are shown
 * @param nexus [[title, cells]...]: where Nexus's times come from, a column each
 */
export function microsecondsTable(shown, nexus) {
  const us = (value) => (value === undefined ? NONE : number(value));
  const present = PEERS.filter(([, wanted]) => shown.some(({ entries }) => entries.some(wanted)));
  const timeIn = (cells, { name }) => cells.find((cell) => cell.name === name)?.nexus?.us;
  return table(
    [
      { title: "" },
      ...nexus.map(([title]) => right(title === "" ? "Nexus" : `Nexus, ${title}`)),
      ...present.map(([title]) => right(title)),
      right("cuBLAS, products alone"),
    ],
    shown.map((cell) => [
      `${cell.shape}, ${plural(cell.tokens, "token")}`,
      ...nexus.map(([, cells]) => us(timeIn(cells, cell))),
      ...present.map(([, wanted]) => us(fastestOf(cell.entries, wanted)?.us)),
      us(cell.productsUs),
    ]),
  );
}
