/** Parts of a report beside the cells: energy, loops, ablation, traffic, drift, conditions. */

import { loopBarsOf } from "./bars.mjs";
import { heading, list, NONE, paragraph, right, table } from "./document.mjs";
import { LEAST_OFF_PACE } from "./figures.mjs";
import { cellName, number, percent, plural, ratio } from "./format.mjs";
import { barTable, notMeasuredBlocks } from "./lead.mjs";
import { loopFigures } from "./loops.mjs";
import { median } from "./statistics.mjs";
import { failureList } from "./tables.mjs";

export function energyTable(groups) {
  return table(
    [
      { title: "cell" },
      { title: "contender" },
      ...["us in the window", "latency us", "mJ a step", "W", "tokens/J"].map(right),
      ...["tokens/J above idle", "of Nexus's energy"].map(right),
    ],
    groups.flatMap(([name, group]) =>
      group.map((each) => [
        name,
        each.label,
        each.offPace >= LEAST_OFF_PACE
          ? `**${number(each.windowUs)}** (+${percent(each.offPace)})`
          : number(each.windowUs),
        each.latencyUs === undefined ? NONE : number(each.latencyUs),
        number(each.perStep * 1e3),
        number(each.watts),
        number(each.tokensPerJoule),
        Number.isFinite(each.aboveIdle) ? number(each.tokensPerJouleAboveIdle) : NONE,
        each.overNexus === undefined ? NONE : ratio(each.overNexus),
      ]),
    ),
  );
}

export function loopBlocks(cells) {
  if (cells.length === 0) return [];
  const figures = loopFigures(cells);
  const joules = (value) => (value === undefined ? NONE : number(value * 1e3));
  return [
    heading(2, "The original system's table"),
    paragraph(
      "The system that this project began from compared itself with loops over the experts. Here is that comparison, with the fastest loop of each row. A loop's time is the shorter of two: the timed one (with half the distance between its deciles), and that of a step in the five seconds whose energy is read. It says little about today's peers; those stand above.",
    ),
    barTable(loopBarsOf(figures)),
    table(
      [
        { title: "configuration" },
        right("tokens"),
        { title: "fastest loop" },
        ...["timed us", "in the window us"].map(right),
        ...["its tokens/s", "Nexus tokens/s", "speed-up"].map(right),
        ...["its mJ/token", "Nexus mJ/token", "less energy"].map(right),
        { title: "fastest without a loop" },
        right("speed-up"),
      ],
      figures.map(({ shape, tokens, nexus, loop, other, speedup, joulesPerToken, saving }) => [
        shape,
        `${tokens}`,
        loop?.label ?? NONE,
        loop ? `${number(loop.timedUs)} ±${percent(loop.spread / 2)}` : NONE,
        loop?.windowUs === undefined ? NONE : number(loop.windowUs),
        loop ? number((tokens / loop.us) * 1e6) : NONE,
        nexus ? number((tokens / nexus.us) * 1e6) : NONE,
        speedup === undefined ? NONE : `${speedup.toFixed(1)}x`,
        joules(joulesPerToken.loop),
        joules(joulesPerToken.nexus),
        saving === undefined ? NONE : percent(saving),
        other?.label ?? NONE,
        nexus && other ? `${(other.us / nexus.us).toFixed(1)}x` : NONE,
      ]),
    ),
    ...failureList(figures),
  ];
}

/** @param ablations reports of `nexus bench --ablation --json` */
export function ablationBlocks(ablations) {
  if (ablations.length === 0) return [];
  return [
    heading(2, "Ablation"),
    paragraph(
      "The step taken apart: each row adds one thing to the row before; a gain below 1 is a loss.",
    ),
    ...ablations.flatMap(({ results }) => results.flatMap(rungBlocks)),
  ];
}

function rungBlocks({ preset, tokens, routing, rungs }) {
  return [
    heading(3, cellName({ shape: preset, tokens, routing })),
    table(
      [{ title: "" }, ...["us", "us on the GPU", "gain", "tokens/J"].map(right)],
      rungs.map(({ name, seconds, deviceSeconds, speedup, energy }, i) => [
        i === 0 ? name : `+ ${name}`,
        number(median(seconds.samples) * 1e6),
        deviceSeconds ? number(median(deviceSeconds.samples) * 1e6) : NONE,
        speedup === undefined ? "" : ratio(speedup),
        energy?.available ? number(energy.tokensPerJoule) : NONE,
      ]),
    ),
  ];
}

/** @param traffics results of the traffic measurement */
export function trafficBlocks(traffics) {
  if (traffics.length === 0) return [];
  const kilobytes = (bytes) => number(bytes / 1e3);
  return [
    heading(2, "Traffic"),
    paragraph(
      "Bytes that routing moves by the card's own counters, in kB: Nexus's fused kernels beside the unfused chain of operators. Ratio is how many times as much the chain moves.",
    ),
    table(
      [
        ...["experts", "top k", "tokens"].map(right),
        { title: "part" },
        ...["fused DRAM", "unfused DRAM", "ratio"].map(right),
        ...["fused L2", "unfused L2", "ratio"].map(right),
      ],
      traffics.flatMap(({ rows }) =>
        rows.flatMap(({ experts, topK, tokens, choose, withTidy, ...whole }) =>
          // Measurements until 26 November 2026 have tidying apart, in a kernel of its own.
          Object.entries({ choose, whole, ...(withTidy && { "with tidying": withTidy }) }).map(
            ([part, { fused, unfused, dramRatio, l2Ratio }]) => [
              ...[experts, topK, tokens].map(String),
              part,
              kilobytes(fused.dramBytes),
              kilobytes(unfused.dramBytes),
              ratio(dramRatio),
              kilobytes(fused.l2Bytes),
              kilobytes(unfused.l2Bytes),
              ratio(l2Ratio),
            ],
          ),
        ),
      ),
    ),
  ];
}

/** @param drifts results of the drift measurement */
export function driftBlocks(drifts) {
  if (drifts.length === 0) return [];
  return [
    heading(2, "Drift"),
    ...drifts.flatMap(({ preset, tokens, steps, changeEvery, rounds, forms }) => [
      paragraph(
        `${preset}, ${plural(tokens, "token")} a step: which experts are popular changes every ${changeEvery} of ${steps} steps, ${plural(rounds, "round")}. Lost is what the first steps after a change take beyond the usual.`,
      ),
      table(
        [
          { title: "form" },
          ...["step us", "p99", "tokens/s", "lost a change, us"].map(right),
          ...["plans", "changed", "captures", "mJ a step"].map(right),
        ],
        forms.map(({ stepUs, afterChangeUs, joulesPerStep, ...form }) => [
          form.name,
          ...[stepUs.median, stepUs.p99, form.tokensPerSecond].map((value) => number(value)),
          number(afterChangeUs.median),
          ...[form.plans, form.plansChanged, form.captures].map(String),
          joulesPerStep === undefined ? NONE : number(joulesPerStep * 1e3),
        ]),
      ),
    ]),
  ];
}

export function conditionBlocks({ device, versions, limits, conditions, unavailable, ...result }) {
  const range = (key, unit) =>
    rangeOf(
      conditions.flatMap((each) => each[key] ?? []),
      unit,
    );
  const rangeOf = (values, unit) => {
    if (values.length === 0) return [];
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return [`${least === most ? number(least) : `${number(least)} to ${number(most)}`} ${unit}`];
  };
  const seen = [
    ...range("smMHz", "MHz"),
    ...range("memoryMHz", "MHz of memory"),
    ...range("temperatureC", "degrees C"),
    ...range("powerW", "W"),
    ...range("powerLimitW", "W limit"),
  ];
  const [idle] = rangeOf(result.idleWatts, "W");
  return [
    heading(2, "Conditions"),
    list([
      `${device.name}, driver ${device.driver ?? "unknown"}, ${plural(device.computeUnits, "multiprocessor")}, ${number(device.memoryBytes / 2 ** 30)} GiB`,
      `commit ${result.commit}, ${result.mode} mode, seed ${result.seed}, begun ${result.date}`,
      Object.entries(versions ?? {})
        .map(([name, version]) => `${name} ${version}`)
        .join(", "),
      `limits: ${limits.copyTBs.toFixed(2)} TB/s of a copy, ${number(limits.matrixTFlops)} TFLOP/s of cuBLAS, ${limits.dataSheetTBs} TB/s and ${number(limits.dataSheetTFlops)} TFLOP/s by the data sheet`,
      ...(seen.length === 0
        ? []
        : [`seen at ${plural(conditions.length, "time")} during the run: ${seen.join(", ")}`]),
      ...(idle === undefined ? [] : [`idle, with contexts open and nothing running: ${idle}`]),
    ]),
    ...notMeasuredBlocks(result),
    ...(unavailable.length === 0
      ? []
      : [
          paragraph("Peers that cannot run here:"),
          list(unavailable.map(({ name, reason }) => `${name}: ${reason}`)),
        ]),
  ];
}

export function shapeTable(shapes) {
  return table(
    [
      { title: "shape" },
      ...["experts", "top k", "hidden", "intermediate"].map(right),
      { title: "renormalised" },
      { title: "", wraps: true },
    ],
    shapes.map(({ name, experts, topK, hidden, intermediate, renormalize, note = "" }) => [
      name,
      ...[experts, topK, hidden, intermediate].map(String),
      renormalize ? "yes" : "no",
      note,
    ]),
  );
}
