/**
 * Times steps of MoE layers on a GPU against the project's bars, and writes a report.
 *
 *   node bench/gpu/bars.mjs --out FILE.json [--only TEXT] [--replays N]
 *
 * One step is one graph replay from router logits to outputs, both in device memory,
 * activations in bfloat16, timed by the GPU's own clock. Several routings, each with
 * buffers and a graph of its own, take turns, so that a decode step does not find its
 * experts in the cache because the replay before has left them there. Replays come in
 * bursts after a rest, since a GPU lowers its clocks within milliseconds of full power;
 * beside that stands the sustained time, of as many replays without a rest, and the time of a step among many in one graph, without what launching a graph takes. A
 * few tokens of every row are held against float64 first.
 *
 * NEXUS_COMMIT names the commit that is measured.
 */

import { writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { measureHost } from "./host-cost.mjs";
import { makeKnown, referenceRows, routeOf } from "./reference.mjs";
import { addSteps } from "./routed-steps.mjs";
import * as support from "./support.mjs";
import {
  BareStep,
  ExpertPopularity,
  figures,
  makeLogits,
  oneLane,
  openDevice,
  parseSkew,
  presetOf,
  Random,
  roundToBfloat16,
  StepStreams,
  summaryOf,
  syntheticLayer,
} from "./support.mjs";

const ROWS = [
  { preset: "qwen3-30b-a3b", tokens: 1, routing: "uniform", bar: 32 },
  { preset: "qwen3-30b-a3b", tokens: 64, routing: "uniform", bar: 295 },
  { preset: "qwen3-30b-a3b", tokens: 1024, routing: "zipf:1", bar: 375 },
  { preset: "qwen3-30b-a3b", tokens: 8192, routing: "uniform", bar: 1150 },
  { preset: "mixtral-8x7b", tokens: 1, routing: "uniform", bar: 185 },
  { preset: "mixtral-8x7b", tokens: 64, routing: "zipf:1", bar: 670 },
  { preset: "mixtral-8x7b", tokens: 4096, routing: "uniform", bar: 4600 },
];
/** Router alone, with buckets and work lists. */
const ROUTER = { experts: 128, topK: 8, tokens: 512, bar: 6 };
const HOST_BAR = 15;

/** A GPU lowers its clocks within milliseconds of full power: every timing starts rested. */
const REST_MS = 300;
/** Replays are timed in so many bursts, with a rest before each; beside them stand as many without a rest between. */
const BURSTS = 10;
const WARM_UP_REPLAYS = 3;
/** Tokens held against float64; mixtral's experts take a second each. */
const sampledFor = (preset) => (preset.intermediateSize > 4096 ? 2 : 4);
const ERROR_BOUND = 6e-3;
const SEED = 1;

const { values: options } = parseArgs({
  options: {
    out: { type: "string" },
    only: { type: "string", default: "" },
    replays: { type: "string", default: "200" },
  },
});
const replays = Number(options.replays);

async function timeRow(device, synthetic, row, values) {
  const { layer, spec } = synthetic;
  const { tokens } = row;
  const hidden = values.subarray(0, tokens * spec.hiddenSize);
  const random = new Random(SEED).fork(`${row.preset.name} ${tokens}`);
  const streams = new StepStreams(device, oneLane(layer));
  const steps = [];
  const graphs = [];
  try {
    const tensor = { dtype: "float32", shape: [tokens, spec.hiddenSize], data: hidden };
    await addSteps(steps, support, layer, streams, row, tensor, random);
    const error = await checkRow(synthetic, row.preset, steps[0], hidden, tokens);
    for (const { step } of steps) await step.run();

    const single = steps.map(({ step }) => step.graph);
    const many = device.capture(streams.main, () => {
      for (const { step } of steps) step.record();
    });
    graphs.push(many);
    await device.time(single, WARM_UP_REPLAYS * steps.length);
    const rested = [];
    for (let burst = 0; burst < BURSTS; burst++) {
      await sleep(REST_MS);
      rested.push(...(await device.time(single, Math.ceil(replays / BURSTS))));
    }
    await sleep(REST_MS);
    const sustained = await device.time(single, replays);
    await device.time(many, WARM_UP_REPLAYS);
    await sleep(REST_MS);
    const among = await device.time(many, Math.ceil(replays / steps.length));
    return {
      ...figures(rested),
      sustained: figures(sustained),
      amongOthers: figures(among.map((us) => us / steps.length)),
      routings: steps.length,
      relativeError: error,
      expertsUsed: (await steps[0].step.counts()).filter((count) => count > 0).length,
    };
  } finally {
    for (const graph of graphs) graph[Symbol.dispose]();
    for (const { step } of steps) step[Symbol.dispose]();
    streams[Symbol.dispose]();
  }
}

/** Runs one step over poisoned outputs and compares some of its tokens with float64. */
async function checkRow(synthetic, preset, { step, logits }, hidden, tokens) {
  const { layer, spec } = synthetic;
  const count = Math.min(tokens, sampledFor(preset));
  const sampled = Array.from({ length: count }, (_, i) => Math.floor((i * (tokens - 1)) / count));
  const routing = routeOf(synthetic, logits, sampled);
  await makeKnown(synthetic, new Set(routing.ids));
  layer.device.write(step.buffers.output, new Uint16Array(tokens * spec.hiddenSize).fill(0x7fc0));
  await step.run();
  const { data } = await step.output();
  const expected = await referenceRows(synthetic, hidden, sampled, routing);
  let [difference, norm] = [0, 0];
  sampled.forEach((token, i) => {
    for (let j = 0; j < spec.hiddenSize; j++) {
      const got = toNumber(data[token * spec.hiddenSize + j]);
      const want = expected[i * spec.hiddenSize + j];
      difference += (got - want) ** 2;
      norm += want ** 2;
    }
  });
  const error = Math.sqrt(difference / norm);
  if (!(error < ERROR_BOUND)) throw new Error(`the output is off by ${error} from float64`);
  return error;
}

function toNumber(bfloat16) {
  return new Float32Array(Uint32Array.of(bfloat16 << 16).buffer)[0];
}

/** Route and bucket with work lists for one lane, alone and among many. */
async function timeRouter(device) {
  const { experts, topK, tokens } = ROUTER;
  const shape = { hiddenSize: 64, intermediateSize: 64, experts, topK, renormalize: true };
  const synthetic = await syntheticLayer(device, shape, SEED);
  const { layer, modules } = synthetic;
  const random = new Random(SEED).fork("router");
  const streams = new StepStreams(device, oneLane(layer));
  const steps = Array.from({ length: 20 }, () => {
    const step = new BareStep(layer, oneLane(layer), { tokens, fromLogits: true, streams });
    const popularity = ExpertPopularity.draw(parseSkew("uniform"), experts, random);
    step.writeLogits(makeLogits(popularity, tokens, random));
    return step;
  });
  const record = ({ buffers }) =>
    modules.parts.routing.fromLogits.record(streams.main, buffers, {
      mostTokens: tokens,
      lanes: 1,
    });
  const graphs = [];
  try {
    for (const step of steps) record(step);
    await device.synchronize();
    const single = steps.map((step) => device.capture(streams.main, () => record(step)));
    const many = device.capture(streams.main, () => steps.forEach(record));
    graphs.push(...single, many);
    await device.time(single, steps.length);
    await sleep(REST_MS);
    const alone = await device.time(single, replays);
    await device.time(many, WARM_UP_REPLAYS);
    const among = await device.time(many, Math.max(20, Math.ceil(replays / steps.length)));
    return { ...figures(alone), amongOthers: figures(among.map((us) => us / steps.length)) };
  } finally {
    for (const graph of graphs) graph[Symbol.dispose]();
    for (const step of steps) step[Symbol.dispose]();
    streams[Symbol.dispose]();
    modules[Symbol.dispose]();
  }
}

function show(name, bar, { us, p10, p90, sustained, amongOthers }, extra = "") {
  const verdict = us <= bar ? "met" : "missed";
  const among = amongOthers ? `, among others ${amongOthers.us.toFixed(2)}` : "";
  const long = sustained ? `, sustained ${sustained.us.toFixed(2)}` : "";
  console.log(
    `${name}: ${us.toFixed(2)} us (${p10.toFixed(2)} to ${p90.toFixed(2)}${long}${among}); bar ${bar}, ${verdict}${extra}`,
  );
}

const device = await openDevice({ kind: "cuda" });
const report = {
  date: new Date().toISOString(),
  commit: process.env.NEXUS_COMMIT ?? "unknown",
  node: process.version,
  device: await summaryOf(device),
  replays,
  unit: "us",
  rows: [],
};
let failed = false;
/** Measures one thing; what fails is in the report, and the rest goes on. */
async function attempt(name, bar, measure) {
  if (!name.includes(options.only)) return;
  try {
    const result = await measure();
    report.rows.push({ name, bar, met: result.us <= bar, ...result });
    const error = result.relativeError;
    show(name, bar, result, error === undefined ? "" : `; error ${error.toExponential(1)}`);
  } catch (error) {
    failed = true;
    report.rows.push({ name, bar, error: error.message });
    console.log(`${name}: FAILED: ${error.stack}`);
  }
  if (options.out) writeFileSync(options.out, `${JSON.stringify(report, null, 1)}\n`);
}

for (const name of new Set(ROWS.map(({ preset }) => preset))) {
  const rows = ROWS.filter(({ preset }) => preset === name).map((row) => ({
    ...row,
    name: `${name}, ${row.tokens} tokens, ${row.routing}`,
    preset: presetOf(name),
  }));
  if (!rows.some((row) => row.name.includes(options.only))) continue;
  const synthetic = await syntheticLayer(device, rows[0].preset, SEED);
  const most = Math.max(...rows.map(({ tokens }) => tokens));
  const values = new Random(SEED)
    .fillNormal(new Float32Array(most * rows[0].preset.hiddenSize))
    .map(roundToBfloat16);
  for (const row of rows) {
    await attempt(row.name, row.bar, () => timeRow(device, synthetic, row, values));
  }
  synthetic.modules[Symbol.dispose]();
}
await attempt("router alone, 128 experts, top 8, 512 tokens", ROUTER.bar, () => timeRouter(device));
await attempt("host cost of a replayed step", HOST_BAR, () => measureHost(device));
await device.close();
process.exitCode = failed ? 1 : 0;
