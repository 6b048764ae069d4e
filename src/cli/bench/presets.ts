/** What is measured where nobody says what, and whether it fits. */

import { InvalidArgumentError, OutOfDeviceMemoryError } from "../../errors.ts";
import {
  BYTES_PER_PACKED_WEIGHT,
  type Device,
  type DeviceKind,
  type Packing,
} from "../../execution/device.ts";
import { BYTES_PER_ELEMENT, type DType } from "../../tensor.ts";
import { parseSkew, type RoutingSkew } from "../../workload/popularity.ts";
import { type Preset, presetOf } from "../../workload/presets.ts";
import { formatBytes } from "../terminal/format.ts";

/** Some seconds' work on two cores; models that a GPU is bought for. */
export const DEFAULT_PRESETS: Readonly<Record<DeviceKind, readonly Preset[]>> = {
  cpu: [presetOf("small"), presetOf("medium")],
  cuda: [presetOf("qwen3-30b-a3b"), presetOf("mixtral-8x7b")],
};

/** Decode, a small batch, a prefill. */
export const DEFAULT_TOKENS: Readonly<Record<DeviceKind, readonly number[]>> = {
  cpu: [1, 16, 256],
  cuda: [1, 64, 1024],
};

export const DEFAULT_ROUTING: readonly RoutingSkew[] = ["uniform", "zipf:1.0"].map(parseSkew);

/**
 * @param packed how the weights are to be kept
 * @throws OutOfDeviceMemoryError if the weights of a preset do not fit the device
 * @throws InvalidArgumentError if they are to be packed and not bfloat16
 */
export function checkFits(device: Device, preset: Preset, dtype: DType, packed: Packing): void {
  if (packed && dtype !== "bfloat16") {
    throw new InvalidArgumentError(
      `--pack-weights is for bfloat16, and the weights of preset ${preset.name} are ${dtype}. Add --dtype bfloat16, or drop --pack-weights.`,
    );
  }
  const { hiddenSize, intermediateSize, experts } = preset;
  const plain = BYTES_PER_ELEMENT[dtype];
  // While packed weights are made, at least those of gates and values lie beside them as they are.
  const unpacked = packed === true ? 2 : 3;
  const ofExpert = (packed ? 3 * BYTES_PER_PACKED_WEIGHT : 0) + unpacked * plain;
  const bytes = experts * ofExpert * hiddenSize * intermediateSize;
  const { limitBytes, usedBytes } = device.memory();
  const available = limitBytes - usedBytes;
  if (bytes <= available) return;
  throw new OutOfDeviceMemoryError(
    `the ${dtype} weights of preset ${preset.name} (${formatBytes(bytes)})`,
    bytes,
    available,
    dtype === "float32" ? "Try --dtype bfloat16." : "Choose a smaller preset.",
  );
}
