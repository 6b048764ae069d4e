/**
 * Which device a program runs on when it does not care, and how it asks for one when
 * it does. A device's code is loaded when it is first asked for.
 */

import { shown } from "../errors/wording.ts";
import { DeviceUnavailableError, InvalidArgumentError } from "../errors.ts";
import { type Fields, requireFields } from "./checks.ts";
import { openCpuDevice } from "./cpu/device.ts";
import type { Device, DeviceKind } from "./device.ts";

/** Spelled out, so that the package's declarations need no file of a device's own. */
export interface OpenDeviceOptions {
  /** Default `"auto"`: a GPU if there is one that can be used, else the CPU. */
  readonly kind?: DeviceKind | "auto";
  /** CPU only, refused with `"cuda"`: worker threads. Default: as many as the process can run at once. */
  readonly threads?: number;
  /** CUDA only, refused with `"cpu"`: which of the visible GPUs. Default: the first. */
  readonly ordinal?: number;
  /**
   * CUDA only, of no effect on a CPU: how float32 rows are multiplied. `ieee`, the default: as
   * they are; `tf32`: cut to 10 bits of mantissa for the tensor cores, several times as fast.
   */
  readonly float32?: "ieee" | "tf32";
}

const OPTIONS: Fields<OpenDeviceOptions> = {
  kind: true,
  threads: true,
  ordinal: true,
  float32: true,
};

/**
 * Opens a device. Whoever opens it closes it. With `"auto"`, `threads` asks for the CPU
 * and `ordinal` for a GPU.
 *
 * @throws DeviceUnavailableError if there is no device of that kind
 * @throws InvalidArgumentError if an option makes no sense, or is for another kind of device
 */
export async function openDevice(options: OpenDeviceOptions = {}): Promise<Device> {
  requireFields(options, "options", "an object, or left out", OPTIONS);
  const { kind = "auto", float32 = "ieee" } = options;
  if (float32 !== "ieee" && float32 !== "tf32") {
    throw new InvalidArgumentError(`float32 is ${shown(float32)}. Use "ieee" or "tf32".`);
  }
  refuseUnused(kind, options);
  switch (kind) {
    case "auto":
      return options.threads === undefined ? openBest(options) : openCpu(options);
    case "cpu":
      return openCpu(options);
    case "cuda":
      return openCuda(options);
    default:
      throw new InvalidArgumentError(`Unknown device ${shown(kind)}. Use "auto", "cpu" or "cuda".`);
  }
}

/** With float32 it is another matter: it says how to multiply on a GPU if there is one. */
function refuseUnused(kind: DeviceKind | "auto", { threads, ordinal }: OpenDeviceOptions): void {
  if (threads !== undefined && ordinal !== undefined) {
    throw new InvalidArgumentError(
      `threads is ${shown(threads)} and ordinal is ${shown(ordinal)}; the one is for the CPU device, the other for a GPU. Leave one of them out.`,
    );
  }
  if (kind === "cuda" && threads !== undefined) {
    throw new InvalidArgumentError(
      `threads is ${shown(threads)}, but kind is "cuda" and threads are the CPU device's. Leave one of them out.`,
    );
  }
  if (kind === "cpu" && ordinal !== undefined) {
    throw new InvalidArgumentError(
      `ordinal is ${shown(ordinal)}, but kind is "cpu" and an ordinal is a GPU's. Leave one of them out.`,
    );
  }
}

async function openBest(options: OpenDeviceOptions): Promise<Device> {
  try {
    return await openCuda(options);
  } catch (error) {
    const settled = options.ordinal !== undefined;
    if (settled || !(error instanceof DeviceUnavailableError)) throw error;
    return openCpu(options);
  }
}

function openCpu({ threads }: OpenDeviceOptions): Promise<Device> {
  return openCpuDevice(threads === undefined ? {} : { threads });
}

/** Loaded only here: the driver's bindings and the kernels are of no use to anybody else. */
async function openCuda({ ordinal, float32 }: OpenDeviceOptions): Promise<Device> {
  const { openCudaDevice } = await import("./cuda/device.ts");
  return openCudaDevice({
    ...(ordinal !== undefined && { ordinal }),
    ...(float32 !== undefined && { float32 }),
  });
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
