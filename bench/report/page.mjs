/**
 * Writes the tables of a page that quotes several reports, such as ../README.md, from their raw results.
 *
 *   node bench/report/page.mjs [PAGE.md]
 *
 * The page names the results, and the tables stand between two comments, which stay:
 *
 *     <!-- figures: TITLE = FOLDER; TITLE = FOLDER -->
 *     <!-- end of figures -->
 *
 * Folders are beside the page, and hold what main.mjs reports on. Peers' microseconds are those of the first. Needs dist/.
 */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { CONFIGURATIONS } from "../compare/loops.mjs";
import { barsOf, loopBarsOf } from "./bars.mjs";
import { list, NONE, paragraph, table, toMarkdown } from "./document.mjs";
import { COMMON_PEER, energyGroups, energyOf, figuresOf, groupBy, isNexus } from "./figures.mjs";
import { cellName, percent, ratio } from "./format.mjs";
import { bySize, meansTable, microsecondsTable, uniformCells } from "./glance.mjs";
import { peersIn, peersText, waitedIn } from "./lead.mjs";
import { loopFigures } from "./loops.mjs";
import { merge } from "./merge.mjs";
import { readResults } from "./read.mjs";
import { geometricMean } from "./statistics.mjs";

const PAGE = fileURLToPath(new URL("../README.md", import.meta.url));
const MARKED = /(<!-- figures: ([^\n]*) -->\n)[\s\S]*?(<!-- end of figures -->)/;
/** Of the microseconds: the others are in the reports. */
const SHOWN_TOKENS = [1, 64, 1024, 4096, 16384];

/** @param text a page @param folder that it lies in @returns the page with its tables written anew */
export function written(text, folder) {
  if (!MARKED.test(text)) throw new Error("The page has no <!-- figures: ... --> to write to.");
  return text.replace(MARKED, (_, begin, sources, end) => {
    const reports = sources.split("; ").map((source) => {
      const [title, results] = source.split(" = ");
      return [title, figuresIn(path.join(folder, results))];
    });
    return `${begin}\n${toMarkdown(pageBlocks(reports))}\n${end}`;
  });
}

function figuresIn(folder) {
  const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
  return figuresOf(merge(readResults(files.map((name) => path.join(folder, name))).results));
}

/** @param reports [[title, figures]...] */
function pageBlocks(reports) {
  const [[, { cells, device }]] = reports;
  // Peers' times are of one card.
  const alike = reports.filter(([, figures]) => figures.device.name === device.name);
  const shown = uniformCells(cells).filter(({ tokens }) => SHOWN_TOKENS.includes(tokens));
  return [
    list(reports.map(standing)),
    besideEachOther("bar", reports, barRows),
    paragraph("Geometric means of the speed-up, by tokens (by shape: in the reports):"),
    meansTable(reports, bySize("tokens")),
    paragraph("Microseconds of a step, uniform routing; peers as measured for the first column:"),
    microsecondsTable(
      shown,
      alike.map(([title, figures]) => [title, figures.cells]),
    ),
    paragraph("Energy: how much less Nexus takes than the best peer that was measured, by tokens:"),
    besideEachOther("tokens", reports, energyRows),
  ];
}

/** A column for each report. @param rowsOf (figures) => [[title, text]...], of which not every report needs to have all */
function besideEachOther(title, reports, rowsOf) {
  const columns = reports
    .map(([name, figures]) => ({ name, rows: new Map(rowsOf(figures)) }))
    .filter(({ rows }) => rows.size > 0);
  const titles = [...new Set(columns.flatMap(({ rows }) => [...rows.keys()]))];
  return table(
    [{ title }, ...columns.map(({ name }) => ({ title: name }))],
    titles.map((row) => [row, ...columns.map(({ rows }) => rows.get(row) ?? NONE)]),
  );
}

/** How a report stands, in a line or two. */
function standing([title, figures]) {
  const { compared, fastest, clearlyFastest, lost, failedCells, missingCells } = figures;
  const bars = barRows(figures);
  const missed = bars.filter(([, text]) => text.startsWith("**missed**"));
  const lacking = failedCells.length + missingCells.length;
  return [
    `**${title}: fastest in ${fastest.length} of ${compared.length} cells** (${clearlyFastest.length} beyond the noise; in ${lost.length} a peer is),`,
    `**${ratio(figures.overBestPeer)} over the best peer and ${ratio(figures.overCommonPeer)} over ${COMMON_PEER}** in the geometric mean,`,
    `${ratio(ofModels(compared))} over the best peer with the five shapes of models.`,
    `${peersText(peersIn(compared).everywhere)} in every cell.`,
    `${missed.length} of ${bars.length} bars missed.`,
    ...(lacking === 0
      ? []
      : [`${failedCells.length} cells failed, ${missingCells.length} were not attempted.`]),
    `${figures.date.slice(0, 10)}, commit ${figures.commit}.`,
  ].join(" ");
}

/** The geometric mean without the shapes of the original system. */
function ofModels(compared) {
  const cells = compared.filter(({ shape }) => !CONFIGURATIONS.includes(shape));
  return geometricMean(cells.map(({ speedup }) => speedup));
}

function barRows(figures) {
  const bars = [...barsOf(figures), ...loopBarsOf(loopFigures(figures.loopCells))];
  return bars
    .filter(({ met }) => met !== undefined)
    .map(({ bar, met, figure }) => {
      // The column says which card, the page what the bars were set for, and the report in which cell.
      const short = figure
        .replace(`, on ${figures.device.name}`, "")
        .replace(/ \([^)]*\)/g, "")
        .replace(/, \d+ more within the noise|, uniform$|; \d+ cells? not certain/g, "");
      return [bar, `${met ? "met" : "**missed**"}: ${short}`];
    });
}

/** By how much Nexus takes less than whoever else takes the least, by tokens and over all. */
function energyRows({ cells }) {
  const tokensOf = new Map(cells.map((cell) => [cellName(cell), cell.tokens]));
  const groups = energyGroups(energyOf(cells));
  const savings = groups.flatMap(([name, group]) => {
    const others = group.filter(({ contender }) => !isNexus({ name: contender }));
    if (others.length === group.length || others.length === 0) return [];
    const least = Math.min(...others.map(({ overNexus }) => overNexus));
    return [{ tokens: tokensOf.get(name), saving: 1 - 1 / least }];
  });
  const row = (title, group) => {
    const values = group.map(({ saving }) => saving);
    const less = values.filter((value) => value > 0);
    const ends = [...new Set([Math.min(...values), Math.max(...values)].map(percent))];
    const range = ends.join(" to ");
    return [title, `${range}; less in ${less.length} of ${values.length}`];
  };
  if (savings.length === 0) return [];
  return [
    ...groupBy(
      savings.toSorted((a, b) => a.tokens - b.tokens),
      ({ tokens }) => `${tokens}`,
    ).map(([tokens, group]) => row(tokens, group)),
    row("all", savings),
    ["a peer's joules contain waiting in", `${waitedIn(groups, cells).length}`],
  ];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const page = process.argv[2] ?? PAGE;
  writeFileSync(page, written(readFileSync(page, "utf8"), path.dirname(page)));
}
