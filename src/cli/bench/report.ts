/** The benchmark's results for people, preset by preset as they come. */

import type { DType } from "../../tensor.ts";
import type { Preset } from "../../workload/presets.ts";
import { describeDevice, fact, packedWords } from "../describe.ts";
import { formatNumber, formatShare, LINE_WIDTH, plural, wrap } from "../terminal/format.ts";
import type { Style } from "../terminal/style.ts";
import { type Cell, table } from "../terminal/table.ts";
import type { CellResult, Rate } from "./cell.ts";
import type { MachineLimits } from "./machine-limits.ts";
import type { BenchHead } from "./session.ts";
import { spreadOf, type Timing, withinSpread } from "./timing.ts";

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
  { device, limits, options }: BenchHead,
  preset: Preset,
  dtype: DType,
  cells: readonly CellResult[],
): string[] {
  const { hiddenSize, intermediateSize, experts, topK } = preset;
  const title = `${preset.name}: hidden ${hiddenSize}, intermediate ${intermediateSize}, ${plural(experts, "expert")}, top-${topK}, ${dtype}${packedWords(options.packWeights)}`;
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
    ...note(
      style,
      `Limits: ${formatNumber(limits.gflops[dtype] as number)} GFLOP/s and ${formatNumber(limits.gigabytesPerSecond)} GB/s, the most that was measured before and after.`,
    ),
    ...doubts(style, {
      ratios: cells.map(({ nexus, sequential }) => [nexus.seconds, sequential.seconds]),
      shares: cells.flatMap((cell) => {
        const { shareOfArithmetic, shareOfBandwidth } = cell.graph ?? cell.nexus;
        return [shareOfArithmetic, shareOfBandwidth];
      }),
    }),
  ];
}

/** A ratio of two times, marked where it says nothing. */
export function ratioCell(ratio: number, a: Timing, b: Timing): Cell {
  const text = `${ratio.toFixed(2)}x`;
  if (withinSpread(a, b)) return { text: `~${text}`, format: "dim" };
  return { text, format: ratio >= 1 ? "green" : "yellow" };
}

/** What is to be said of a table whose figures say less than they seem to. */
export function doubts(
  style: Style,
  shown: {
    readonly ratios: readonly (readonly [Timing, Timing])[];
    readonly shares: readonly number[];
  },
): string[] {
  const within = shown.ratios.some(([a, b]) => withinSpread(a, b));
  const impossible = shown.shares.some((share) => share > 1);
  return [
    ...(within ? note(style, "~ is a difference within the spread of the times.") : []),
    ...(impossible
      ? note(style, "Over 100 %: the machine changed speed; shares are unreliable.")
      : []),
  ];
}

function note(style: Style, text: string): string[] {
  return wrap(text, { width: LINE_WIDTH - 2 }).map((line) => style("dim", `  ${line}`));
}

/** @param unit parts of a second that times are shown in */
function cellRows(cell: CellResult, unit: number): Cell[][] {
  const { nexus, graph, sequential, speedup } = cell;
  const best = graph ?? nexus;
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
      ratioCell(speedup, nexus.seconds, sequential.seconds),
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
  const { median } = seconds;
  return [
    formatNumber(median * unit),
    `±${Math.round((spreadOf(seconds) / median) * 100)} %`,
    formatNumber(tokensPerSecond),
    formatNumber(gflops),
    formatNumber(gigabytesPerSecond),
  ];
}
