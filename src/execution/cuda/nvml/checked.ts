/**
 * NVML with every return code checked and every result a value: what fails throws
 * `NvmlError`. Values are in NVML's own units, which the names say; devices are
 * handles still. Holds nothing: who may call when is session.ts's business.
 */

import { NvmlError } from "./errors.ts";
import {
  CLOCK_MEMORY,
  CLOCK_SM,
  type NvmlCall,
  type NvmlCalls,
  type NvmlLibrary,
  SENSOR_GPU,
} from "./ffi.ts";
import { DEVICE_ATTRIBUTES, MEMORY, UTILIZATION } from "./structs.ts";

/** Longest of nvml.h's text buffers: names and UUIDs have 96 bytes, versions 80. */
const TEXT_BYTES = 96;

/** Calls that say one number of a device in a 32-bit word. */
type WordCall =
  | "nvmlDeviceGetIndex"
  | "nvmlDeviceGetPowerUsage"
  | "nvmlDeviceGetEnforcedPowerLimit"
  | "nvmlDeviceGetMaxMigDeviceCount"
  | "nvmlDeviceGetGpuInstanceId"
  | "nvmlDeviceGetComputeInstanceId";

/** Calls that fill a structure in for a device. */
type StructCall =
  | "nvmlDeviceGetMemoryInfo"
  | "nvmlDeviceGetUtilizationRates"
  | "nvmlDeviceGetAttributes_v2";

/** An empty place, and an instance that a container was not given. */
const NO_INSTANCE = ["NVML_ERROR_NOT_FOUND", "NVML_ERROR_NO_PERMISSION"];

/** Of a MIG instance. */
export interface InstanceAttributes {
  readonly multiprocessors: number;
  readonly gpuSlices: number;
  readonly computeSlices: number;
  readonly memoryMebibytes: number;
}

export class Nvml {
  readonly #library: NvmlLibrary;

  constructor(library: NvmlLibrary) {
    this.#library = library;
  }

  /** NVML counts: as many `shutdown`s undo as many `init`s. */
  init(): Promise<void> {
    return this.#call("nvmlInit_v2");
  }

  shutdown(): Promise<void> {
    return this.#call("nvmlShutdown");
  }

  /** E.g. `"580.95.05"`. */
  driverVersion(): Promise<string> {
    return textOf((text) => this.#call("nvmlSystemGetDriverVersion", text, TEXT_BYTES));
  }

  /** E.g. `"13.580.95.05"`. */
  nvmlVersion(): Promise<string> {
    return textOf((text) => this.#call("nvmlSystemGetNVMLVersion", text, TEXT_BYTES));
  }

  /** GPUs that this process may see; `CUDA_VISIBLE_DEVICES` means nothing here. */
  async deviceCount(): Promise<number> {
    const count = new Uint32Array(1);
    await this.#call("nvmlDeviceGetCount_v2", count);
    return count[0] as number;
  }

  async deviceByIndex(index: number): Promise<bigint> {
    const device = new BigUint64Array(1);
    await this.#call("nvmlDeviceGetHandleByIndex_v2", index, device);
    return device[0] as bigint;
  }

  /** @param uuid as nvidia-smi prints it, `GPU-...` or `MIG-...` */
  async deviceByUuid(uuid: string): Promise<bigint> {
    const device = new BigUint64Array(1);
    await this.#call("nvmlDeviceGetHandleByUUID", uuid, device);
    return device[0] as bigint;
  }

  index(device: bigint): Promise<number> {
    return this.#word("nvmlDeviceGetIndex", device);
  }

  name(device: bigint): Promise<string> {
    return textOf((text) => this.#call("nvmlDeviceGetName", device, text, TEXT_BYTES));
  }

  uuid(device: bigint): Promise<string> {
    return textOf((text) => this.#call("nvmlDeviceGetUUID", device, text, TEXT_BYTES));
  }

  powerMilliwatts(device: bigint): Promise<number> {
    return this.#word("nvmlDeviceGetPowerUsage", device);
  }

  powerLimitMilliwatts(device: bigint): Promise<number> {
    return this.#word("nvmlDeviceGetEnforcedPowerLimit", device);
  }

  /** Since the driver was loaded. */
  async totalEnergyMillijoules(device: bigint): Promise<number> {
    const millijoules = new BigUint64Array(1);
    await this.#call("nvmlDeviceGetTotalEnergyConsumption", device, millijoules);
    return Number(millijoules[0]);
  }

  async temperatureCelsius(device: bigint): Promise<number> {
    const celsius = new Uint32Array(1);
    await this.#call("nvmlDeviceGetTemperature", device, SENSOR_GPU, celsius);
    return celsius[0] as number;
  }

  async clockMegahertz(device: bigint, clock: "sm" | "memory"): Promise<number> {
    const megahertz = new Uint32Array(1);
    const domain = clock === "sm" ? CLOCK_SM : CLOCK_MEMORY;
    await this.#call("nvmlDeviceGetClockInfo", device, domain, megahertz);
    return megahertz[0] as number;
  }

  async memory(device: bigint): Promise<{ totalBytes: number; usedBytes: number }> {
    const memory = await this.#struct("nvmlDeviceGetMemoryInfo", device, MEMORY);
    return {
      totalBytes: Number(memory.getBigUint64(MEMORY.total, true)),
      usedBytes: Number(memory.getBigUint64(MEMORY.used, true)),
    };
  }

  /** Percent of the last sampling period in which a kernel ran, and in which memory was accessed. */
  async utilisation(device: bigint): Promise<{ kernelPercent: number; memoryPercent: number }> {
    const rates = await this.#struct("nvmlDeviceGetUtilizationRates", device, UTILIZATION);
    return {
      kernelPercent: rates.getUint32(UTILIZATION.gpu, true),
      memoryPercent: rates.getUint32(UTILIZATION.memory, true),
    };
  }

  /** Whether the GPU is divided now, and will be after its next reset. */
  async migMode(device: bigint): Promise<{ current: boolean; pending: boolean }> {
    const current = new Uint32Array(1);
    const pending = new Uint32Array(1);
    await this.#call("nvmlDeviceGetMigMode", device, current, pending);
    return { current: current[0] === 1, pending: pending[0] === 1 };
  }

  /** Places for MIG instances, used or not. */
  migPlaces(device: bigint): Promise<number> {
    return this.#word("nvmlDeviceGetMaxMigDeviceCount", device);
  }

  /** The instance at a place, or null if there is none, or none for this user. */
  async migInstance(device: bigint, place: number): Promise<bigint | null> {
    const instance = new BigUint64Array(1);
    try {
      await this.#call("nvmlDeviceGetMigDeviceHandleByIndex", device, place, instance);
    } catch (error) {
      if (error instanceof NvmlError && NO_INSTANCE.includes(error.nvmlCode)) return null;
      throw error;
    }
    return instance[0] as bigint;
  }

  /** The GPU that a MIG instance is part of. */
  async gpuOfInstance(instance: bigint): Promise<bigint> {
    const device = new BigUint64Array(1);
    await this.#call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance, device);
    return device[0] as bigint;
  }

  gpuInstanceId(instance: bigint): Promise<number> {
    return this.#word("nvmlDeviceGetGpuInstanceId", instance);
  }

  computeInstanceId(instance: bigint): Promise<number> {
    return this.#word("nvmlDeviceGetComputeInstanceId", instance);
  }

  async attributes(instance: bigint): Promise<InstanceAttributes> {
    const fields = DEVICE_ATTRIBUTES;
    const attributes = await this.#struct("nvmlDeviceGetAttributes_v2", instance, fields);
    return {
      multiprocessors: attributes.getUint32(fields.multiprocessors, true),
      gpuSlices: attributes.getUint32(fields.gpuSlices, true),
      computeSlices: attributes.getUint32(fields.computeSlices, true),
      memoryMebibytes: Number(attributes.getBigUint64(fields.memoryMebibytes, true)),
    };
  }

  async #word(name: WordCall, device: bigint): Promise<number> {
    const word = new Uint32Array(1);
    await this.#call(name, device, word);
    return word[0] as number;
  }

  /** In NVML's byte order, the host's: every host that CUDA runs on is little-endian. */
  async #struct(
    name: StructCall,
    device: bigint,
    { size }: { readonly size: number },
  ): Promise<DataView> {
    const bytes = new Uint8Array(size);
    await this.#call(name, device, bytes);
    return new DataView(bytes.buffer);
  }

  async #call<Name extends NvmlCall>(name: Name, ...args: NvmlCalls[Name]): Promise<void> {
    const code = await this.#library.call(name, ...args);
    if (code !== 0) throw new NvmlError(name, code);
  }
}

/** What a call writes into a text buffer, up to the zero byte. */
async function textOf(call: (text: Uint8Array) => Promise<void>): Promise<string> {
  const text = new Uint8Array(TEXT_BYTES);
  await call(text);
  const end = text.indexOf(0);
  return Buffer.from(text.subarray(0, end === -1 ? TEXT_BYTES : end)).toString();
}
