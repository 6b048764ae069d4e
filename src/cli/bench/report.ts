/** The benchmark's results for people, preset by preset as they come. */

import type { DType } from "../../tensor.ts";
import type { Preset } from "../../workload/presets.ts";
import { describeDevice, fact } from "../describe.ts";
import { formatNumber, formatShare, plural } from "../terminal/format.ts";
import type { Style } from "../terminal/style.ts";
import { type Cell, table } from "../terminal/table.ts";
import type { CellResult, Rate } from "./cell.ts";
import type { BenchHead } from "./session.ts";

export function benchHead(style: Style, head: BenchHead): string[] {
  const { gflops, gigabytesPerSecond } = head.limits;
  const products = Object.entries(gflops).map(
    ([dtype, value]) => `${formatNumber(value)} GFLOP/s in ${dtype} (a 1024^3 product)`,
  );
  const reading = `${formatNumber(gigabytesPerSecond)} GB/s (weights read for one row)`;
  return [
    ...fact(style, "Device", describeDevice(head.device)),
    ...fact(style, "Limits", `measured here: ${[...products, reading].join(", ")}`),
    ...fact(
      style,
      "Rows",
      "nexus is the layer; loop is the same layer as a loop over its experts, eager, on one stream",
    ),
  ];
}

export function benchPreset(
  style: Style,
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
        { title: "ms", align: "right" },
        { title: "spread", align: "right" },
        { title: "tokens/s", align: "right" },
        { title: "GFLOP/s", align: "right" },
        { title: "GB/s", align: "right" },
      ],
      cells.flatMap((cell) => cellRows(cell)),
    ),
  ];
}

function cellRows(cell: CellResult): Cell[][] {
  const { nexus, sequential, speedup } = cell;
  const faster = `${speedup.toFixed(2)}x`;
  return [
    [`${cell.tokens}`, cell.routing, formatNumber(cell.imbalance), "nexus", ...rateCells(nexus)],
    ["", "", "", { text: "loop", format: "dim" }, ...rateCells(sequential)],
    [
      "",
      "",
      "",
      { text: faster, format: speedup >= 1 ? "green" : "yellow" },
      "",
      "",
      { text: "of limit", format: "dim" },
      { text: formatShare(nexus.shareOfArithmetic), format: "dim" },
      { text: formatShare(nexus.shareOfBandwidth), format: "dim" },
    ],
  ];
}

function rateCells({ seconds, tokensPerSecond, gflops, gigabytesPerSecond }: Rate): Cell[] {
  const { median, lowerQuartile, upperQuartile } = seconds;
  return [
    formatNumber(median * 1000),
    // Half the distance between the quartiles, of the median.
    `±${Math.round(((upperQuartile - lowerQuartile) / 2 / median) * 100)} %`,
    formatNumber(tokensPerSecond),
    formatNumber(gflops),
    formatNumber(gigabytesPerSecond),
  ];
}
