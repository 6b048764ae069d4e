/**
 * A stay inside NVML: from `nvmlInit_v2` to `nvmlShutdown`.
 *
 * NVML counts those itself, so any number of sessions can be open at once and know
 * nothing of each other. A session counts in turn the calls that are under way on
 * other threads: closing it stops new ones at once, and shuts down when the last
 * one is back, so that none is left in a library that is gone.
 */

import { DisposedError } from "../../../errors.ts";
import { Nvml } from "./checked.ts";
import { NvmlError } from "./errors.ts";
import { loadNvml, type NvmlLibrary } from "./ffi.ts";
import { NvmlGpu } from "./gpu.ts";

export class NvmlSession implements Disposable {
  readonly #nvml: Nvml;
  #underWay = 0;
  #closed = false;

  private constructor(nvml: Nvml) {
    this.#nvml = nvml;
  }

  /**
   * @throws DeviceUnavailableError if there is no NVML on this machine
   * @throws NvmlError if it does not come up, for want of a driver for instance
   */
  static async open(library: NvmlLibrary = loadNvml()): Promise<NvmlSession> {
    const nvml = new Nvml(library);
    await nvml.init();
    return new NvmlSession(nvml);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Makes calls, during which NVML stays up.
   *
   * @throws DisposedError (as a rejection) once the session is closed
   */
  async use<T>(calls: (nvml: Nvml) => Promise<T>): Promise<T> {
    if (this.#closed) throw new DisposedError("The NVML session");
    this.#underWay++;
    try {
      return await calls(this.#nvml);
    } finally {
      this.#underWay--;
      this.#shutDownIfIdle();
    }
  }

  /** All GPUs that this process may see, in nvidia-smi's order. */
  gpus(): Promise<NvmlGpu[]> {
    return this.use(async (nvml) => {
      const gpus: NvmlGpu[] = [];
      const count = await nvml.deviceCount();
      for (let index = 0; index < count; index++) {
        gpus.push(await NvmlGpu.of(this, nvml, await nvml.deviceByIndex(index)));
      }
      return gpus;
    });
  }

  /**
   * The GPU that a CUDA device is, or is a MIG instance of.
   *
   * @param uuid with `GPU-` or `MIG-` in front, which need not be the right one: CUDA has the same call for both
   * @throws NvmlError (as a rejection) if NVML does not know it
   */
  locate(uuid: string): Promise<{ readonly gpu: NvmlGpu; readonly isInstance: boolean }> {
    return this.use(async (nvml) => {
      const bare = uuid.replace(/^(GPU|MIG)-/, "");
      const whole = await nvml.deviceByUuid(`GPU-${bare}`).catch(ifUnknown);
      if (whole !== null) return { gpu: await NvmlGpu.of(this, nvml, whole), isInstance: false };
      const instance = await nvml.deviceByUuid(`MIG-${bare}`);
      const parent = await nvml.gpuOfInstance(instance);
      return { gpu: await NvmlGpu.of(this, nvml, parent), isInstance: true };
    });
  }

  /** Can be called twice. Calls under way still finish. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#shutDownIfIdle();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #shutDownIfIdle(): void {
    if (!this.#closed || this.#underWay > 0) return;
    // Nobody is left to be told, and there is nothing to do about it.
    this.#nvml.shutdown().catch(() => undefined);
  }
}

const UNKNOWN_DEVICE = ["NVML_ERROR_NOT_FOUND", "NVML_ERROR_INVALID_ARGUMENT"];

/** Null for the error that says that there is no such device; throws any other. */
function ifUnknown(error: unknown): null {
  if (error instanceof NvmlError && UNKNOWN_DEVICE.includes(error.nvmlCode)) return null;
  throw error;
}
