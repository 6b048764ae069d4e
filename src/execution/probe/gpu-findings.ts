/**
 * What trying out the GPU has shown, as the process that tries it (gpu-process.ts)
 * tells the one that reports it. Plain values; a part that is absent was not
 * reached, and then `stopped` says why.
 */

import type { GpuTelemetry } from "../cuda/nvml/gpu.ts";
import type { MigInstance } from "../device.ts";

export type Finding<T> =
  | ({ readonly ok: true } & T)
  | { readonly ok: false; readonly reason: string };

/** A GPU as the CUDA driver has it. */
export interface CudaGpu {
  readonly name: string;
  readonly capability: readonly [number, number];
  readonly multiprocessors: number;
  readonly memoryBytes: number;
  readonly l2Bytes: number;
}

/** A GPU as NVML has it. */
export interface ManagedGpu {
  readonly index: number;
  readonly name: string;
  readonly telemetry: GpuTelemetry;
  readonly mig: { readonly instances: readonly MigInstance[]; readonly reason: string | null };
}

export interface GpuFindings {
  /** The FFI that calls the libraries. */
  readonly ffi?: Finding<{ readonly version: string }>;
  readonly nvml?: Finding<{ readonly version: string; readonly gpus: readonly ManagedGpu[] }>;
  /** CUDA version as the driver numbers it, 13000 for 13.0; GPUs in CUDA's order. */
  readonly driver?: Finding<{ readonly version: number; readonly gpus: readonly CudaGpu[] }>;
  /** Whether the driver divides multiprocessors. */
  readonly greenContexts?: Finding<object>;
  /** Of the first GPU: which images fit, and how many kernels were loaded from them: all but PTX, of which one is compiled. */
  readonly kernels?: Finding<{ readonly architecture: string; readonly loaded: number }>;
  /** Whether the CUDA device opened, as `openDevice()` opens it: so it takes the GPU or the CPU. */
  readonly device?: Finding<object>;
  /** The trying process did not come to its end: what it was doing, and how it ended. */
  readonly stopped?: { readonly during: string; readonly how: string };
}

/** A line of the trying process: what it begins to do, or what it has found. */
export type ProbeLine = { readonly during: string } | { readonly found: GpuFindings };
