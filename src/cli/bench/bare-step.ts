/**
 * One step of a layer without the layer around it: the same operators on the same
 * weights, in buffers and on streams of its own, so that it can be run eagerly,
 * captured, replayed and timed by itself. Nothing is measured, planned or copied to
 * the host between two runs; that is MoELayer's work.
 */

import { tokenBucket } from "../../control/graph-manager.ts";
import type { SliceId } from "../../control/plan.ts";
import type { LayerSpec } from "../../data/spec.ts";
import { rowWeightsOf, StepBuffers } from "../../data/step-buffers.ts";
import type { ComputeBudgets, Device, Graph } from "../../execution/device.ts";
import { DeviceTensor } from "../../execution/device-tensor.ts";
import type { LayerModules } from "../../layer/layer-modules.ts";
import { type LaneLayout, recordStep, type StepParts, StepStreams } from "../../layer/step.ts";
import { type DType, sizeOf, type Tensor, toFloat32 } from "../../tensor.ts";

/** A layer whose weights are on a device. */
export interface LoadedLayer {
  readonly device: Device;
  readonly spec: LayerSpec;
  readonly modules: LayerModules;
  /** Element type of the rows that its products read and write. */
  readonly rowType: DType;
}

export function loadedLayer(device: Device, spec: LayerSpec, modules: LayerModules): LoadedLayer {
  const { dtype: rowType } = device.rowLayout(spec.hiddenSize, rowWeightsOf(spec));
  return { device, spec, modules, rowType };
}

/** Where experts run: their lanes, and what each lane may use. */
export interface StepLayout extends LaneLayout {
  /** int32 [E]. */
  readonly laneOf: Int32Array;
  readonly budgets: ComputeBudgets;
}

/** All experts on one lane, which has the whole device. */
export function oneLane({ device, spec }: Pick<LoadedLayer, "device" | "spec">): StepLayout {
  const sliceOfLane: readonly SliceId[] = ["A"];
  return {
    sliceOfLane,
    priorityOfLane: [0],
    laneOf: new Int32Array(spec.router.experts),
    budgets: { realisation: "shared", units: [device.properties.computeUnits] },
  };
}

/** Writes the token count and the hidden states [T, H] of a batch. */
export async function writeBatch(
  { device, spec }: LoadedLayer,
  buffers: StepBuffers,
  hidden: Tensor | DeviceTensor,
): Promise<void> {
  const tokens = sizeOf(hidden.shape) / spec.hiddenSize;
  const layout = buffers.layouts.hidden;
  device.write(buffers.tokens, Int32Array.of(tokens));
  if (hidden instanceof DeviceTensor) {
    await device.copyRows(buffers.hidden, layout, hidden.buffer, hidden.dtype, tokens);
  } else {
    device.writeRows(buffers.hidden, layout, hidden);
  }
}

export interface BareStepOptions {
  /** Tokens of the batches; default kernels and buffers are those of their bucket. */
  readonly tokens: number;
  /** Begin at logits that `writeLogits` wrote instead of at the gate; default false. */
  readonly fromLogits?: boolean;
  /** Default float32. */
  readonly outputType?: DType;
  /** Streams of another step, so that both can be captured into one graph; they stay the caller's. */
  readonly streams?: StepStreams;
}

export class BareStep implements Disposable {
  readonly buffers: StepBuffers;
  readonly #layer: LoadedLayer;
  readonly #layout: StepLayout;
  readonly #parts: StepParts;
  readonly #streams: StepStreams;
  readonly #ownsStreams: boolean;
  readonly #scope: { readonly mostTokens: number; readonly outputType: DType };
  #graph: Graph | undefined;

  /** @throws OutOfDeviceMemoryError */
  constructor(layer: LoadedLayer, layout: StepLayout, options: BareStepOptions) {
    const { device, modules } = layer;
    const { tokens, fromLogits = false, outputType = "float32" } = options;
    const { parts } = modules;
    this.#layer = layer;
    this.#layout = layout;
    this.#parts = fromLogits ? { ...parts, routing: parts.routing.fromLogits } : parts;
    this.#scope = { mostTokens: tokenBucket(tokens), outputType };
    const { packed } = parts.experts;
    this.buffers = StepBuffers.ofLayer(device, layer.spec, this.#scope.mostTokens, packed);
    this.#streams = options.streams ?? new StepStreams(device, layout);
    this.#ownsStreams = options.streams === undefined;
    device.write(this.buffers.tokens, Int32Array.of(tokens));
    device.write(this.buffers.buckets.laneOf, layout.laneOf);
  }

  /** @param hidden float [T, H] */
  write(hidden: Tensor | DeviceTensor): Promise<void> {
    return writeBatch(this.#layer, this.buffers, hidden);
  }

  /** @param logits float [T, E] */
  writeLogits(logits: Tensor): void {
    this.#layer.device.write(this.buffers.logits, toFloat32(logits));
  }

  /** Enqueues the step. */
  record(): void {
    recordStep(this.#streams, this.#parts, this.buffers, this.#scope);
  }

  /** Runs it eagerly. */
  async run(): Promise<void> {
    this.applyBudgets();
    this.record();
    await this.#layer.device.synchronize();
  }

  /** Runs it from its graph, which the first call captures. */
  async replay(): Promise<void> {
    this.applyBudgets();
    await this.graph.launch();
  }

  /** The captured step; closed with this. */
  get graph(): Graph {
    this.applyBudgets();
    this.#graph ??= this.#layer.device.capture(this.#streams.main, () => this.record());
    return this.#graph;
  }

  applyBudgets(): void {
    this.#layer.device.setComputeBudgets(this.#layout.budgets);
  }

  /** What the last run put out, as the bits of the output type. */
  async output(): Promise<Tensor> {
    const { device, spec } = this.#layer;
    const count = new Int32Array(1);
    await device.read(this.buffers.tokens, count);
    const shape = [count[0] as number, spec.hiddenSize];
    const dtype = this.#scope.outputType;
    const data =
      dtype === "float32" ? new Float32Array(sizeOf(shape)) : new Uint16Array(sizeOf(shape));
    await device.read(this.buffers.output, data);
    return { dtype, shape, data };
  }

  /** int32 [E]: tokens per expert of the last run. */
  async counts(): Promise<Int32Array> {
    const counts = new Int32Array(this.#layer.spec.router.experts);
    await this.#layer.device.read(this.buffers.counts, counts);
    return counts;
  }

  [Symbol.dispose](): void {
    this.#graph?.[Symbol.dispose]();
    if (this.#ownsStreams) this.#streams[Symbol.dispose]();
    this.buffers[Symbol.dispose]();
  }
}
