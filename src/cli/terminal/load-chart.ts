/** Expert load as a bar chart: the busiest experts, how hot each is, what share of the work it got. */

import type { Heat } from "../../control/plan.ts";
import { bar } from "./bar.ts";
import { formatShare, plural } from "./format.ts";
import type { Format, Style } from "./style.ts";

const BAR_WIDTH = 36;

export const HEAT_FORMAT: Readonly<Record<Heat, Format>> = {
  hot: "red",
  warm: "yellow",
  cold: "blue",
};

export interface ExpertLoadLine {
  readonly expert: number;
  /** Of all slots (token and choice), 0 to 1. */
  readonly share: number;
  readonly heat: Heat;
}

/** One line for each of the `rows` busiest experts, and one for all the others. */
export function loadChart(
  style: Style,
  experts: readonly ExpertLoadLine[],
  rows: number,
): string[] {
  const busiest = [...experts].sort((a, b) => b.share - a.share || a.expert - b.expert);
  const most = busiest[0]?.share ?? 0;
  const lines = busiest.slice(0, rows).map(({ expert, share, heat }) => {
    const length = most === 0 ? 0 : share / most;
    const drawn = style(HEAT_FORMAT[heat], bar(length, BAR_WIDTH));
    const padding = " ".repeat(BAR_WIDTH - bar(length, BAR_WIDTH).length);
    return `  ${expertName(expert)}  ${drawn}${padding} ${percent(share)}  ${style(HEAT_FORMAT[heat], heat)}`;
  });
  const others = busiest.slice(rows);
  if (others.length === 0) return lines;
  const share = others.reduce((sum, each) => sum + each.share, 0);
  const heats = (["hot", "warm", "cold"] as const)
    .map((heat) => ({ heat, count: others.filter((each) => each.heat === heat).length }))
    .filter(({ count }) => count > 0)
    .map(({ heat, count }) => `${count} ${heat}`)
    .join(", ");
  const label = `${plural(others.length, "other expert")} together`.padEnd(BAR_WIDTH);
  return [...lines, style("dim", `              ${label} ${percent(share)}  ${heats}`)];
}

function expertName(expert: number): string {
  return `expert ${String(expert).padStart(3)}`;
}

function percent(share: number): string {
  return formatShare(share).padStart(7);
}
