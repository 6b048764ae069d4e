/** The demo's report for people: what happened, top to bottom, in 80 columns. */

import type { Slice, SliceBudget, SliceId } from "../../control/plan.ts";
import { describeDevice, describeEnergy, describeSpec, fact, UNIT_NAMES } from "../describe.ts";
import { bar } from "../terminal/bar.ts";
import {
  formatBytes,
  formatNumber,
  formatRanges,
  formatShare,
  LINE_WIDTH,
  wrap,
} from "../terminal/format.ts";
import { HEAT_FORMAT, loadChart } from "../terminal/load-chart.ts";
import { printLines } from "../terminal/print.ts";
import { type Format, type Style, styleFor } from "../terminal/style.ts";
import { type Cell, table } from "../terminal/table.ts";
import type { PlanSummary } from "./plan-summary.ts";
import type { DemoPhase, DemoReport, Throughput } from "./session.ts";

/** Experts a load chart shows one by one. */
const CHART_ROWS = 8;
const THROUGHPUT_BAR = 24;

const SLICE_NAMES: Readonly<Record<SliceId, string>> = {
  A: "A hot",
  B: "B warm",
  C: "C cold",
  D: "D auxiliary",
  E: "E backward",
  F: "F MIG",
};

const SLICE_FORMATS: Readonly<Record<SliceId, Format>> = {
  A: HEAT_FORMAT.hot,
  B: HEAT_FORMAT.warm,
  C: HEAT_FORMAT.cold,
  D: "cyan",
  E: "dim",
  F: "dim",
};

export function printDemo(report: DemoReport): void {
  const style = styleFor();
  printLines([
    ...headOf(style, report),
    ...loadOf(style, "Expert load before", report.before),
    ...loadOf(style, "Expert load after the hot experts changed", report.after),
    ...slicesOf(style, report),
    ...movesOf(style, report),
    ...reasonsOf(style, report),
    ...speedOf(style, report),
    ...checkOf(style, report),
  ]);
}

function heading(style: Style, text: string): string[] {
  return ["", style("bold", text)];
}

function headOf(style: Style, report: DemoReport): string[] {
  const { layer, workload, before } = report;
  return [
    style("bold", `nexus demo`) + style("dim", `  version ${report.nexus}, seed ${report.seed}`),
    "",
    ...fact(style, "Device", describeDevice(report.device)),
    ...fact(style, "Layer", describeSpec(layer.spec, layer.weightBytes)),
    ...fact(
      style,
      "Workload",
      `${workload.steps} steps of ${workload.tokensPerStep} tokens, expert popularity ${workload.routing}; ` +
        `after step ${before.lastStep} other experts become the hot ones`,
    ),
  ];
}

function loadOf(style: Style, title: string, phase: DemoPhase): string[] {
  const slots = phase.counts.reduce((sum, count) => sum + count, 0);
  const experts = phase.plan.experts.map(({ expert, heat }) => ({
    expert,
    heat,
    share: (phase.counts[expert] as number) / slots,
  }));
  return [
    ...heading(style, `${title} (steps ${phase.firstStep} to ${phase.lastStep})`),
    ...loadChart(style, experts, CHART_ROWS),
  ];
}

function slicesOf(style: Style, report: DemoReport): string[] {
  const { before, after } = report;
  const rows = before.plan.slices.map((from, i): Cell[] => {
    const to = after.plan.slices[i] as Slice;
    const format = SLICE_FORMATS[from.id];
    if (isUnused(to))
      return [
        { text: SLICE_NAMES[from.id], format },
        { text: to.state, format: "dim" },
      ];
    const idle = to.state === "idle" ? " (idle)" : "";
    const name = { text: SLICE_NAMES[from.id] + idle, format };
    const cell = (of: (slice: Slice) => string) => change(of(from), of(to));
    return [
      name,
      change(unitsOf(from, before.plan), unitsOf(to, after.plan)),
      cell(({ budget }) => bandwidthOf(budget)),
      cell(({ budget }) => cacheOf(budget)),
      from.id === "D" ? "" : cell(({ experts }) => `${experts.length}`),
    ];
  });
  const columns = ["slice", `${UNIT_NAMES[report.device.kind]}s`, "bandwidth", "cache", "experts"];
  const { policy, realisation, realisationReason, version, lanes } = after.plan;
  return [
    ...heading(
      style,
      `Slice plan, before \u2192 after (policy ${policy}, plan ${before.plan.version} \u2192 ${version})`,
    ),
    ...table(
      style,
      columns.map((title) => ({ title })),
      rows,
    ),
    ...(lanes === 1
      ? indented("Experts have a single lane: their slices take turns with the whole device.")
      : indented(`Budgets are ${realisation}. ${realisationReason}`)),
    ...after.plan.slices
      .filter(isUnused)
      .flatMap(({ id, state, reason }) => indented(`${id} is ${state}: ${reason}`)),
  ];
}

/** Which experts moved; the budgets that changed stand in the table above. */
function movesOf(style: Style, { changes }: DemoReport): string[] {
  const moved = new Map<string, number[]>();
  for (const { expert, from, to } of changes.moves) {
    const route = `${from.slice} \u2192 ${to.slice}`;
    moved.set(route, [...(moved.get(route) ?? []), expert]);
  }
  const lines = [...moved]
    .sort(([a], [b]) => a.localeCompare(b))
    .map(([route, experts]): [string, string] => [route, `experts ${formatRanges(experts)}`]);
  if (lines.length === 0) lines.push(["none", ""]);
  return [
    ...heading(style, "Experts on another slice than before"),
    ...lines.flatMap(([route, experts]) => fact(style, `  ${route}`, experts)),
  ];
}

/** Why the busiest expert of before and the busiest of after are where they are now. */
function reasonsOf(style: Style, { before, after }: DemoReport): string[] {
  const busiest = ({ counts }: DemoPhase) => counts.indexOf(Math.max(...counts));
  const experts = [...new Set([busiest(after), busiest(before)])];
  return [
    ...heading(style, "Why an expert is where it is (plan.explain)"),
    ...experts.flatMap((expert) => indented(after.plan.experts[expert]?.reason ?? "")),
  ];
}

function speedOf(style: Style, { graphs, plansMade, throughput, energy }: DemoReport): string[] {
  const entries: [string, Throughput][] = [
    ["before", throughput.before],
    ["right after", throughput.changed],
    ["adapted", throughput.adapted],
  ];
  const most = Math.max(...entries.map(([, { tokensPerSecond }]) => tokensPerSecond));
  const lines = entries.map(([name, { firstStep, lastStep, tokensPerSecond }]) => {
    const drawn = bar(tokensPerSecond / most, THROUGHPUT_BAR).padEnd(THROUGHPUT_BAR);
    const steps = style("dim", `steps ${firstStep} to ${lastStep}`);
    return `  ${name.padEnd(12)}${style("cyan", drawn)} ${formatNumber(tokensPerSecond).padStart(8)}  ${steps}`;
  });
  return [
    ...heading(style, "Throughput (tokens/s, median of the steps)"),
    ...lines,
    "",
    ...fact(style, "Graphs", describeGraphs(graphs, plansMade)),
    ...fact(style, "Energy", describeEnergy(energy)),
  ];
}

function checkOf(style: Style, { check, correct }: DemoReport): string[] {
  const verdict = correct ? style("green", "correct") : style("red", "INCORRECT");
  const error = check.relativeError.toExponential(1);
  return [
    `${style("dim", "Output".padEnd(10))}${verdict}: relative error ${error} against the ${check.reference} reference`,
    `          (bound ${check.bound.toExponential(0)}, the ${check.tokens} tokens of the last step)`,
  ];
}

function indented(text: string): string[] {
  return wrap(text, { width: LINE_WIDTH - 4 }).map(
    (line, i) => `${i === 0 ? "  " : "    "}${line}`,
  );
}

function isUnused({ id, state }: Slice): boolean {
  return id === "F" || state === "reserved" || state === "absent";
}

function change(from: string, to: string): Cell {
  return from === to ? to : { text: arrow(from, to), format: "cyan" };
}

/** `1 MiB → 2 MiB` is written `1 → 2 MiB`. */
function arrow(from: string, to: string): string {
  const unit = / [^ ]+$/.exec(to)?.[0] ?? "";
  return `${unit !== "" && from.endsWith(unit) ? from.slice(0, -unit.length) : from} \u2192 ${to}`;
}

function unitsOf({ id, budget }: Slice, { lanes }: PlanSummary): string {
  return lanes === 1 && id !== "D" ? "all" : formatNumber(budget.computeUnits);
}

function bandwidthOf({ bandwidthShare }: SliceBudget): string {
  return formatShare(bandwidthShare);
}

function cacheOf({ cacheBytes }: SliceBudget): string {
  return cacheBytes === null ? "-" : formatBytes(cacheBytes);
}

function describeGraphs(graphs: DemoReport["graphs"], plansMade: number): string {
  const { warmups, captures, replays, evictions, nodes } = graphs;
  return (
    `${replays} steps replayed, ${captures} captured, ${warmups} eager (warm-up); ` +
    `${evictions} evicted; ${graphs.graphs} kept with ${nodes} operators; ${plansMade} plans made`
  );
}
