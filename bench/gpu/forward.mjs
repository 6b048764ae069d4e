/**
 * What a call of `MoELayer.forward` takes on the wall clock, awaited one by one: with tensors that stay on the GPU and with the
 * host's, beside what the GPU takes for the step. Prints a line of JSON for each case.
 *
 *   node bench/gpu/forward.mjs
 */

import { pathToFileURL } from "node:url";
import {
  BareStep,
  DeviceTensor,
  figures,
  MoELayer,
  oneLane,
  openDevice,
  presetOf,
  Random,
  summaryOf,
  syntheticLayer,
} from "./support.mjs";

/** So small that the GPU has next to nothing to do. */
export const TINY = {
  hiddenSize: 256,
  intermediateSize: 128,
  experts: 16,
  topK: 2,
  renormalize: true,
};
const QWEN3 = presetOf("qwen3-30b-a3b");
const CASES = [
  { name: "tiny, 16 tokens", shape: TINY, tokens: 16 },
  { name: "qwen3-30b-a3b, 1 token", shape: QWEN3, tokens: 1 },
  { name: "qwen3-30b-a3b, 64 tokens", shape: QWEN3, tokens: 64 },
];
const CALLS = 6000;
/** Until the calls' code is compiled and the plan has settled. */
const WARM_UP = 3000;

/**
 * @param synthetic what syntheticLayer() gave
 * @param from "device": a tensor of the GPU's own type, in and out; "host": float32 of the host
 * @returns microseconds of a call: median, deciles, mean
 */
export async function measureForward(device, { spec, weights }, shape, tokens, from) {
  const layer = await new MoELayer(spec, weights, { device }).ready();
  const data = new Random(1).fillNormal(new Float32Array(tokens * shape.hiddenSize));
  const hidden = { dtype: "float32", shape: [tokens, shape.hiddenSize], data };
  const input = from === "host" ? hidden : rowsOnDevice(device, hidden);
  const samples = [];
  try {
    for (let i = 0; i < WARM_UP + CALLS; i++) {
      const begun = performance.now();
      const { output } = await layer.forward(input);
      const ended = performance.now();
      if (from === "device") output[Symbol.dispose]();
      if (i >= WARM_UP) samples.push((ended - begun) * 1000);
    }
  } finally {
    if (from === "device") input[Symbol.dispose]();
    await layer.close();
  }
  const { us, p10, p90 } = figures(samples);
  return { us, p10, p90, mean: samples.reduce((a, b) => a + b) / CALLS };
}

function rowsOnDevice(device, hidden) {
  const [tokens, width] = hidden.shape;
  const layout = device.rowLayout(width, "bfloat16");
  const buffer = device.allocate(tokens * layout.pitch * 2, "hidden states");
  device.writeRows(buffer, layout, hidden);
  return new DeviceTensor(device, buffer, hidden.shape, layout.dtype);
}

/** Median microseconds of a replay of the step, the gate included, by the GPU's clock. */
async function onDevice(device, { layer }, shape, tokens) {
  const step = new BareStep(layer, oneLane(layer), { tokens, outputType: "bfloat16" });
  try {
    const data = new Random(1).fillNormal(new Float32Array(tokens * shape.hiddenSize));
    await step.write({ dtype: "float32", shape: [tokens, shape.hiddenSize], data });
    await step.run();
    return figures(Array.from(await device.time(step.graph, 400))).us;
  } finally {
    step[Symbol.dispose]();
  }
}

async function main() {
  const device = await openDevice({ kind: "cuda" });
  console.log(JSON.stringify({ device: await summaryOf(device), node: process.version }));
  for (const { name, shape, tokens } of CASES) {
    const synthetic = await syntheticLayer(device, shape, 1);
    const us = await onDevice(device, synthetic, shape, tokens);
    const calls = {};
    for (const from of ["device", "host"]) {
      calls[from] = await measureForward(device, synthetic, shape, tokens, from);
    }
    synthetic.modules[Symbol.dispose]();
    console.log(JSON.stringify({ name, onDevice: us, ...calls }));
  }
  await device.close();
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) await main();
