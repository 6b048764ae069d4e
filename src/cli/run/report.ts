/** The summary `nexus run` prints for people. */

import { describeDevice, describeEnergy, describeSpec, fact } from "../describe.ts";
import { formatNumber, formatSeconds, plural } from "../terminal/format.ts";
import { type ExpertLoadLine, loadChart } from "../terminal/load-chart.ts";
import { printLines } from "../terminal/print.ts";
import { type Style, styleFor } from "../terminal/style.ts";
import type { RunReport } from "./run-layer.ts";

/** Experts the chart shows one by one. */
const CHART_ROWS = 12;

export function printRun(report: RunReport): void {
  const style = styleFor();
  const { checkpoint, tokens, counts } = report;
  const slots = counts.reduce((sum, count) => sum + count, 0);
  const load = counts.map((count, expert) => ({
    expert,
    share: count / slots,
    heat: report.heat[expert] as ExpertLoadLine["heat"],
  }));
  const forwards = Object.values(report.steps).reduce((sum, count) => sum + count, 0);
  // Nothing is captured then, and caches hold nothing yet: far from what a warm layer does.
  const cold = forwards === 1 ? " (first step, cold)" : "";
  const steps = Object.entries(report.steps).map(([mode, count]) => `${count} ${mode}`);
  printLines([
    ...fact(
      style,
      "Model",
      `${checkpoint.family}, layer ${checkpoint.layer} of ${checkpoint.directory}`,
    ),
    ...fact(style, "Layer", describeSpec(report.spec, report.weightBytes, report.packedWeights)),
    ...fact(style, "Device", describeDevice(report.device)),
    ...fact(
      style,
      "Input",
      `${plural(tokens, "token")}, "${report.input.tensor}" of ${report.input.file}`,
    ),
    "",
    ...loadChart(style, load, CHART_ROWS),
    "",
    ...fact(
      style,
      "Time",
      `${formatSeconds(report.seconds)} on the device, ${formatNumber(report.tokensPerSecond)} tokens/s${cold}`,
    ),
    ...fact(style, "Steps", steps.join(", ")),
    ...fact(style, "Energy", describeEnergy(report.energy)),
    ...fact(style, "Output", report.output.file),
    ...warningOf(style, report),
  ]);
}

/** Numbers that are none are a result all the same, but nobody should have to find them out later. */
function warningOf(style: Style, { nonFiniteRows, tokens }: RunReport): string[] {
  if (nonFiniteRows === 0) return [];
  const rows = `${formatNumber(nonFiniteRows)} of ${plural(tokens, "output row")}`;
  const cause = "Check the checkpoint's weights and the input for such values.";
  return ["", ...fact(style, "Warning", `NaN or infinity in ${rows}. ${cause}`)];
}
