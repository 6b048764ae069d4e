/**
 * Times steps of some cells with one build of Nexus, and prints a line of JSON for each: { cell, us }, the median.
 *
 *   node bench/gpu/steps.mjs FOLDER[+packed|+beside] CELL...
 *
 * FOLDER is a copy of the project whose build is timed, by its own support.mjs, with weights packed, or kept both ways, if it says so; a cell is
 * shape:tokens[:routing], as qwen3-30b-a3b:64:zipf:1.5, with the shapes and routings of ../compare/cells.mjs.
 * For turns.mjs, which runs builds in turn: a step by itself says little, since cards and clocks differ.
 *
 * One step is one graph replay from router logits to outputs. Several routings take turns (routed-steps.mjs), and replays
 * come in bursts after a rest.
 */

import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { cellsOf, PARTS, ROUTINGS } from "../compare/cells.mjs";
import { addSteps } from "./routed-steps.mjs";

const SEED = 1;
const BURSTS = 6;
const REST_MS = 100;
/** A burst is about so long: at full power clocks give within milliseconds. */
const BURST_US = 4000;
const MOST_REPLAYS = 64;
const WARM_UP_ROUNDS = 3;
/** Behind a folder: what its build is timed with as `packWeights`. */
const KEPT = { "+packed": true, "+beside": "beside" };
/** Nothing else holds weights, so that there is room for more of them. */
const NO_PEERS = [];

/** @throws Error naming a cell that there is not */
export function parseCell(text) {
  const [shape, count, ...rest] = text.split(":");
  const routing = rest.join(":") || "uniform";
  const tokens = Number(count);
  const known = PARTS.includes(shape) && shape !== "quick" && ROUTINGS.includes(routing);
  if (!known || !(Number.isInteger(tokens) && tokens > 0)) {
    throw new Error(
      `There is no cell "${text}". Use shape:tokens[:routing] with a shape of ${PARTS.slice(1).join(", ")} and a routing of ${ROUTINGS.join(", ")}.`,
    );
  }
  return { name: `${shape}:${tokens}:${routing}`, shape, tokens, routing };
}

/**
 * @param support what a build's support.mjs exports
 * @param cells of `parseCell`; those of a shape together share its weights
 * @param told with each cell's { cell, us } as soon as it is known
 * @param packWeights how the layers' weights are kept
 */
export async function timeCells(support, device, cells, told, packWeights = false) {
  let synthetic;
  let name;
  try {
    for (const cell of cells) {
      if (cell.shape !== name) {
        synthetic?.modules[Symbol.dispose]();
        const [{ shape }] = cellsOf(cell.shape, device.properties.memoryBytes, NO_PEERS);
        const sizes = { ...shape, hiddenSize: shape.hidden, intermediateSize: shape.intermediate };
        synthetic = await support.syntheticLayer(device, sizes, SEED, packWeights);
        name = cell.shape;
      }
      told({ cell: cell.name, us: await timeCell(support, synthetic, cell) });
    }
  } finally {
    synthetic?.modules[Symbol.dispose]();
  }
}

async function timeCell(support, { layer, spec }, cell) {
  const { median, oneLane, Random, StepStreams } = support;
  const { device } = layer;
  const random = new Random(SEED).fork(cell.name);
  const data = random.fillNormal(new Float32Array(cell.tokens * spec.hiddenSize));
  const hidden = { dtype: "float32", shape: [cell.tokens, spec.hiddenSize], data };
  const streams = new StepStreams(device, oneLane(layer));
  const steps = [];
  try {
    await addSteps(steps, support, layer, streams, cell, hidden, random);
    for (const { step } of steps) await step.run();
    const graphs = steps.map(({ step }) => step.graph);
    const first = await device.time(graphs, WARM_UP_ROUNDS * graphs.length);
    const replays = Math.min(MOST_REPLAYS, Math.ceil(BURST_US / median(first)));
    const burst = Math.ceil(replays / graphs.length) * graphs.length;
    const times = [];
    for (let i = 0; i < BURSTS; i++) {
      await sleep(REST_MS);
      times.push(...(await device.time(graphs, burst)));
    }
    return Math.round(median(times) * 100) / 100;
  } finally {
    for (const { step } of steps) step[Symbol.dispose]();
    streams[Symbol.dispose]();
  }
}

/** The folder of a build, and how its weights are to be kept. */
export function parseBuild(text) {
  const said = Object.keys(KEPT).find((each) => text.endsWith(each));
  if (said === undefined) return { folder: text, packWeights: false };
  return { folder: text.slice(0, -said.length), packWeights: KEPT[said] };
}

async function main([build, ...cells]) {
  const parsed = cells.map(parseCell);
  const { folder, packWeights } = parseBuild(build);
  const support = await import(pathToFileURL(resolve(folder, "bench/gpu/support.mjs")).href);
  const device = await support.openDevice({ kind: "cuda" });
  try {
    const told = (line) => console.log(JSON.stringify(line));
    await timeCells(support, device, parsed, told, packWeights);
  } finally {
    await device.close();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2));
