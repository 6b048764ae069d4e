/** What a batch cannot do without: the arithmetic of its rows, and each weight that it needs read once. */

import { BYTES_PER_PACKED_WEIGHT, type Packing } from "../../execution/device.ts";
import { BYTES_PER_ELEMENT, type DType } from "../../tensor.ts";
import type { LayerShape } from "../../workload/presets.ts";
import type { MachineLimits } from "./machine-limits.ts";

export interface Work {
  /** Arithmetic of one call: products of the gate and of the experts. */
  readonly gflop: number;
  /** Bytes of weights one call needs, on average, as they are kept. */
  readonly weightBytes: number;
}

/**
 * A gated expert is three products of hidden x intermediate; the gate is one of hidden x experts.
 *
 * @param packed how the experts' weights are kept; of those kept both ways the packed ones count, the least that there is to read
 */
export function workOf(
  { hiddenSize, intermediateSize, experts, topK }: LayerShape,
  dtype: DType,
  tokens: number,
  expertsUsed: number,
  packed: Packing,
): Work {
  const expertWeights = 3 * hiddenSize * intermediateSize;
  const gateWeights = hiddenSize * experts;
  return {
    gflop: (2 * tokens * (topK * expertWeights + gateWeights)) / 1e9,
    weightBytes:
      expertsUsed * expertWeights * (packed ? BYTES_PER_PACKED_WEIGHT : BYTES_PER_ELEMENT[dtype]) +
      gateWeights * BYTES_PER_ELEMENT.float32,
  };
}

/** The shortest time that the machine's limits leave for some work, and which of them it is. */
export interface Floor {
  readonly seconds: number;
  readonly limit: "bandwidth" | "arithmetic";
}

export function floorOf(work: Work, limits: MachineLimits, dtype: DType): Floor {
  const arithmetic = work.gflop / (limits.gflops[dtype] as number);
  const bandwidth = work.weightBytes / limits.gigabytesPerSecond / 1e9;
  return arithmetic > bandwidth
    ? { seconds: arithmetic, limit: "arithmetic" }
    : { seconds: bandwidth, limit: "bandwidth" };
}
