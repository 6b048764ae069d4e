/** One part of a comparison: its cells one after the other, and a result file that is whole after each of them. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { dataSheetOf } from "../gpu/data-sheets.mjs";
import { median, summaryOf, syntheticLayer } from "../gpu/support.mjs";
import { measureCell } from "./cell.mjs";
import { cellsOf, peersOf } from "./cells.mjs";
import { idleWattsOf, WINDOW_SECONDS } from "./energy.mjs";
import { LOOP_PEERS, loopCells } from "./loops.mjs";

const SEED = 1;

/**
 * @param bench { device, peers, folder, nvml, hello, limits }
 * @returns { file, failed }
 */
export async function measurePart(bench, part, options) {
  const { device, hello, limits } = bench;
  const { memoryBytes, name } = hello.device;
  const chosen = part === "loops" ? LOOP_PEERS : options.peers;
  const began = new Date();
  const result = {
    format: "nexus-peers/1",
    date: began.toISOString(),
    mode: part,
    seed: SEED,
    packWeights: options.packWeights,
    options: askedFor(options, chosen),
    commit: process.env.NEXUS_COMMIT ?? "unknown",
    device: { ...(await summaryOf(device)), memoryBytes },
    versions: { node: process.version.slice(1), ...hello.versions },
    limits: { ...limits, ...dataSheetOf(name) },
    idleWatts: await idleWattsOf(device),
    // The peers' bursts of replays wait until they are queued: before, a short step of theirs could be their host's time.
    queuedBursts: true,
    // Both sides' energy windows run graphs of many short steps: before, every step was a graph, and with one token a peer's took 7 us more than
    // when timed.
    pacedWindows: true,
    conditions: [],
    unavailable: hello.unavailable,
    shapes: [],
    cells: [],
    energy: [],
  };
  const [card] = name.replace(/^NVIDIA /, "").split(" ");
  const file = join(options.out, `${card.toLowerCase()}-${result.date.slice(0, 10)}-${part}.json`);
  const save = () => writeFileSync(file, `${JSON.stringify(result)}\n`);
  let failed = false;
  const fail = (shape, cell, error) => {
    failed = true;
    const { tokens, routing } = cell;
    const { message } = error;
    result.cells.push({ shape: shape.name, tokens, routing, failed: message, contenders: [] });
    console.log(`${shape.name}, ${tokens} tokens, ${routing}: FAILED: ${error.stack}`);
  };
  for (const { shape, cells } of part === "loops"
    ? loopCells()
    : cellsOf(part, memoryBytes, options.peers)) {
    const asked = cells.filter(options.wants);
    if (asked.length === 0) continue;
    result.shapes.push(shape);
    let synthetic;
    try {
      synthetic = await makeLayers(bench, shape, asked, options.packWeights);
      const site = {
        ...bench,
        synthetic,
        seed: SEED,
        rounds: options.rounds,
        idleWatts: result.idleWatts,
      };
      for (const cell of asked) {
        try {
          const energy = cell.energy && options.withEnergy;
          const taking = peersOf(chosen, options.withSortedLoop, shape, cell);
          const measured = await measureCell(site, shape, { ...cell, energy }, taking);
          const line = lineOf(measured.cell, began);
          result.cells.push(measured.cell);
          result.energy.push(...measured.energy);
          console.log(line);
        } catch (error) {
          fail(shape, cell, error);
        }
        result.conditions.push(await conditionOf(bench.nvml));
        save();
      }
    } catch (error) {
      // Without the layer there is none of its cells; the next shape may fit.
      for (const cell of asked) fail(shape, cell, error);
    } finally {
      synthetic?.modules[Symbol.dispose]();
    }
  }
  result.seconds = (Date.now() - began) / 1e3;
  save();
  return { file, failed };
}

/** What decided what was measured, and how often; without `peers`, `tokens` or `routings` there were all. */
function askedFor({ rounds, withEnergy, withSortedLoop, packWeights, tokens, routings }, peers) {
  return {
    rounds,
    energy: withEnergy,
    windowSeconds: WINDOW_SECONDS,
    withSortedLoop,
    packWeights,
    ...(peers && { peers }),
    ...(tokens && { tokens }),
    ...(routings && { routings }),
  };
}

/** The layer in both processes. @param packWeights how Nexus keeps it */
async function makeLayers({ device, peers }, shape, cells, packWeights) {
  const { hidden, intermediate, experts, topK: top_k, renormalize } = shape;
  await peers.ask("layer", {
    shape: { name: shape.name, experts, top_k, hidden, intermediate, renormalize },
    seed: SEED,
    tokens: [...new Set(cells.map(({ tokens }) => tokens))],
  });
  return syntheticLayer(
    device,
    { ...shape, hiddenSize: hidden, intermediateSize: intermediate },
    SEED,
    packWeights,
  );
}

async function conditionOf(nvml) {
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

/** Nexus first, then everybody else from the fastest on: pooled medians, to be watched; the report looks closer. */
function lineOf(cell, began) {
  const seconds = ((Date.now() - began) / 1e3).toFixed(0);
  const timed = cell.contenders.filter(({ samples }) => samples);
  const [ours, again, ...rest] = timed.map(({ name, mode, samples }) => ({
    name: mode === "eager" ? `${name} (eager)` : name,
    us: median(samples),
  }));
  rest.sort((a, b) => a.us - b.us);
  const limit = cell.limit ? [{ name: "cuBLAS", us: median(cell.limit.samples) }] : [];
  const list = [...rest, ...limit].map(({ name, us }) => `${name} ${us.toFixed(1)}`).join(", ");
  const both = `nexus ${ours.us.toFixed(1)} (${again.us.toFixed(1)})`;
  const broken = cell.contenders.filter((each) => each.failed);
  return [
    `[${seconds} s] ${cell.shape}, ${cell.tokens} tokens, ${cell.routing}: ${both} | ${list}`,
    ...broken.map(({ name, mode, failed }) => `    failed: ${name} ${mode}: ${failed}`),
  ].join("\n");
}
