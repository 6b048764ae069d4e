/** Which device a program runs on when it does not care, and how it asks for one when it does. */

import { DeviceUnavailableError, InvalidArgumentError } from "../errors.ts";
import { requireObject } from "./checks.ts";
import { openCpuDevice } from "./cpu/device.ts";
import type { Device, DeviceKind } from "./device.ts";

/** Spelled out, so that the package's declarations need no file of a device's own. */
export interface OpenDeviceOptions {
  /** Default `"auto"`: the best device there is. */
  readonly kind?: DeviceKind | "auto";
  /** Worker threads of the CPU device. Default: as many as the process can run at once. */
  readonly threads?: number;
}

/**
 * Opens a device. Whoever opens it closes it.
 *
 * @throws DeviceUnavailableError if there is no device of that kind
 * @throws InvalidArgumentError if an option makes no sense
 */
export async function openDevice(options: OpenDeviceOptions = {}): Promise<Device> {
  requireObject(options, "options", "an object, or left out");
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
