/**
 * Where a layer's weights come from. The layer asks for one matrix at a time, so
 * a source may read them from disk, slice them out of packed tensors or make
 * them up; it never has to hold a whole layer in host memory.
 */

import type { Device, Projection } from "../execution/device.ts";
import type { MatrixView } from "../tensor.ts";

/** One matrix product of an expert: the [outputs, inputs] matrix (and gate), and the biases. */
export interface ProductWeights {
  readonly value: MatrixView;
  /** Only for the first product of a gated expert. */
  readonly gate?: MatrixView;
  readonly valueBias?: Float32Array;
  readonly gateBias?: Float32Array;
}

/** Gives a layer its weights. Every matrix view is [outputs, inputs], with any strides. */
export interface LayerWeights {
  /** [experts, hidden]. Left out: every step must be given its logits. */
  gate?(): Promise<MatrixView>;
  /** [experts]; only if there is a gate and the router has a bias. */
  gateBias?(): Promise<Float32Array>;
  /** [experts]; only if the router has a selection bias. */
  selectionBias?(): Promise<Float32Array>;
  /** The products of one routed expert, first to last (gated: two; mlp: `depth`). */
  expert(index: number): Promise<readonly ProductWeights[]>;
  /** Where it is there: writes the weights of all routed experts on the device, first product to last, and `expert` is not asked. */
  fillExperts?(device: Device, products: readonly Projection[]): Promise<void>;
  /** The products of the shared expert. */
  shared?(): Promise<readonly ProductWeights[]>;
  /** [1, hidden]; only if the shared expert has a gate. */
  sharedGate?(): Promise<MatrixView>;
}
