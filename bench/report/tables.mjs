/** Tables of the cells: latency, limits, speed-up, skew, noise, agreement. */

import { heading, list, NONE, paragraph, right, table } from "./document.mjs";
import {
  COMMON_PEER,
  groupBy,
  labelOf,
  overCommonPeer,
  skewPenalties,
  weightRate,
} from "./figures.mjs";
import { number, percent, ratio } from "./format.mjs";
import { median, quantile } from "./statistics.mjs";

const CELL_COLUMNS = [right("tokens"), { title: "routing" }];
const cellTexts = ({ tokens, routing }) => [`${tokens}`, routing];

/** What all contenders of some cells are called, Nexus first, then as they were measured. */
export function labelsOf(cells) {
  return [...new Set(cells.flatMap(({ entries }) => entries.map(({ label }) => label)))];
}

export function latencyTable(cells) {
  const labels = labelsOf(cells);
  return table(
    [...CELL_COLUMNS, ...labels.map(right)],
    cells.map((cell) => {
      const best = Math.min(...cell.entries.map(({ us }) => us));
      return [
        ...cellTexts(cell),
        ...labels.map((label) => {
          const entry = cell.entries.find((each) => each.label === label);
          if (entry === undefined) return NONE;
          const us = number(entry.us);
          return `${entry.us === best ? `**${us}**` : us} ±${percent(entry.spread / 2)}`;
        }),
      ];
    }),
  );
}

/** Contenders that failed in some cell, with the reason that each gave. */
export function failureList(cells) {
  const failures = cells.flatMap(({ name, failed }) =>
    failed.map((each) => ({ cell: name, ...each })),
  );
  if (failures.length === 0) return [];
  const items = groupBy(failures, (each) => `${labelOf(each)}: ${each.failed}`).map(
    ([what, where]) => `${what} (${where.map(({ cell }) => cell).join("; ")})`,
  );
  return [paragraph("Not measured, and why:"), list(items)];
}

export function limitsTable(cells) {
  const share = (floor, entry) => (entry ? percent(floor.us / entry.us) : NONE);
  const withProducts = cells.some(({ productsUs }) => productsUs !== undefined);
  return table(
    [
      ...CELL_COLUMNS,
      ...["experts", "skew", "roofline us"].map(right),
      { title: "by" },
      ...["Nexus", "best peer", "of measured: Nexus", "best peer"].map(right),
      ...(withProducts ? ["cuBLAS us", "Nexus of it"].map(right) : []),
      ...["Nexus TB/s", "TFLOP/s"].map(right),
    ],
    cells.map((cell) => {
      const { roofline, reachable, nexus, bestPeer, productsUs } = cell;
      return [
        ...cellTexts(cell),
        cell.expertsUsed === undefined ? NONE : number(cell.expertsUsed),
        cell.imbalance === undefined ? NONE : number(cell.imbalance),
        number(roofline.us),
        roofline.by,
        share(roofline, nexus),
        share(roofline, bestPeer),
        share(reachable, nexus),
        share(reachable, bestPeer),
        ...(withProducts
          ? [
              productsUs === undefined ? NONE : number(productsUs),
              productsUs === undefined || !nexus ? NONE : percent(productsUs / nexus.us),
            ]
          : []),
        nexus ? number(weightRate(cell, nexus.us)) : NONE,
        nexus ? number((cell.gflop * 1e3) / nexus.us) : NONE,
      ];
    }),
  );
}

export function limitsText({ limits, packWeights = false }) {
  const { dataSheetTBs, dataSheetTFlops, copyTBs, matrixTFlops } = limits;
  return (
    `The roofline is the longer of two times: the weights of the experts in use, read once at the data sheet's ${dataSheetTBs} TB/s, ` +
    `and the useful arithmetic at ${number(dataSheetTFlops)} TFLOP/s (dense bfloat16). "Of measured" puts what this card was seen to do in their place: ` +
    `${copyTBs.toFixed(2)} TB/s of a copy (bytes read and written) and ${number(matrixTFlops)} TFLOP/s of cuBLAS in one product of 8192 x 8192 matrices; ` +
    "a kernel that only reads can pass the copy. cuBLAS us, where it stands, is the two products of the layer alone as batched products, without routing and sums: no peer, a yardstick." +
    (packWeights === false
      ? ""
      : " Weights count as 16 bits, also where Nexus reads them packed: a share of more than 100 % is one of fewer bytes.")
  );
}

export function speedupTable(cells) {
  return table(
    [
      ...CELL_COLUMNS,
      { title: "best peer" },
      ...["its us", "Nexus us", "speed-up", `over ${COMMON_PEER}`, "noise"].map(right),
      { title: "" },
    ],
    cells.map((cell) => {
      const { nexus, bestPeer, speedup, noise, threshold, beatenBy } = cell;
      const overCommon = overCommonPeer(cell);
      const verdict =
        beatenBy.length > 0
          ? "**peer faster**"
          : speedup > 1 + threshold
            ? "Nexus faster"
            : "level";
      return [
        ...cellTexts(cell),
        bestPeer?.label ?? NONE,
        bestPeer ? number(bestPeer.us) : NONE,
        nexus ? number(nexus.us) : NONE,
        speedup === undefined ? NONE : ratio(speedup),
        overCommon === undefined ? NONE : ratio(overCommon),
        noise === undefined ? NONE : percent(noise),
        speedup === undefined ? "" : verdict,
      ];
    }),
  );
}

export function skewTable(cells) {
  return table(
    [...CELL_COLUMNS, ...["busiest over mean", "Nexus", COMMON_PEER].map(right)],
    skewPenalties(cells).map(({ cell, nexus, common }) => [
      ...cellTexts(cell),
      cell.imbalance === undefined ? NONE : number(cell.imbalance),
      nexus === undefined ? NONE : ratio(nexus),
      common === undefined ? NONE : ratio(common),
    ]),
  );
}

/** How far two measurements of the same are apart, over all cells and by token count. */
export function noiseTable(cells) {
  const row = (name, group) => {
    const values = group.flatMap(({ noise }) => noise ?? []);
    if (values.length === 0) return [];
    return [
      [
        name,
        `${values.length}`,
        ...[median(values), quantile(values, 0.9), Math.max(...values)].map(percent),
      ],
    ];
  };
  return table(["tokens", "cells", "median", "90th percentile", "most"].map(right), [
    ...groupBy(
      cells.toSorted((a, b) => a.tokens - b.tokens),
      ({ tokens }) => tokens,
    ).flatMap(([tokens, group]) => row(`${tokens}`, group)),
    ...row("all", cells),
  ]);
}

/** The largest error of each contender against the reference that all are held to, and settings that failed. */
export function agreementBlocks(cells) {
  const entries = cells.flatMap(({ name, entries }) =>
    entries.map((entry) => ({ ...entry, cell: name })),
  );
  const known = entries.filter(({ relativeError }) => relativeError !== undefined);
  const withRows = known.some(({ rowError }) => Number.isFinite(rowError));
  return [
    table(
      [
        { title: "contender" },
        ...["cells", "largest relative error"].map(right),
        { title: "in" },
        ...(withRows ? [right("of a single token"), { title: "in" }] : []),
      ],
      groupBy(known, ({ label }) => label).map(([label, group]) => [
        label,
        `${group.length}`,
        ...worstOf(group, "relativeError"),
        ...(withRows ? worstOf(group, "rowError") : []),
      ]),
    ),
    ...rejectedText(entries),
  ];
}

/** The largest value of an error, and the cell it is in. */
function worstOf(entries, key) {
  const [worst] = entries
    .filter((entry) => Number.isFinite(entry[key]))
    .sort((a, b) => b[key] - a[key]);
  return worst === undefined ? [NONE, NONE] : [worst[key].toExponential(1), worst.cell];
}

function rejectedText(entries) {
  const counts = groupBy(entries, ({ label }) => label)
    .map(([label, group]) => [label, group.flatMap(({ rejected }) => rejected ?? []).length])
    .filter(([, count]) => count > 0);
  if (counts.length === 0) return [];
  const texts = counts.map(([label, count]) => `${label} ${count}`);
  return [
    paragraph(`Settings that failed and were not timed, over all cells: ${texts.join(", ")}.`),
  ];
}

/** A heading and a block for each shape. */
export function byShape(cells, blocksOf) {
  return groupBy(cells, ({ shape }) => shape).flatMap(([shape, group]) => [
    heading(3, shape),
    ...blocksOf(group, shape),
  ]);
}
