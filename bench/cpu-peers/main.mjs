/**
 * One MoE layer on the CPU, by Nexus and by others' runtimes in the same run: float32 weights,
 * softmax over the logits, the k largest, gated SiLU experts, weighted sum.
 *
 *   node bench/cpu-peers/main.mjs [--json FILE] [--presets small,medium] [--tokens 1,16,256]
 *                                 [--rounds N] [--python PYTHON]
 *
 * Measured is a step from router logits and hidden states in host memory to the output there, on two
 * threads. The contenders:
 *
 * - `nexus`: MoELayer.forward on the CPU device;
 * - `onnxruntime moe`: ONNX Runtime's own operator for the whole layer (com.microsoft MoE);
 * - `onnxruntime graph`: the layer as a graph of standard operators, two Gemm per expert;
 * - `openblas`: numpy over OpenBLAS, a loop over the experts that have tokens;
 * - `pytorch`: the same loop with PyTorch's operators.
 *
 * The peers are installed by hand and are no dependency; what is missing is left out and named.
 * `npm install --no-save --ignore-scripts onnxruntime-node`, here or in a folder whose node_modules is
 * in NODE_PATH, has the CPU binary in it; PYTHON has numpy, torch and onnx (which writes the models).
 *
 * Every contender is a process of its own, loaded throughout and busy only in its turn. Turns come in
 * rounds and begin after a rest, because others' idle threads spin for a while; several batches take
 * turns, so that one token does not find its experts in the cache. Before it is timed, each is held
 * against float64: up to 16 tokens of the first batch.
 */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import {
  ExpertPopularity,
  makeLogits,
  parseSkew,
  presetOf,
  quantile,
  Random,
} from "../gpu/support.mjs";
import { startContenders } from "./contenders.mjs";
import { checkedTokens, errorOf, expectedRows, writeBatch, writeLayer } from "./layer.mjs";

const ROUTINGS = ["uniform", "zipf:1"];
const BATCHES = 8;
/** After a turn OpenBLAS's idle threads were seen to spin for 100 ms, the others' for 10 or less. */
const REST_MS = 200;
/** A turn has as many calls as fill this, within bounds. */
const TURN_SECONDS = 0.25;
const [LEAST_CALLS, MOST_CALLS] = [2, 50];
/** Calls before anything is timed: more than Nexus has steps between two plans. */
const WARM_UP_CALLS = 12;
const ERROR_BOUND = 1e-5;
const SEED = 1;

const { values: options } = parseArgs({
  options: {
    json: { type: "string" },
    presets: { type: "string", default: "small,medium" },
    tokens: { type: "string", default: "1,16,256" },
    rounds: { type: "string", default: "7" },
    python: { type: "string", default: "python3" },
  },
});

/** Makes the batches of a cell, loads them everywhere, and says how far everyone is from float64. */
async function prepareCell(folder, contenders, { preset, weights, tokens, routing }) {
  const random = new Random(SEED).fork(`${preset.name} ${tokens} ${routing}`);
  const popularity = ExpertPopularity.draw(parseSkew(routing), preset.experts, random);
  const batches = Array.from({ length: BATCHES }, () => ({
    hidden: random.fillNormal(new Float32Array(tokens * preset.hiddenSize)),
    logits: makeLogits(popularity, tokens, random).data,
  }));
  const files = batches.map((batch, i) => writeBatch(path.join(folder, `batch-${i}.bin`), batch));
  const sample = checkedTokens(tokens);
  const expected = await expectedRows(weights, batches[0], sample);
  const errors = new Map();
  for (const contender of contenders) {
    await contender.ask({ load: files, tokens });
    const file = path.join(folder, "output.bin");
    await contender.ask({ output: file });
    const bytes = readFileSync(file);
    const error = errorOf(new Float32Array(new Uint8Array(bytes).buffer), expected, sample);
    if (!(error < ERROR_BOUND)) {
      throw new Error(`${contender.name}, ${preset.name}, ${tokens} tokens: off by ${error}`);
    }
    errors.set(contender, error);
  }
  return errors;
}

/** Microseconds of every call, by contender. */
async function timeCell(contenders) {
  const samples = new Map(contenders.map((each) => [each, []]));
  const callsOf = new Map();
  let batch = 0;
  const turn = async (contender, calls) => {
    await sleep(REST_MS);
    const { us } = await contender.ask({ calls, first: batch });
    batch = (batch + calls) % BATCHES;
    return us;
  };
  for (const contender of contenders) {
    const us = quantile(await turn(contender, WARM_UP_CALLS), 0.5);
    const fill = Math.ceil((TURN_SECONDS * 1e6) / us);
    callsOf.set(contender, Math.min(MOST_CALLS, Math.max(LEAST_CALLS, fill)));
  }
  for (let round = 0; round < Number(options.rounds); round++) {
    const first = round % contenders.length;
    for (const contender of [...contenders.slice(first), ...contenders.slice(0, first)]) {
      samples.get(contender).push(...(await turn(contender, callsOf.get(contender))));
    }
  }
  return samples;
}

function show({ shape, tokens, routing, contenders }) {
  console.log(`${shape}, ${tokens} tokens, ${routing}`);
  const [ours] = contenders.map(({ samples }) => quantile(samples, 0.5));
  for (const { name, samples, relativeError } of contenders) {
    const [low, us, high] = [0.25, 0.5, 0.75].map((p) => quantile(samples, p));
    const figures = [us, low, high].map((each) => (each / 1e3).toFixed(3));
    console.log(
      `  ${name.padEnd(18)} ${figures[0].padStart(9)} ms (${figures[1]} to ${figures[2]}), ` +
        `${(us / ours).toFixed(2)} x nexus, error ${relativeError.toExponential(1)}`,
    );
  }
}

const report = {
  format: "nexus-cpu-peers/1",
  date: new Date().toISOString(),
  commit: process.env.NEXUS_COMMIT ?? "unknown",
  cpu: os.cpus()[0]?.model ?? "unknown",
  /** Of the machine before it begins: what others do shows in every figure. */
  loadAverage: os.loadavg()[0],
  threads: undefined,
  unit: "us",
  versions: { node: process.version },
  leftOut: {},
  cells: [],
};
const root = mkdtempSync(path.join(os.tmpdir(), "nexus-cpu-peers-"));
try {
  for (const name of options.presets.split(",")) {
    const preset = presetOf(name);
    const folder = path.join(root, name);
    mkdirSync(folder);
    const { weights, layer } = await writeLayer(folder, preset, SEED);
    report.threads = layer.threads;
    const { contenders, leftOut } = await startContenders(folder, options.python);
    for (const { versions } of contenders) Object.assign(report.versions, versions);
    for (const [who, why] of Object.entries(leftOut)) console.log(`left out: ${who}: ${why}`);
    Object.assign(report.leftOut, leftOut);
    for (const tokens of options.tokens.split(",").map(Number)) {
      for (const routing of ROUTINGS) {
        const errors = await prepareCell(folder, contenders, { preset, weights, tokens, routing });
        const samples = await timeCell(contenders);
        const cell = {
          shape: name,
          tokens,
          routing,
          contenders: contenders.map((each) => ({
            name: each.name,
            samples: samples.get(each).map((us) => Math.round(us * 10) / 10),
            relativeError: errors.get(each),
          })),
        };
        show(cell);
        report.cells.push(cell);
        if (options.json) writeFileSync(options.json, `${JSON.stringify(report)}\n`);
      }
    }
    for (const contender of contenders) await contender.end();
    rmSync(folder, { recursive: true });
  }
} finally {
  rmSync(root, { recursive: true, force: true });
}
