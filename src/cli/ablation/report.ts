/** The ablation for people: one table for each layer, batch size and skew, as they come. */

import { describeLimits, doubts, ratioCell } from "../bench/report.ts";
import type { Timing } from "../bench/timing.ts";
import { describeDevice, fact, packedWords } from "../describe.ts";
import { formatNumber, LINE_WIDTH, plural, wrap } from "../terminal/format.ts";
import type { Style } from "../terminal/style.ts";
import { type Cell, table } from "../terminal/table.ts";
import { RUNGS } from "./rungs.ts";
import type { AblationHead, AblationResult, RungResult } from "./session.ts";

export function ablationHead(style: Style, head: AblationHead): string[] {
  const onGpu = head.device.kind === "cuda";
  const clock = onGpu ? ', and "on GPU" of a replay by the GPU\'s own clock' : "";
  return [
    ...fact(style, "Device", describeDevice(head.device)),
    ...fact(style, "Limits", describeLimits(head.limits)),
    ...fact(
      style,
      "Times",
      `"us" is the median of a step from its submission to the host's noticing its end${clock}; "gain" is over the row before, and below 1 a loss`,
    ),
    ...(head.noEnergy === undefined ? [] : fact(style, "Energy", `no tokens/J: ${head.noEnergy}`)),
    ...Object.entries(RUNGS).flatMap(([name, what], i) =>
      fact(style, `${i === 0 ? "" : "+ "}${name}`, what),
    ),
  ];
}

export function ablationTable(
  style: Style,
  { device }: AblationHead,
  result: AblationResult,
): string[] {
  const { preset, dtype, tokens, routing, expertsUsed, floor, rungs, packedWeights } = result;
  const onGpu = device.kind === "cuda";
  const least = `${formatNumber(floor.seconds * 1e6)} us by ${floor.limit}`;
  return [
    "",
    style(
      "bold",
      `${preset}, ${dtype}${packedWords(packedWeights)}: ${plural(tokens, "token")}, ${routing}`,
    ),
    ...indented(
      `${formatNumber(expertsUsed)} experts in use; at the measured limits a step takes at least ${least}`,
    ),
    ...table(
      style,
      [
        { title: "" },
        { title: "streams", align: "right" },
        { title: "us", align: "right" },
        ...(onGpu ? [{ title: "on GPU", align: "right" } as const] : []),
        { title: "gain", align: "right" },
        { title: "tokens/s", align: "right" },
        { title: "tokens/J", align: "right" },
        { title: `of ${floor.limit}`, align: "right" },
      ],
      rungs.map((rung, i) => rungRow(rung, rungs[i - 1], onGpu)),
    ),
    ...doubts(style, {
      ratios: rungs.slice(1).map(({ seconds }, i) => [rungs[i]?.seconds as Timing, seconds]),
      shares: rungs.map(({ shareOfLimit }) => shareOfLimit),
    }),
    ...(result.singleOperator
      ? indented(
          "The experts of so few tokens are a single operator without lanes; slices and streams change nothing.",
        )
      : []),
  ];
}

function rungRow(rung: RungResult, before: RungResult | undefined, onGpu: boolean): Cell[] {
  const { name, streams, seconds, deviceSeconds, speedup, tokensPerSecond, shareOfLimit, energy } =
    rung;
  const onDevice = deviceSeconds ? formatNumber(deviceSeconds.median * 1e6) : "-";
  return [
    before === undefined ? name : `+ ${name}`,
    `${streams}`,
    formatNumber(seconds.median * 1e6),
    ...(onGpu ? [onDevice] : []),
    speedup === undefined || before === undefined
      ? ""
      : ratioCell(speedup, before.seconds, seconds),
    formatNumber(tokensPerSecond),
    energy.available ? formatNumber(energy.tokensPerJoule) : "-",
    `${(shareOfLimit * 100).toFixed(1)} %`,
  ];
}

function indented(text: string): string[] {
  return wrap(text, { width: LINE_WIDTH - 4 }).map(
    (line, i) => `${i === 0 ? "  " : "    "}${line}`,
  );
}
