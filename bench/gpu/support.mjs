/**
 * What the scripts in this folder share: the built package, a layer of made-up weights
 * on the GPU, figures out of samples. Needs dist/ and node_modules/, nothing else.
 */

const root = new URL("../../dist/src/", import.meta.url);
const load = (file) => import(new URL(file, root).href);

export const { SliceManager } = await load("control/slices/manager.js");
export const { Experts } = await load("data/experts.js");
export const { Router } = await load("data/router.js");
export const { EnergyMonitor } = await load("control/energy-monitor.js");
export const { openDevice } = await load("execution/open.js");
export const { openOnDriver } = await load("execution/cuda/device.js");
export const { openDriver } = await load("execution/cuda/driver/native-driver.js");
export const { BareStep, loadedLayer, oneLane } = await load("cli/bench/bare-step.js");
export const { summaryOf } = await load("cli/device.js");
export const { median, quantile } = await load("cli/statistics.js");
export const { LayerModules } = await load("layer/layer-modules.js");
export const { MoELayer } = await load("layer/moe-layer.js");
export const { schedule } = await load("layer/schedule.js");
export const { StepStreams } = await load("layer/step.js");
export const { openNvmlEnergy } = await load("execution/cuda/nvml/energy.js");
export const { DeviceTensor } = await load("execution/device-tensor.js");
export const { ExpertPopularity, parseSkew } = await load("workload/popularity.js");
export const { makeLogits } = await load("workload/logits.js");
export const { layerSpecOf, presetOf } = await load("workload/presets.js");
export const { Random } = await load("workload/random.js");
export const { FilledLayer, uniformBlock } = await load("workload/random-layer.js");
export const { referenceRoute, relativeError } = await load("reference/index.js");
export const { toFloat32 } = await load("tensor.js");

/** A layer with experts made on the device. @param packWeights how their weights are to be kept */
export async function syntheticLayer(device, shape, seed, packWeights = false) {
  const spec = layerSpecOf(shape, "bfloat16");
  const weights = new FilledLayer(shape, "bfloat16", seed);
  const modules = await LayerModules.load(device, spec, weights, packWeights);
  return { layer: loadedLayer(device, spec, modules), weights, spec, modules };
}

/** Median, deciles and every sample, in microseconds. */
export function figures(samples) {
  return {
    us: quantile(samples, 0.5),
    p10: quantile(samples, 0.1),
    p90: quantile(samples, 0.9),
    samples: Array.from(samples, (us) => Math.round(us * 1000) / 1000),
  };
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** The number, rounded to nearest in bfloat16. */
export function roundToBfloat16(value) {
  float[0] = value;
  const b = bits[0];
  bits[0] = (b + 0x7fff + ((b >>> 16) & 1)) & 0xffff0000;
  return float[0];
}

/** The numbers that the 65,536 bfloat16s stand for. */
export const BFLOAT16 = new Float32Array(
  Uint32Array.from({ length: 65_536 }, (_, i) => i << 16).buffer,
);
