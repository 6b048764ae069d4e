/** One GPU as NVML sees it: who it is, and what it reads right now. */

import type { Nvml } from "./checked.ts";
import { orNull } from "./errors.ts";
import type { NvmlSession } from "./session.ts";

/** Readings of one moment; null where this GPU, driver or user cannot have one. */
export interface GpuTelemetry {
  readonly watts: number | null;
  /** Power at which the GPU lowers its clocks. */
  readonly limitWatts: number | null;
  /** Since the driver was loaded; moves every 100 ms or so. */
  readonly joules: number | null;
  readonly celsius: number | null;
  readonly smMegahertz: number | null;
  readonly memoryMegahertz: number | null;
  /** Percent of the last sampling period (up to a second) in which some kernel ran. */
  readonly kernelPercent: number | null;
  /** Percent of that period in which device memory was read or written. */
  readonly memoryPercent: number | null;
  /** Of all processes. */
  readonly memoryUsedBytes: number | null;
  readonly memoryTotalBytes: number | null;
}

export class NvmlGpu {
  /** As nvidia-smi numbers it, which need not be CUDA's number. */
  readonly index: number;
  /** E.g. `"NVIDIA H200"`. */
  readonly name: string;
  /** `GPU-...` */
  readonly uuid: string;
  readonly #session: NvmlSession;
  readonly #device: bigint;

  private constructor(
    session: NvmlSession,
    device: bigint,
    identity: { readonly index: number; readonly name: string; readonly uuid: string },
  ) {
    this.#session = session;
    this.#device = device;
    this.index = identity.index;
    this.name = identity.name;
    this.uuid = identity.uuid;
  }

  static async of(session: NvmlSession, nvml: Nvml, device: bigint): Promise<NvmlGpu> {
    const index = await nvml.index(device);
    const name = await nvml.name(device);
    return new NvmlGpu(session, device, { index, name, uuid: await nvml.uuid(device) });
  }

  /** Makes calls with this GPU's handle. */
  use<T>(calls: (nvml: Nvml, device: bigint) => Promise<T>): Promise<T> {
    return this.#session.use((nvml) => calls(nvml, this.#device));
  }

  /**
   * What the GPU has used since the driver was loaded. Takes some milliseconds on another thread.
   *
   * @throws NvmlError (as a rejection), for instance if the GPU has no such counter (before Volta)
   */
  totalJoules(): Promise<number> {
    return this.use(async (nvml, device) => (await nvml.totalEnergyMillijoules(device)) / 1e3);
  }

  /** What the GPU draws, averaged over a time of NVML's own choosing. @throws NvmlError (as a rejection) */
  watts(): Promise<number> {
    return this.use(async (nvml, device) => (await nvml.powerMilliwatts(device)) / 1e3);
  }

  /** One reading after the other, so that it never takes more than one of libuv's few threads. */
  telemetry(): Promise<GpuTelemetry> {
    return this.use(async (nvml, device) => {
      const milliwatts = await orNull(nvml.powerMilliwatts(device));
      const limitMilliwatts = await orNull(nvml.powerLimitMilliwatts(device));
      const millijoules = await orNull(nvml.totalEnergyMillijoules(device));
      const celsius = await orNull(nvml.temperatureCelsius(device));
      const smMegahertz = await orNull(nvml.clockMegahertz(device, "sm"));
      const memoryMegahertz = await orNull(nvml.clockMegahertz(device, "memory"));
      const utilisation = await orNull(nvml.utilisation(device));
      const memory = await orNull(nvml.memory(device));
      return {
        watts: milliwatts === null ? null : milliwatts / 1e3,
        limitWatts: limitMilliwatts === null ? null : limitMilliwatts / 1e3,
        joules: millijoules === null ? null : millijoules / 1e3,
        celsius,
        smMegahertz,
        memoryMegahertz,
        kernelPercent: utilisation?.kernelPercent ?? null,
        memoryPercent: utilisation?.memoryPercent ?? null,
        memoryUsedBytes: memory?.usedBytes ?? null,
        memoryTotalBytes: memory?.totalBytes ?? null,
      };
    });
  }
}
