/** An NVML made of JavaScript: GPUs with readings that a test sets, codes it asks for, and a note of every call. */

import type { NvmlCall, NvmlCalls, NvmlLibrary } from "../../../../src/execution/cuda/nvml/ffi.ts";

import {
  DEVICE_ATTRIBUTES,
  MEMORY,
  UTILIZATION,
} from "../../../../src/execution/cuda/nvml/structs.ts";

export const CODE = {
  UNINITIALIZED: 1,
  INVALID_ARGUMENT: 2,
  NOT_SUPPORTED: 3,
  NO_PERMISSION: 4,
  NOT_FOUND: 6,
  DRIVER_NOT_LOADED: 9,
  FUNCTION_NOT_FOUND: 13,
  GPU_IS_LOST: 15,
} as const;

export interface FakeInstance {
  readonly uuid: string;
  readonly name: string;
  readonly gpuInstance: number;
  readonly computeInstance: number;
  readonly multiprocessors: number;
  readonly memoryMebibytes: number;
}

export interface FakeGpu {
  readonly uuid: string;
  readonly name: string;
  millijoules: bigint;
  milliwatts: number;
  mig?: { current: boolean; pending: boolean; places: (FakeInstance | null)[] };
}

export function h200(index = 0): FakeGpu {
  return {
    uuid: `GPU-00000000-0000-0000-0000-00000000000${index}`,
    name: "NVIDIA H200",
    millijoules: 5_000_000_000_123n,
    milliwatts: 75_500,
    mig: { current: false, pending: false, places: [null, null] },
  };
}

export const smallInstance: FakeInstance = {
  uuid: "MIG-11111111-2222-3333-4444-555555555555",
  name: "NVIDIA H200 MIG 1g.18gb",
  gpuInstance: 7,
  computeInstance: 0,
  multiprocessors: 16,
  memoryMebibytes: 16_384,
};

/** One of several compute instances of its GPU instance. */
export const largeInstance: FakeInstance = {
  ...smallInstance,
  uuid: "MIG-large",
  name: "NVIDIA H200 MIG 1c.3g.71gb",
  gpuInstance: 2,
  computeInstance: 1,
  multiprocessors: 60,
};

const GPU_HANDLE = 1000n;
const INSTANCE_HANDLE = 2000n;

export class FakeNvml implements NvmlLibrary {
  readonly gpus: FakeGpu[];
  /** Codes that calls return instead of doing anything. */
  readonly failing = new Map<NvmlCall, number>();
  readonly calls: NvmlCall[] = [];
  /** inits less shutdowns. */
  sessions = 0;
  /** Awaited by every call but these before it looks at anything. */
  gate: Promise<void> | undefined;

  constructor(...gpus: FakeGpu[]) {
    this.gpus = gpus;
  }

  async call<Name extends NvmlCall>(name: Name, ...args: NvmlCalls[Name]): Promise<number> {
    this.calls.push(name);
    await this.gate;
    const failing = this.failing.get(name);
    if (failing !== undefined) return failing;
    if (name !== "nvmlInit_v2" && this.sessions === 0) return CODE.UNINITIALIZED;
    const handler = this.#handlers[name] as (...args: NvmlCalls[Name]) => number | undefined;
    return handler(...args) ?? 0;
  }

  count(name: NvmlCall): number {
    return this.calls.filter((call) => call === name).length;
  }

  #gpu(handle: bigint): FakeGpu {
    const gpu = this.gpus[Number(handle - GPU_HANDLE)];
    if (gpu === undefined) throw new Error(`handle ${handle} is no GPU's`);
    return gpu;
  }

  #instance(handle: bigint): FakeInstance {
    const at = Number(handle - INSTANCE_HANDLE);
    const instance = this.gpus[Math.floor(at / 10)]?.mig?.places[at % 10];
    if (!instance) throw new Error(`handle ${handle} is no instance's`);
    return instance;
  }

  #either(handle: bigint): FakeGpu | FakeInstance {
    return handle >= INSTANCE_HANDLE ? this.#instance(handle) : this.#gpu(handle);
  }

  readonly #handlers: { [Name in NvmlCall]: (...args: NvmlCalls[Name]) => number | undefined } = {
    nvmlInit_v2: () => {
      this.sessions++;
      return 0;
    },
    nvmlShutdown: () => {
      this.sessions--;
      return 0;
    },
    nvmlSystemGetDriverVersion: (text) => write(text, "580.95.05"),
    nvmlSystemGetNVMLVersion: (text) => write(text, "13.580.95.05"),
    nvmlDeviceGetCount_v2: (count) => put(count, this.gpus.length),
    nvmlDeviceGetHandleByIndex_v2: (index, device) => put(device, GPU_HANDLE + BigInt(index)),
    nvmlDeviceGetHandleByUUID: (uuid, device) => {
      for (const [g, gpu] of this.gpus.entries()) {
        if (gpu.uuid === uuid) return put(device, GPU_HANDLE + BigInt(g));
        const place = gpu.mig?.places.findIndex((each) => each?.uuid === uuid) ?? -1;
        if (place >= 0) return put(device, INSTANCE_HANDLE + BigInt(g * 10 + place));
      }
      return CODE.NOT_FOUND;
    },
    nvmlDeviceGetIndex: (device, index) => put(index, Number(device - GPU_HANDLE)),
    nvmlDeviceGetName: (device, text) => write(text, this.#either(device).name),
    nvmlDeviceGetUUID: (device, text) => write(text, this.#either(device).uuid),
    nvmlDeviceGetPowerUsage: (device, out) => put(out, this.#gpu(device).milliwatts),
    nvmlDeviceGetEnforcedPowerLimit: (_, out) => put(out, 700_000),
    nvmlDeviceGetTotalEnergyConsumption: (device, out) => put(out, this.#gpu(device).millijoules),
    nvmlDeviceGetTemperature: (_, sensor, out) => put(out, sensor === 0 ? 31 : 99),
    nvmlDeviceGetClockInfo: (_, clock, out) => put(out, clock === 1 ? 1980 : 3201),
    nvmlDeviceGetMemoryInfo: (_, out) => {
      const view = new DataView(out.buffer);
      view.setBigUint64(MEMORY.total, 150_000_000_000n, true);
      view.setBigUint64(MEMORY.used, 1_000_000_000n, true);
      return 0;
    },
    nvmlDeviceGetUtilizationRates: (_, out) => {
      const view = new DataView(out.buffer);
      view.setUint32(UTILIZATION.gpu, 98, true);
      view.setUint32(UTILIZATION.memory, 61, true);
      return 0;
    },
    nvmlDeviceGetMigMode: (device, current, pending) => {
      const { mig } = this.#gpu(device);
      if (mig === undefined) return CODE.NOT_SUPPORTED;
      put(current, Number(mig.current));
      return put(pending, Number(mig.pending));
    },
    nvmlDeviceGetMaxMigDeviceCount: (device, out) =>
      put(out, this.#gpu(device).mig?.places.length ?? 0),
    nvmlDeviceGetMigDeviceHandleByIndex: (device, place, out) => {
      if (!this.#gpu(device).mig?.places[place]) return CODE.NOT_FOUND;
      return put(out, INSTANCE_HANDLE + (device - GPU_HANDLE) * 10n + BigInt(place));
    },
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle: (instance, out) =>
      put(out, GPU_HANDLE + (instance - INSTANCE_HANDLE) / 10n),
    nvmlDeviceGetGpuInstanceId: (instance, out) => put(out, this.#instance(instance).gpuInstance),
    nvmlDeviceGetComputeInstanceId: (instance, out) =>
      put(out, this.#instance(instance).computeInstance),
    nvmlDeviceGetAttributes_v2: (instance, out) => {
      const { multiprocessors, memoryMebibytes } = this.#instance(instance);
      const view = new DataView(out.buffer);
      view.setUint32(DEVICE_ATTRIBUTES.multiprocessors, multiprocessors, true);
      view.setUint32(DEVICE_ATTRIBUTES.gpuSlices, 1, true);
      view.setUint32(DEVICE_ATTRIBUTES.computeSlices, 1, true);
      view.setBigUint64(DEVICE_ATTRIBUTES.memoryMebibytes, BigInt(memoryMebibytes), true);
      return 0;
    },
  };
}

function put<T extends number | bigint>(
  out: T extends bigint ? BigUint64Array : Uint32Array,
  value: T,
): number {
  (out as { [index: number]: number | bigint })[0] = value;
  return 0;
}

function write(out: Uint8Array, text: string): number {
  out.set(Buffer.from(`${text}\0`));
  return 0;
}
