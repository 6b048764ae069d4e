/**
 * What limits each kernel of a step, by hardware counters.
 *
 *   node bench/counters/measure.mjs [--json FILE] [SHAPE:TOKENS:ROUTING...]
 *
 * Nsight Compute (ncu) runs whole steps of some cells (steps.mjs) and counts kernel by kernel. How,
 * and what that does to the figures:
 *
 * - More counters than the hardware has at a time are taken in several passes. ncu replays the kernel,
 *   not the program: the program would fill gigabytes of weights anew for each of ten or twenty
 *   passes. Before the first one ncu copies all memory in reach, once a kernel, which fits into device
 *   memory many times over; before the others it restores what the kernel wrote, rows at most, as
 *   weights are only read.
 * - Every pass begins with empty caches. Were they left alone, a pass would find what the one before
 *   left behind, up to 50 MB of weights, which a few tokens' experts hardly exceed; in a step
 *   other experts come in between. The price: what the kernel before has just written, logits to
 *   rows, comes from device memory here and is found in L2 in a step, and what a kernel writes may
 *   still be in L2 when counters are read.
 * - Kernels run one at a time, so `bucket`, which begins while `route` runs, does not overlap with it. What the
 *   last kernel writes along with its own work, counts to the host and empty sets, is among its bytes.
 * - Between passes the card rests, so it hardly meets its power limit. The clock that stands beside the
 *   figures is that of the passes, not that of steps without a pause, which may be lower.
 *
 * So times here are no benchmark; shares are what to read. A metric that ncu does not know on this card is
 * named with the reason, and the others are taken without it.
 */

import { writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { dataSheetOf } from "../gpu/data-sheets.mjs";
import { findNcu, ProfileError, profile, unknownMetrics } from "../ncu/profile.mjs";
import { printTable } from "../print-table.mjs";
import { CELLS, PROBE, parseCell } from "./cells.mjs";
import { FIGURES, KERNELS, METRICS, stepsOf } from "./figures.mjs";

const { values: options, positionals } = parseArgs({
  options: { json: { type: "string" } },
  allowPositionals: true,
});
const asked = positionals.length > 0 ? positionals : CELLS;
const cells = asked.map(parseCell);

const script = path.join(path.dirname(fileURLToPath(import.meta.url)), "steps.mjs");
const selection = ["--replay-mode", "kernel", "--kernel-name", `regex:^(${KERNELS.join("|")})`];
const profileSteps = (ncu, metrics, which) =>
  profile(ncu, { metrics, selection, command: [process.execPath, script, ...which] });

/** The metrics without those that ncu refuses to run with, and these with its reasons. */
function knownMetrics(ncu) {
  const refused = [];
  for (;;) {
    const metrics = METRICS.filter((each) => !refused.some(({ metric }) => metric === each));
    try {
      profileSteps(ncu, metrics, [PROBE]);
      return { metrics, refused };
    } catch (error) {
      const unknown = error instanceof ProfileError ? unknownMetrics(error.output, metrics) : [];
      if (unknown.length === 0) throw error;
      refused.push(...new Map(unknown.map((each) => [each.metric, each])).values());
    }
  }
}

function show({ shape, tokens, routing, kernels }) {
  const megabytes = (value) => (value / 1e6).toFixed(1);
  const percent = (value) => `${(value * 100).toFixed(1)} %`;
  const whole = (value) => value.toFixed(0);
  const columns = [
    ["us", "us", (value) => value.toFixed(1)],
    ["MHz", "smHertz", (value) => whole(value / 1e6)],
    ["MB read", "dramReadBytes", megabytes],
    ["written", "dramWrittenBytes", megabytes],
    ["of DRAM", "dramShare", percent],
    ["of L2", "l2Share", percent],
    ["MB to SMs", "toSmBytes", megabytes],
    ["of that", "toSmShare", percent],
    ["tensor", "tensorShare", percent],
    ["banks read", "bankReadShare", percent],
    ["written", "bankWriteShare", percent],
    ["issue", "issueShare", percent],
    ["registers", "registers", whole],
  ];
  const rows = kernels.map((kernel) => [
    kernel.label,
    ...columns.map(([, key, text]) => (kernel[key] === undefined ? "-" : text(kernel[key]))),
  ]);
  console.log(`\n${shape}, ${tokens} tokens, ${routing}`);
  printTable(["", ...columns.map(([title]) => title)], rows, 1);
}

const { ncu, version } = findNcu();
const { metrics, refused } = knownMetrics(ncu);
const { page, said: device } = profileSteps(ncu, metrics, asked);
const { dataSheetTBs } = dataSheetOf(device.name);
const { steps, absent } = stepsOf(page, dataSheetTBs);
if (steps.length !== cells.length) {
  throw new Error(`${cells.length} steps were asked for, and ${steps.length} seen.`);
}
const measured = cells.map((cell, i) => ({ ...cell, kernels: steps[i] }));
// What was refused has no column either; ncu's own words say more.
const reasons = [
  ...refused,
  ...absent.filter(({ metric }) => !refused.some((each) => each.metric === metric)),
];
for (const cell of measured) show(cell);
for (const { metric, reason } of reasons) console.log(`not counted: ${metric}: ${reason}`);
if (options.json !== undefined) {
  const report = {
    format: "nexus-counters/1",
    date: new Date().toISOString(),
    commit: process.env.NEXUS_COMMIT ?? "unknown",
    device,
    versions: { ncu: version, node: process.version },
    dataSheetTBs,
    metrics: Object.fromEntries(
      Object.entries(FIGURES).map(([name, { metric }]) => [name, metric]),
    ),
    absent: reasons,
    cells: measured,
  };
  writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
}
