/** What is measured where nobody says what, and whether it fits. */

import { OutOfDeviceMemoryError } from "../../errors.ts";
import type { Device, DeviceKind } from "../../execution/device.ts";
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

/** @throws OutOfDeviceMemoryError if the weights of a preset do not fit the device */
export function checkFits(device: Device, preset: Preset, dtype: DType): void {
  const { hiddenSize, intermediateSize, experts } = preset;
  const bytes = experts * 3 * hiddenSize * intermediateSize * BYTES_PER_ELEMENT[dtype];
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
