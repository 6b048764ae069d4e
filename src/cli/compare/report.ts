/** A comparison for people: what moved, what one file lacks, and how much did not move. */

import { printablePath, UNPRINTABLE } from "../../errors/wording.ts";
import { fact } from "../describe.ts";
import { formatNumber, formatShare } from "../terminal/format.ts";
import type { Style } from "../terminal/style.ts";
import { type Cell, table } from "../terminal/table.ts";
import type { Change, Comparison, Unmatched } from "./compare.ts";

export function comparisonReport(style: Style, comparison: Comparison): string[] {
  const { a, b, warnings, changes, unmatched, counts } = comparison;
  const moved = changes.filter(({ verdict }) => verdict !== "unchanged");
  return [
    ...[a, b].flatMap(({ file, date, device, version }, i) =>
      fact(
        style,
        i === 0 ? "A" : "B",
        `${printablePath(file)}: ${printable(`${device}, ${version}, ${date}`)}`,
      ),
    ),
    ...warnings.flatMap((warning) => fact(style, "Warning", printable(warning))),
    "",
    ...(moved.length === 0 ? ["Nothing moved beyond the noise."] : changeTable(style, moved)),
    ...(unmatched.length === 0 ? [] : ["", "Not in both files:", ...unmatched.map(unmatchedLine)]),
    "",
    `${counts.faster} faster, ${counts.slower} slower, ${counts.unchanged} unchanged,`,
    `${counts["too few samples"]} with too few samples to tell, ${unmatched.length} not in both files.`,
  ];
}

function changeTable(style: Style, changes: readonly Change[]): string[] {
  return table(
    style,
    [
      { title: "cell" },
      { title: "contender" },
      { title: "A us", align: "right" },
      { title: "B us", align: "right" },
      { title: "change", align: "right" },
      { title: "noise", align: "right" },
      { title: "" },
    ],
    changes.map(({ cell, contender, a, b, change, noise, verdict }): Cell[] => [
      printable(cell),
      printable(contender),
      formatNumber(a),
      formatNumber(b),
      `${change > 0 ? "+" : ""}${formatShare(change)}`,
      formatShare(noise),
      verdict === "too few samples"
        ? verdict
        : { text: verdict, format: verdict === "faster" ? "green" : "yellow" },
    ]),
  );
}

function unmatchedLine({ cell, contender, onlyIn, reason }: Unmatched): string {
  const what = contender === undefined ? cell : `${cell}: ${contender}`;
  const why = reason === undefined ? "" : ` (failed in ${onlyIn === "A" ? "B" : "A"}: ${reason})`;
  return `  ${printable(`${what}, only in ${onlyIn}${why}`)}`;
}

/** Names come from files that someone else wrote. */
function printable(text: string): string {
  return text.replace(UNPRINTABLE, " ");
}
