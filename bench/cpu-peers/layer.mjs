/**
 * The layer and the batches as files that every contender can read, and what the layer's output
 * should be in float64.
 *
 * A layer's folder: `layer.json` (the sizes), `weights.bin`: float32 gate_up [E, 2I, H], the gate's
 * rows of an expert first, then down [E, H, I]. A batch: float32 hidden [T, H], then logits [T, E].
 */

import { closeSync, openSync, writeFileSync, writeSync } from "node:fs";
import path from "node:path";
import { referenceExpert } from "../../dist/src/reference/expert.js";
import { relativeError } from "../../dist/src/reference/index.js";
import { RandomLayer } from "../../dist/src/workload/random-layer.js";
import { layerSpecOf, referenceRoute } from "../gpu/support.mjs";

/** Threads of every contender: the cores that the tests of this project are meant for. */
const THREADS = 2;
/** Tokens held against float64. */
const MOST_CHECKED = 16;

/** Writes a layer of made-up weights. */
export async function writeLayer(folder, preset, seed) {
  const weights = new RandomLayer(preset, "float32", seed);
  const { experts, topK, hiddenSize, intermediateSize, renormalize } = preset;
  const layer = {
    experts,
    topK,
    hiddenSize,
    intermediateSize,
    renormalize,
    threads: THREADS,
    seed,
  };
  writeFileSync(path.join(folder, "layer.json"), JSON.stringify(layer));
  const file = openSync(path.join(folder, "weights.bin"), "w");
  const write = ({ data, offset, rows, columns }) =>
    writeSync(file, data.subarray(offset, offset + rows * columns));
  for (let expert = 0; expert < experts; expert++) {
    const [up] = await weights.expert(expert);
    write(up.gate);
    write(up.value);
  }
  for (let expert = 0; expert < experts; expert++) write((await weights.expert(expert))[1].value);
  closeSync(file);
  return { layer, weights };
}

/** @returns the file's name */
export function writeBatch(file, { hidden, logits }) {
  writeFileSync(file, Buffer.concat([hidden, logits].map(({ buffer }) => Buffer.from(buffer))));
  return file;
}

/** Some of the tokens, evenly spread. */
export function checkedTokens(tokens) {
  const count = Math.min(tokens, MOST_CHECKED);
  return Array.from({ length: count }, (_, i) => Math.floor((i * tokens) / count));
}

/** Output rows of some tokens in float64, [tokens, H]. */
export async function expectedRows(weights, { hidden, logits }, tokens) {
  const { hiddenSize, experts, topK } = weights.shape;
  const spec = layerSpecOf(weights.shape, "float32");
  const chosen = new Float32Array(tokens.length * experts);
  tokens.forEach((token, i) => {
    chosen.set(logits.subarray(token * experts, (token + 1) * experts), i * experts);
  });
  const { ids, weights: shares } = referenceRoute(spec.router.rule, chosen, experts, topK);
  const rows = new Float64Array(tokens.length * hiddenSize);
  for (let expert = 0; expert < experts; expert++) {
    const slots = [...ids.keys()].filter((slot) => ids[slot] === expert);
    if (slots.length === 0) continue;
    const input = new Float64Array(slots.length * hiddenSize);
    slots.forEach((slot, i) => {
      const from = tokens[Math.floor(slot / topK)] * hiddenSize;
      input.set(hidden.subarray(from, from + hiddenSize), i * hiddenSize);
    });
    const output = referenceExpert(spec.experts, await weights.expert(expert), input);
    slots.forEach((slot, i) => {
      const to = Math.floor(slot / topK) * hiddenSize;
      for (let j = 0; j < hiddenSize; j++)
        rows[to + j] += shares[slot] * output[i * hiddenSize + j];
    });
  }
  return rows;
}

/** Relative error of an output [T, H] in the rows of `tokens`. */
export function errorOf(output, expected, tokens) {
  const width = expected.length / tokens.length;
  const rows = tokens.flatMap((token) => [...output.subarray(token * width, (token + 1) * width)]);
  return relativeError(rows, expected);
}
