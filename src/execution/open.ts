/** Which device a program runs on when it does not care, and how it asks for one when it does. */

import { DeviceUnavailableError, InvalidArgumentError } from "../errors.ts";
import { type CpuDeviceOptions, openCpuDevice } from "./cpu/device.ts";
import type { Device, DeviceKind } from "./device.ts";

export interface OpenDeviceOptions extends CpuDeviceOptions {
  /** Default `"auto"`: the best device there is. */
  readonly kind?: DeviceKind | "auto";
}

/**
 * Opens a device. Whoever opens it closes it.
 *
 * @throws DeviceUnavailableError if there is no device of that kind
 * @throws InvalidArgumentError if an option makes no sense
 */
export async function openDevice(options: OpenDeviceOptions = {}): Promise<Device> {
  const { kind = "auto", ...cpuOptions } = options;
  switch (kind) {
    case "auto":
    case "cpu":
      return openCpuDevice(cpuOptions);
    case "cuda":
      throw new DeviceUnavailableError(
        'This build has no CUDA device. Use "cpu" or "auto": the CPU device does the same work.',
      );
    default:
      throw new InvalidArgumentError(
        `Unknown device "${String(kind)}". Use "auto", "cpu" or "cuda".`,
      );
  }
}

let shared: Promise<Device> | undefined;

/**
 * The device that everything shares which is not given one. Opened when first
 * asked for, and again if it was closed; it keeps no process alive.
 */
export async function defaultDevice(): Promise<Device> {
  const present = shared;
  const device = await present?.catch(() => undefined);
  if (device !== undefined && !device.closed) return device;
  // Whoever comes first opens it again; those who waited beside it take the new one.
  if (shared === present) shared = openDevice();
  return shared as Promise<Device>;
}
