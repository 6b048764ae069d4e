/**
 * What a failed driver call becomes: the call, the code by number and name, and what
 * a person can do about it.
 *
 * A code has the same remedy for every call. (Where the host runs out of memory, with the code
 * of the GPU's, pinned.ts says so.) Codes without any (a wrong argument, a stale handle) are faults of Nexus, and the
 * message says so.
 */

import { DeviceFailedError } from "../../../errors.ts";

/** CUresult codes that the driver layer itself decides by. */
export const SUCCESS = 0;
export const INVALID_VALUE = 1;
const OUT_OF_MEMORY = 2;
export const NO_DEVICE = 100;
export const NOT_READY = 600;

const RESTART = "The CUDA context is lost and with it all device memory: restart the process. ";
const BUG = "This is a bug in Nexus unless other code in the process uses CUDA; please report it.";
const DRIVER =
  "Reinstall the NVIDIA driver so that kernel module and libraries are of one version.";
const KERNEL_FAULT = `${RESTART}If it happens again, run under compute-sanitizer and report what it says.`;
const HARDWARE_FAULT = `${RESTART}The hardware reported the fault: look at \`nvidia-smi -q\` and dmesg (Xid).`;
const CAPTURE = `A call that a graph cannot hold was made while one was being captured. ${BUG}`;
const IMAGE = "The kernel bundle does not fit this GPU or is damaged: reinstall the package.";

const REMEDIES: Readonly<Record<number, string>> = {
  2: "The GPU is out of memory: free buffers, use fewer tokens or experts per device, or end other processes that hold memory on it (nvidia-smi lists them).",
  4: "The driver is shutting down: nothing can be done on the GPU while the process exits.",
  34: "A stub of libcuda was loaded, made for linking only. Remove the toolkit's stubs directory from LD_LIBRARY_PATH.",
  46: "The GPU is busy or in a mode that admits no further process: see `nvidia-smi -q -d COMPUTE`.",
  100: "No GPU is visible: check `nvidia-smi` and CUDA_VISIBLE_DEVICES.",
  101: "There is no GPU with that number: `nexus doctor` lists those there are.",
  102: "The GPU needs a licence (vGPU) that the system lacks.",
  200: IMAGE,
  209: IMAGE,
  214: HARDWARE_FAULT,
  218: IMAGE,
  220: HARDWARE_FAULT,
  221: "The driver's PTX compiler (libnvidia-ptxjitcompiler.so) is missing: install the complete driver.",
  222: "The driver is too old for the bundle's PTX: update the NVIDIA driver.",
  223: "PTX compilation is switched off (CUDA_DISABLE_PTX_JIT) and the bundle has no code for this GPU: switch it on.",
  226: HARDWARE_FAULT,
  304: "The operating system refused: check permissions of /dev/nvidia* and limits (ulimit -l, container settings).",
  700: KERNEL_FAULT,
  701: "The kernel asks for more registers or shared memory than this GPU has.",
  702: `${RESTART}A kernel ran longer than the display watchdog allows: use a GPU that drives no display.`,
  709: RESTART,
  710: KERNEL_FAULT,
  714: KERNEL_FAULT,
  715: KERNEL_FAULT,
  716: KERNEL_FAULT,
  717: KERNEL_FAULT,
  718: KERNEL_FAULT,
  719: KERNEL_FAULT,
  800: "The system forbids it for this user or container: check its GPU permissions.",
  801: "This GPU or driver cannot do that (MIG and MPS switch some features off).",
  802: "The system's fabric manager is not ready: start nvidia-fabricmanager, or wait and try again.",
  803: DRIVER,
  804: "The CUDA compatibility package does not support this GPU: remove it from LD_LIBRARY_PATH or update the driver.",
  805: "The MPS server cannot be reached: start it (nvidia-cuda-mps-control -d) or unset CUDA_MPS_PIPE_DIRECTORY.",
  807: "The MPS server is not ready: wait and try again.",
  808: "The MPS server has no room for another client: end one.",
  809: "The MPS server has no room for another connection: end a client.",
  900: CAPTURE,
  901: CAPTURE,
  906: CAPTURE,
  907: CAPTURE,
  914: "The driver cannot divide this resource: use the `shared` realisation.",
  915: "The driver refused this division of the multiprocessors: use other sizes or the `shared` realisation.",
  999: `The driver does not say what failed. Look at dmesg (Xid), then restart the process.`,
};

/** After these every later call on the context fails: faults of a kernel or the hardware, or the end of the process. */
const CONTEXT_LOST: ReadonlySet<number> = new Set([
  4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719,
]);

/** A driver call failed. */
export class CudaError extends DeviceFailedError {
  /** The entry point, e.g. `"cuMemAlloc_v2"`. */
  readonly call: string;
  /** The CUresult, e.g. 2. */
  readonly result: number;
  /** Its name, e.g. `"CUDA_ERROR_OUT_OF_MEMORY"`. */
  readonly codeName: string;
  /** What to do. */
  readonly remedy: string;
  /** Whether every later call of this process fails as well. */
  readonly contextLost: boolean;

  /** @param detail what else is known, e.g. the log of a compilation */
  constructor(call: string, result: number, codeName: string, detail = "") {
    const remedy = REMEDIES[result] ?? BUG;
    super(
      `${call} failed with ${codeName} (${result})${detail && `: ${detail}`}. ${remedy.trim()}`,
    );
    this.call = call;
    this.result = result;
    this.codeName = codeName;
    this.remedy = remedy.trim();
    this.contextLost = CONTEXT_LOST.has(result);
  }
}

export function isOutOfMemory(error: unknown): boolean {
  return error instanceof CudaError && error.result === OUT_OF_MEMORY;
}

/** Frees something, letting a lost context pass: what it held is gone with it. */
export function release(free: () => void): void {
  try {
    free();
  } catch (error) {
    if (!(error instanceof CudaError && error.contextLost)) throw error;
  }
}
