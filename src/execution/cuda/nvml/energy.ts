/**
 * Energy of an NVIDIA GPU, from the counter that NVML calls total energy: the whole
 * board since the driver was loaded, whichever processes use it.
 *
 * Nothing is estimated. A GPU without the counter (before Volta) has no joules: its
 * power reading is an average over a time of NVML's own choosing, and sums of it
 * would look like a measurement without being one. A MIG instance has none either,
 * because the counter only knows the whole GPU.
 */

import { DeviceFailedError, DeviceUnavailableError } from "../../../errors.ts";
import type { EnergySource } from "../../device.ts";
import type { NvmlLibrary } from "./ffi.ts";
import type { GpuTelemetry, NvmlGpu } from "./gpu.ts";
import { NvmlSession } from "./session.ts";

/**
 * The counter moves every 100 ms (measured on an H200), so a window is off by up to
 * one update at either end: under 20 % of a second, and less in proportion after that.
 */
const MINIMUM_WINDOW_SECONDS = 1;

export interface NvmlEnergy extends Disposable {
  /** For a device's `energy`. Its readings reject with DisposedError after `close()`. */
  readonly source: EnergySource;
  /** Readings of the whole GPU at this moment. @throws DeviceUnavailableError (as a rejection) where there is no NVML */
  telemetry(): Promise<GpuTelemetry>;
  /** Can be called twice. */
  close(): void;
}

/**
 * Opens the energy counter of one GPU. Never fails: without a counter the source
 * says why there is none.
 *
 * @param uuid of the GPU or of a MIG instance, as the CUDA driver has it
 */
export async function openNvmlEnergy(uuid: string, library?: NvmlLibrary): Promise<NvmlEnergy> {
  let session: NvmlSession | undefined;
  try {
    session = await NvmlSession.open(library);
    const opened = session;
    const { gpu, isInstance } = await session.locate(uuid);
    return {
      source: await sourceOf(gpu, isInstance),
      telemetry: () => gpu.telemetry(),
      close: () => opened.close(),
      [Symbol.dispose]: () => opened.close(),
    };
  } catch (error) {
    session?.close();
    const reason = messageOf(error);
    return {
      source: { available: false, reason },
      telemetry: () => Promise.reject(new DeviceUnavailableError(reason, { cause: error })),
      close: () => undefined,
      [Symbol.dispose]: () => undefined,
    };
  }
}

async function sourceOf(gpu: NvmlGpu, isInstance: boolean): Promise<EnergySource> {
  if (isInstance) {
    return {
      available: false,
      reason: `The energy counter of ${gpu.name} covers the whole GPU and this is a MIG instance of it. Measure with MIG off.`,
    };
  }
  try {
    const counter = new EnergyCounter(gpu, await gpu.totalJoules());
    return {
      available: true,
      domain: `NVML total energy, GPU ${gpu.index} (${gpu.name})`,
      minimumWindowSeconds: MINIMUM_WINDOW_SECONDS,
      joules: () => counter.joules(),
      watts: () => gpu.watts(),
    };
  } catch (error) {
    return { available: false, reason: `${gpu.name} tells no joules: ${messageOf(error)}` };
  }
}

/** The counter, seen to that it never goes back. */
class EnergyCounter {
  readonly #gpu: NvmlGpu;
  #last: number;
  #lastReading: Promise<unknown> = Promise.resolve();

  constructor(gpu: NvmlGpu, start: number) {
    this.#gpu = gpu;
    this.#last = start;
  }

  /** One reading at a time: if two could overtake each other, the older would look like a counter that went back. */
  joules(): Promise<number> {
    const reading = this.#lastReading.then(() => this.#read());
    this.#lastReading = reading.catch(() => undefined);
    return reading;
  }

  async #read(): Promise<number> {
    const joules = await this.#gpu.totalJoules();
    if (joules < this.#last) {
      const before = this.#last;
      this.#last = joules;
      throw new DeviceFailedError(
        `The energy counter of ${this.#gpu.name} went back from ${before} J to ${joules} J: the GPU was reset. Open the device again.`,
      );
    }
    this.#last = joules;
    return joules;
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
