/**
 * NVML as C has it: the entry points that Nexus calls, their arguments, and
 * nothing else. No code is looked at here and no value is given a unit.
 *
 * Every call runs on a thread of libuv's pool. Most take a microsecond, but the
 * energy counter takes milliseconds and the first call of a process tens of them,
 * and NVML needs neither the main thread nor a CUDA context; so nobody has to
 * know which is which. A call costs about a tenth of a millisecond that way.
 *
 * Handles (`nvmlDevice_t`) are pointers that only NVML looks behind. Results come
 * back in typed arrays, which the call itself keeps alive. Those for structs are as
 * large as structs.ts says.
 *
 * An interface, so that all above it can be tested with an NVML made of JavaScript.
 */

import { DeviceFailedError, DeviceUnavailableError } from "../../../errors.ts";
import {
  type NativeFunction,
  type NativeLibrary,
  type NativeType,
  openLibrary,
} from "../../native/library.ts";

/** The dynamic linker's name for it, the one of systems without the versioned link, and where WSL keeps it. */
const LIBRARY_PATHS = [
  "libnvidia-ml.so.1",
  "libnvidia-ml.so",
  "/usr/lib/wsl/lib/libnvidia-ml.so.1",
];

/** `nvmlClockType_t` */
export const CLOCK_SM = 1;
export const CLOCK_MEMORY = 2;
/** `nvmlTemperatureSensors_t` */
export const SENSOR_GPU = 0;

/** Entry points with their arguments; all return an `nvmlReturn_t`. */
export interface NvmlCalls {
  nvmlInit_v2: [];
  nvmlShutdown: [];
  nvmlSystemGetDriverVersion: [text: Uint8Array, bytes: number];
  nvmlSystemGetNVMLVersion: [text: Uint8Array, bytes: number];
  nvmlDeviceGetCount_v2: [count: Uint32Array];
  nvmlDeviceGetHandleByIndex_v2: [index: number, device: BigUint64Array];
  /** Takes the UUID of a GPU or of a MIG instance. */
  nvmlDeviceGetHandleByUUID: [uuid: string, device: BigUint64Array];
  nvmlDeviceGetIndex: [device: bigint, index: Uint32Array];
  nvmlDeviceGetName: [device: bigint, text: Uint8Array, bytes: number];
  nvmlDeviceGetUUID: [device: bigint, text: Uint8Array, bytes: number];
  nvmlDeviceGetPowerUsage: [device: bigint, milliwatts: Uint32Array];
  nvmlDeviceGetEnforcedPowerLimit: [device: bigint, milliwatts: Uint32Array];
  nvmlDeviceGetTotalEnergyConsumption: [device: bigint, millijoules: BigUint64Array];
  nvmlDeviceGetTemperature: [device: bigint, sensor: number, celsius: Uint32Array];
  nvmlDeviceGetClockInfo: [device: bigint, clock: number, megahertz: Uint32Array];
  nvmlDeviceGetMemoryInfo: [device: bigint, memory: Uint8Array];
  nvmlDeviceGetUtilizationRates: [device: bigint, percent: Uint8Array];
  nvmlDeviceGetMigMode: [device: bigint, current: Uint32Array, pending: Uint32Array];
  nvmlDeviceGetMaxMigDeviceCount: [device: bigint, count: Uint32Array];
  nvmlDeviceGetMigDeviceHandleByIndex: [device: bigint, index: number, instance: BigUint64Array];
  nvmlDeviceGetDeviceHandleFromMigDeviceHandle: [instance: bigint, device: BigUint64Array];
  nvmlDeviceGetGpuInstanceId: [instance: bigint, id: Uint32Array];
  nvmlDeviceGetComputeInstanceId: [instance: bigint, id: Uint32Array];
  nvmlDeviceGetAttributes_v2: [instance: bigint, attributes: Uint8Array];
}

export type NvmlCall = keyof NvmlCalls;

/** Their types in C. */
const PARAMETERS = {
  nvmlInit_v2: [],
  nvmlShutdown: [],
  nvmlSystemGetDriverVersion: ["void *", "uint32_t"],
  nvmlSystemGetNVMLVersion: ["void *", "uint32_t"],
  nvmlDeviceGetCount_v2: ["void *"],
  nvmlDeviceGetHandleByIndex_v2: ["uint32_t", "void *"],
  nvmlDeviceGetHandleByUUID: ["str", "void *"],
  nvmlDeviceGetIndex: ["void *", "void *"],
  nvmlDeviceGetName: ["void *", "void *", "uint32_t"],
  nvmlDeviceGetUUID: ["void *", "void *", "uint32_t"],
  nvmlDeviceGetPowerUsage: ["void *", "void *"],
  nvmlDeviceGetEnforcedPowerLimit: ["void *", "void *"],
  nvmlDeviceGetTotalEnergyConsumption: ["void *", "void *"],
  nvmlDeviceGetTemperature: ["void *", "uint32_t", "void *"],
  nvmlDeviceGetClockInfo: ["void *", "uint32_t", "void *"],
  nvmlDeviceGetMemoryInfo: ["void *", "void *"],
  nvmlDeviceGetUtilizationRates: ["void *", "void *"],
  nvmlDeviceGetMigMode: ["void *", "void *", "void *"],
  nvmlDeviceGetMaxMigDeviceCount: ["void *", "void *"],
  nvmlDeviceGetMigDeviceHandleByIndex: ["void *", "uint32_t", "void *"],
  nvmlDeviceGetDeviceHandleFromMigDeviceHandle: ["void *", "void *"],
  nvmlDeviceGetGpuInstanceId: ["void *", "void *"],
  nvmlDeviceGetComputeInstanceId: ["void *", "void *"],
  nvmlDeviceGetAttributes_v2: ["void *", "void *"],
} as const satisfies Record<NvmlCall, readonly NativeType[]>;

/** `NVML_ERROR_FUNCTION_NOT_FOUND`: what NVML itself answers where a driver is too old. */
export const FUNCTION_NOT_FOUND = 13;

export interface NvmlLibrary {
  /**
   * Calls an entry point off the main thread.
   *
   * @returns its code; `FUNCTION_NOT_FOUND` if this library has no such entry point
   * @throws DeviceFailedError (as a rejection) if it cannot be called at all
   */
  call<Name extends NvmlCall>(name: Name, ...args: NvmlCalls[Name]): Promise<number>;
}

/**
 * The NVML of this machine.
 *
 * @param paths where it may be
 * @throws DeviceUnavailableError if there is none
 */
export function loadNvml(paths: readonly string[] = LIBRARY_PATHS): NvmlLibrary {
  const opened = openLibrary("NVML", paths);
  if ("reason" in opened) {
    throw new DeviceUnavailableError(
      `No NVML: ${opened.reason}. It comes with NVIDIA's driver; for a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility.`,
    );
  }
  return nvmlIn(opened.library);
}

/** The NVML in a library. */
export function nvmlIn(library: NativeLibrary): NvmlLibrary {
  return new KoffiNvml(library);
}

type AnyFunction = NativeFunction<readonly NativeType[]>;

class KoffiNvml implements NvmlLibrary {
  readonly #library: NativeLibrary;
  /** Bound at their first call; null for those the library does not have. */
  readonly #functions = new Map<NvmlCall, AnyFunction | null>();
  /** Arguments of calls under way, so that their memory is not collected meanwhile. */
  readonly #underWay = new Set<unknown>();

  constructor(library: NativeLibrary) {
    this.#library = library;
  }

  async call<Name extends NvmlCall>(name: Name, ...args: NvmlCalls[Name]): Promise<number> {
    this.#underWay.add(args);
    try {
      const fn = this.#find(name);
      return fn === null ? FUNCTION_NOT_FOUND : await statusOf(fn, args);
    } catch (cause) {
      const message = cause instanceof Error ? cause.message : String(cause);
      throw new DeviceFailedError(
        `${name} could not be called: ${message.replace(/\.$/, "")}. Compare with what nexus doctor says of NVML and native calls; if it finds nothing, please report this.`,
        { cause },
      );
    } finally {
      this.#underWay.delete(args);
    }
  }

  #find(name: NvmlCall): AnyFunction | null {
    let fn = this.#functions.get(name);
    if (fn === undefined) {
      fn = this.#library.find(name, PARAMETERS[name] as readonly NativeType[]);
      this.#functions.set(name, fn);
    }
    return fn;
  }
}

function statusOf(fn: AnyFunction, args: NvmlCalls[NvmlCall]): Promise<number> {
  return new Promise((resolve, reject) => {
    fn.async(...args, (error, status) => {
      if (error === null) resolve(status);
      else reject(error);
    });
  });
}
