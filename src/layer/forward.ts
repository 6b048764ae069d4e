/** What a layer is given and what it gives back: options, results, statistics. Types only. */

import type { EnergyReading } from "../control/energy-monitor.ts";
import type { GraphManager, RunMode } from "../control/graph-manager.ts";
import type { DroppedSlot } from "../data/buckets.ts";
import type { Device, Packing } from "../execution/device.ts";
import type { DeviceTensor } from "../execution/device-tensor.ts";
import type { Tensor, TensorLike } from "../tensor.ts";
import type { ControlOptions } from "./control-loop.ts";

/** Where a layer runs, and how it is divided and measured. */
export interface LayerOptions extends ControlOptions {
  /** Default: the device of `defaultDevice()`. */
  readonly device?: Device;
  /**
   * Keep the routed experts' bfloat16 weights in 12 bits each, without loss, where the device can (`properties.packsWeights`). For
   * gated experts whose routing weights apply to the output. Outputs have the bits of plain weights, unless tiles are of another height
   * for having less to read. But steps that are a single `decode`, of `properties.decodeTokens` tokens at most, sum up in another order.
   *
   * With `"beside"` weights are kept as they are, too: 28 bits each. Packed ones are read where products wait for weights: in steps with
   * few tokens and, of large experts, by those with few rows. Default: false.
   */
  readonly packWeights?: Packing;
  /** Graph cache: eager runs before a capture (default 1), graphs kept (default 16). */
  readonly graphs?: { readonly warmup?: number; readonly capacity?: number };
}

/** What one forward pass did. */
export interface ForwardStats {
  /** Counts up from 1. */
  readonly step: number;
  readonly tokens: number;
  /** How the step ran. */
  readonly mode: RunMode;
  /** Time from submission to completion on the device, in seconds. */
  readonly seconds: number;
  /** int32 [E]: tokens routed to each expert, dropped ones included. */
  readonly counts: Int32Array;
  /** Slots that had no room under the capacity factor; empty without one. */
  readonly dropped: readonly DroppedSlot[];
  /** Version of the plan the step ran under. */
  readonly planVersion: number;
  readonly streams: number;
  /** Energy since the last reading, if a whole window has passed; otherwise why there is none. */
  readonly energy: EnergyReading;
}

/** The routing of one forward pass. */
export interface Routing {
  /** int32 [T, k]: expert ids, best first. */
  readonly ids: Int32Array;
  /** float32 [T, k]. */
  readonly weights: Float32Array;
}

/** The output of a step and what it showed. */
export interface ForwardResult<Output = Tensor<Float32Array>> {
  /** [..., H], shaped like the input; [..., k * H] for a concatenation. In float32, or as the DeviceTensor that went in. */
  readonly output: Output;
  readonly stats: ForwardStats;
  /** Only if asked for. */
  readonly routing?: Routing;
}

/** Logits of your own, and whether the routing is wanted back. */
export interface ForwardOptions {
  /** Bring expert ids and weights back too. */
  readonly routing?: boolean;
  /**
   * float [T, E], or with the leading axes of the hidden states: router logits computed
   * elsewhere. The layer's own gate is skipped, its routing rule is not. A DeviceTensor is
   * routed where it is, in its own element type.
   */
  readonly logits?: TensorLike | DeviceTensor;
}

/** What a layer has done and what it holds. */
export interface LayerStatistics {
  readonly steps: number;
  readonly graphs: ReturnType<GraphManager["stats"]>;
  /** Device memory of all weights; of those kept both ways, both. */
  readonly weightBytes: number;
  /** Tokens the step buffers have room for now. */
  readonly tokenCapacity: number;
}
