/**
 * What a layer is asked for by those who make it and call it, checked before it is
 * done: misspelt names, options out of range, sources that lack a part. Whatever
 * can be known without a device is refused when the layer is made, and not at the
 * first step.
 */

import { checkGraphOptions } from "../control/graph-manager.ts";
import { ExpertProfiler, type ProfilerOptions } from "../control/profiler.ts";
import { SliceManager, type SliceManagerOptions } from "../control/slices/manager.ts";
import { type PlanningDevice, thisMachine } from "../control/slices/planning-device.ts";
import { StreamScheduler } from "../control/stream-scheduler.ts";
import { checkPackable, requirePacking } from "../data/packing.ts";
import type { LayerSpec } from "../data/spec.ts";
import { rowWeightsOf } from "../data/step-buffers.ts";
import { yesOrNo } from "../data/validate.ts";
import type { LayerWeights } from "../data/weights.ts";
import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { type Fields, requireFields, requireOptions } from "../execution/checks.ts";
import type { ForwardOptions, LayerOptions } from "./forward.ts";

const OPTIONS: Fields<LayerOptions> = {
  device: true,
  packWeights: true,
  graphs: true,
  streams: true,
  slices: true,
  profiler: true,
};
const GRAPHS: Fields<NonNullable<LayerOptions["graphs"]>> = { warmup: true, capacity: true };
const SLICES: Fields<Omit<SliceManagerOptions, "device">> = {
  policy: true,
  realisation: true,
  priorities: true,
  maxExperts: true,
  expertBytes: true,
};
const PROFILER: Fields<Omit<ProfilerOptions, "experts">> = {
  window: true,
  halfLife: true,
  minimumDwell: true,
  thresholds: true,
};
const FORWARD: Fields<ForwardOptions> = { routing: true, logits: true };
const SOURCE: Fields<LayerWeights> = {
  gate: true,
  gateBias: true,
  selectionBias: true,
  expert: true,
  fillExperts: true,
  shared: true,
  sharedGate: true,
};

/** @throws InvalidArgumentError unless these are an object of options of a layer and its index in a checkpoint, whatever they are */
export function checkLoadOptions(options: LayerOptions & { readonly layer: number }): void {
  requireFields(options, "options", "an object with the index of a layer, such as { layer: 0 }", {
    layer: true,
    ...OPTIONS,
  });
}

/**
 * Options that are wrong are refused by whoever they are for, which is made here and thrown away.
 *
 * @throws InvalidArgumentError naming the option
 * @throws DeviceUnavailableError if the device that is given cannot realise slices as asked, or cannot pack weights
 */
export function checkLayerOptions(options: LayerOptions, spec: LayerSpec): void {
  requireOptions(options, OPTIONS);
  const { device, packWeights = false, graphs, streams, slices, profiler } = options;
  requirePacking("options.packWeights", packWeights);
  if (packWeights) checkPackable({ ...spec, rowWeights: rowWeightsOf(spec) }, device?.properties);
  if (graphs !== undefined) {
    requireFields(graphs, "options.graphs", "an object, or left out", GRAPHS);
    checkGraphOptions(graphs);
  }
  if (streams !== undefined) new StreamScheduler({ streams });
  if (slices !== undefined) {
    requireFields(slices, "options.slices", "an object, or left out", SLICES);
    new SliceManager({ ...slices, device: device?.properties ?? anyDevice() });
  }
  if (profiler !== undefined) {
    requireFields(profiler, "options.profiler", "an object, or left out", PROFILER);
    new ExpertProfiler({ ...profiler, experts: spec.router.experts });
  }
}

/** @throws InvalidArgumentError if the options are none, or misspelt, or routing is neither true nor false */
export function checkForwardOptions(options: ForwardOptions): void {
  requireFields(options, "options", "an object, or left out", FORWARD);
  if (options.routing !== undefined) yesOrNo("options.routing", options.routing);
}

/** @throws InvalidArgumentError for what a weight source has instead of a method; it may have fields of its own */
export function checkSource(source: LayerWeights): void {
  for (const name of Object.keys(SOURCE) as (keyof LayerWeights)[]) {
    const method: unknown = source[name];
    if (method === undefined || typeof method === "function") continue;
    throw new InvalidArgumentError(
      `weights.${name} is ${shown(method)}; as weights.expert is a method, it must be one too, or left out.`,
    );
  }
}

/** Stands for a device that is not open yet, which may be one that can do everything. */
function anyDevice(): PlanningDevice {
  const can = { available: true } as const;
  return { ...thisMachine(), realisations: { shared: can, partitioned: can, mig: can } };
}
