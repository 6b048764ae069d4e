/**
 * Nexus beside other ways to run the same layer, on the same GPU, in turn.
 *
 *   node bench/compare/main.mjs --out DIR [PART...] [--python python3] [--rounds N]
 *                               [--tokens LIST] [--routings LIST] [--peers LIST] [--without-energy]
 *
 * Parts: `quick` (the default: the cells that matter, under three minutes), `loops` (the claims
 * of the original system), and the name of every shape in cells.mjs for all of its cells. Writes
 * DIR/<gpu>-<date>-<part>.json after every cell, and DIR/report.md, index.html and plots at the end.
 *
 * Two processes share the GPU, this one and the peers' (bench/peers), never at the same time.
 * Every output is compared with a float64 computation of the whole batch before anything is
 * timed. NEXUS_COMMIT names the commit that is measured.
 */

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median, openDevice, openNvmlEnergy, summaryOf, syntheticLayer } from "../gpu/support.mjs";
import { measureCell } from "./cell.mjs";
import { cellsOf, PARTS } from "./cells.mjs";
import { idleWattsOf } from "./energy.mjs";
import { LOOP_PEERS, loopCells } from "./loops.mjs";
import { Peers } from "./peers.mjs";

const SEED = 1;
/** Rounds of bursts; every contender has one burst in each. */
const ROUNDS = 5;
/** Of the card the data sheet is of, TB/s: what the roofline is drawn with. */
const DATA_SHEET = [
  [/H200/, 4.8],
  [/H100/, 3.35],
  [/A100/, 2.039],
];

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    out: { type: "string", default: "." },
    python: { type: "string", default: "python3" },
    rounds: { type: "string", default: String(ROUNDS) },
    tokens: { type: "string" },
    routings: { type: "string" },
    peers: { type: "string" },
    "without-energy": { type: "boolean", default: false },
  },
});
const listed = (list) => list?.split(",");
/** Whether a cell is asked for. */
const wanted = ({ tokens, routing }) =>
  (listed(options.tokens)?.includes(String(tokens)) ?? true) &&
  (listed(options.routings)?.includes(routing) ?? true);
const parts = positionals.length > 0 ? positionals : ["quick"];
for (const part of parts) {
  if (part === "loops" || PARTS.includes(part)) continue;
  console.error(`There is no part "${part}". Use some of: ${PARTS.join(", ")}, loops.`);
  process.exit(2);
}
mkdirSync(options.out, { recursive: true });

const device = await openDevice({ kind: "cuda" });
const peers = new Peers(options.python);
const folder = mkdtempSync(join(tmpdir(), "nexus-compare-"));
const written = [];
let nvml;
let failed = false;
try {
  const hello = await peers.ask("hello");
  nvml = await openNvmlEnergy(hello.device.uuid);
  const limits = await peers.ask("limits");
  for (const part of parts) written.push(await measurePart(part, hello, limits));
} finally {
  nvml?.close();
  await peers.close();
  await device.close();
  rmSync(folder, { recursive: true, force: true });
}
const report = fileURLToPath(new URL("../report/main.mjs", import.meta.url));
execFileSync(process.execPath, [report, ...written, "--out", options.out], { stdio: "inherit" });
process.exitCode = failed ? 1 : 0;

async function measurePart(part, hello, limits) {
  const { memoryBytes, name } = hello.device;
  const began = new Date();
  const dataSheetTBs = DATA_SHEET.find(([card]) => card.test(name))?.[1] ?? null;
  const result = {
    ...{ format: "nexus-peers/1", date: began.toISOString(), mode: part, seed: SEED },
    commit: process.env.NEXUS_COMMIT ?? "unknown",
    device: { ...(await summaryOf(device)), memoryBytes },
    versions: { node: process.version.slice(1), ...hello.versions },
    limits: { ...limits, dataSheetTBs },
    idleWatts: await idleWattsOf(device),
    conditions: [],
    unavailable: hello.unavailable,
    shapes: [],
    cells: [],
    energy: [],
  };
  const card = name
    .replace(/^NVIDIA /, "")
    .split(" ")[0]
    .toLowerCase();
  const file = join(options.out, `${card}-${result.date.slice(0, 10)}-${part}.json`);
  const save = () => writeFileSync(file, `${JSON.stringify(result)}\n`);
  const chosen = part === "loops" ? LOOP_PEERS : listed(options.peers);
  for (const { shape, cells } of part === "loops" ? loopCells() : cellsOf(part, memoryBytes)) {
    const asked = cells.filter(wanted);
    if (asked.length === 0) continue;
    result.shapes.push(shape);
    const synthetic = await syntheticLayer(
      device,
      { ...shape, hiddenSize: shape.hidden, intermediateSize: shape.intermediate },
      SEED,
    );
    const { hidden, intermediate, experts, topK: top_k, renormalize } = shape;
    await peers.ask("layer", {
      shape: { name: shape.name, experts, top_k, hidden, intermediate, renormalize },
      seed: SEED,
      tokens: [...new Set(asked.map(({ tokens }) => tokens))],
    });
    const site = {
      peers,
      synthetic,
      device,
      folder,
      seed: SEED,
      rounds: Number(options.rounds),
      idleWatts: result.idleWatts,
    };
    for (const cell of asked) {
      try {
        const energy = cell.energy && !options["without-energy"];
        const measured = await measureCell(site, shape, { ...cell, energy }, chosen);
        result.cells.push(measured.cell);
        result.energy.push(...measured.energy);
        console.log(lineOf(measured.cell, began));
      } catch (error) {
        failed = true;
        result.cells.push({ shape: shape.name, ...cell, failed: error.message, contenders: [] });
        console.log(`${nameOf(shape, cell)}: FAILED: ${error.stack}`);
      }
      result.conditions.push(await condition());
      save();
    }
    synthetic.modules[Symbol.dispose]();
  }
  result.seconds = (Date.now() - began) / 1e3;
  save();
  return file;
}

async function condition() {
  const { smMegahertz, memoryMegahertz, celsius, watts, limitWatts } = await nvml.telemetry();
  return {
    when: new Date().toISOString(),
    smMHz: smMegahertz,
    memoryMHz: memoryMegahertz,
    temperatureC: celsius,
    powerW: watts,
    powerLimitW: limitWatts,
  };
}

function nameOf(shape, { tokens, routing }) {
  return `${shape.name}, ${tokens} tokens, ${routing}`;
}

/** Nexus first, then everybody else from the fastest on. */
function lineOf(cell, began) {
  const seconds = ((Date.now() - began) / 1e3).toFixed(0);
  const timed = cell.contenders.filter(({ samples }) => samples);
  const [ours, again, ...rest] = timed.map(({ name, mode, samples }) => ({
    name: mode === "eager" ? `${name} (eager)` : name,
    us: median(samples),
  }));
  rest.sort((a, b) => a.us - b.us);
  const others = [
    ...rest,
    ...(cell.limit ? [{ name: "cuBLAS", us: median(cell.limit.samples) }] : []),
  ];
  const list = others.map(({ name, us }) => `${name} ${us.toFixed(1)}`).join(", ");
  const broken = cell.contenders
    .filter((each) => each.failed)
    .map((each) => `${each.name} ${each.mode}: ${each.failed}`);
  return [
    `[${seconds} s] ${cell.shape}, ${cell.tokens} tokens, ${cell.routing}: nexus ${ours.us.toFixed(1)} (${again.us.toFixed(1)}) | ${list}`,
    ...broken.map((each) => `    failed: ${each}`),
  ].join("\n");
}
