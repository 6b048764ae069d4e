/**
 * NVML's C structures as sizes and offsets in bytes, for reading them with a DataView.
 *
 * They hold for 64-bit Linux on x86-64 and AArch64, whose layout rules agree. Only what
 * Nexus reads is named. The numbers are those of nvml.h 12.9, and a test holds them
 * against a C compiler.
 */

/** nvmlUtilization_t, of 32-bit percentages. */
export const UTILIZATION = { size: 8, gpu: 0, memory: 4 } as const;

/** nvmlMemory_t, of 64-bit sizes. */
export const MEMORY = { size: 24, total: 0, used: 16 } as const;

/** nvmlDeviceAttributes_t: eight 32-bit counts, and the memory's size in 64 bits. */
export const DEVICE_ATTRIBUTES = {
  size: 40,
  multiprocessors: 0,
  gpuSlices: 24,
  computeSlices: 28,
  memoryMebibytes: 32,
} as const;
