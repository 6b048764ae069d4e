/** The benchmark's results for people, preset by preset as they come. */

import type { DType } from "../../tensor.ts";
import type { Preset } from "../../workload/presets.ts";
import { describeDevice, fact } from "../describe.ts";
import { formatNumber, formatShare, plural } from "../terminal/format.ts";
import type { Style } from "../terminal/style.ts";
import { type Cell, table } from "../terminal/table.ts";
import type { CellResult, Rate } from "./cell.ts";
import type { MachineLimits } from "./machine-limits.ts";
import type { BenchHead } from "./session.ts";

export function benchHead(style: Style, head: BenchHead): string[] {
  const rows =
    "nexus is the layer; loop is the same layer as a loop over its experts, eager, on one stream";
  const clock = "; graph is one replay of the layer's graph by the GPU's own clock";
  return [
    ...fact(style, "Device", describeDevice(head.device)),
    ...fact(style, "Limits", describeLimits(head.limits)),
    ...fact(style, "Rows", head.device.kind === "cuda" ? rows + clock : rows),
  ];
}

export function describeLimits(limits: MachineLimits): string {
  const { gflops, productSize, gigabytesPerSecond, memoryTest } = limits;
  const products = Object.entries(gflops).map(
    ([dtype, value]) =>
      `${formatNumber(value)} GFLOP/s in ${dtype} (a ${productSize}^3 product with these kernels)`,
  );
  return `measured here: ${[...products, `${formatNumber(gigabytesPerSecond)} GB/s (${memoryTest})`].join(", ")}`;
}

export function benchPreset(
  style: Style,
  { device }: BenchHead,
  preset: Preset,
  dtype: DType,
  cells: readonly CellResult[],
): string[] {
  const { hiddenSize, intermediateSize, experts, topK } = preset;
  const title = `${preset.name}: hidden ${hiddenSize}, intermediate ${intermediateSize}, ${plural(experts, "expert")}, top-${topK}, ${dtype}`;
  return [
    "",
    style("bold", title),
    ...table(
      style,
      [
        { title: "tokens", align: "right" },
        { title: "routing" },
        { title: "skew", align: "right" },
        { title: "" },
        { title: device.kind === "cuda" ? "us" : "ms", align: "right" },
        { title: "spread", align: "right" },
        { title: "tokens/s", align: "right" },
        { title: "GFLOP/s", align: "right" },
        { title: "GB/s", align: "right" },
      ],
      cells.flatMap((cell) => cellRows(cell, device.kind === "cuda" ? 1e6 : 1e3)),
    ),
  ];
}

/** @param unit parts of a second that times are shown in */
function cellRows(cell: CellResult, unit: number): Cell[][] {
  const { nexus, graph, sequential, speedup } = cell;
  const best = graph ?? nexus;
  const faster = `${speedup.toFixed(2)}x`;
  return [
    [
      `${cell.tokens}`,
      cell.routing,
      formatNumber(cell.imbalance),
      "nexus",
      ...rateCells(nexus, unit),
    ],
    ...(graph ? [["", "", "", "graph", ...rateCells(graph, unit)]] : []),
    ["", "", "", { text: "loop", format: "dim" }, ...rateCells(sequential, unit)],
    [
      "",
      "",
      "",
      { text: faster, format: speedup >= 1 ? "green" : "yellow" },
      "",
      "",
      { text: "of limit", format: "dim" },
      { text: formatShare(best.shareOfArithmetic), format: "dim" },
      { text: formatShare(best.shareOfBandwidth), format: "dim" },
    ],
  ];
}

function rateCells(rate: Rate, unit: number): Cell[] {
  const { seconds, tokensPerSecond, gflops, gigabytesPerSecond } = rate;
  const { median, lowerQuartile, upperQuartile } = seconds;
  return [
    formatNumber(median * unit),
    // Half the distance between the quartiles, of the median.
    `±${Math.round(((upperQuartile - lowerQuartile) / 2 / median) * 100)} %`,
    formatNumber(tokensPerSecond),
    formatNumber(gflops),
    formatNumber(gigabytesPerSecond),
  ];
}
