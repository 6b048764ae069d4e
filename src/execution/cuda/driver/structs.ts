/**
 * The driver's C structures as sizes and offsets in bytes, for writing them with
 * a DataView.
 *
 * They hold for 64-bit Linux on x86-64 and AArch64, whose layout rules agree, and
 * for every driver since 12.0: NVIDIA gives a changed structure a new entry point.
 * Only what Nexus writes or reads is named. The numbers are those of cuda.h
 * 12.8, and a test holds them against a C compiler.
 */

/** CUlaunchConfig, what cuLaunchKernelEx takes beside the function and its parameters. */
export const LAUNCH_CONFIG = {
  size: 56,
  gridX: 0,
  gridY: 4,
  gridZ: 8,
  blockX: 12,
  blockY: 16,
  blockZ: 20,
  sharedBytes: 24,
  stream: 32,
  attributes: 40,
  attributeCount: 48,
} as const;

/** CUlaunchAttribute: an id and a union. */
export const LAUNCH_ATTRIBUTE = { size: 72, id: 0, value: 8 } as const;

/** CUlaunchAttributeID */
export const LAUNCH_ATTRIBUTE_ID = {
  accessPolicyWindow: 1,
  programmaticStreamSerialization: 6,
} as const;

/** CUaccessPolicyWindow, a value of CUlaunchAttribute. */
export const ACCESS_WINDOW = {
  size: 32,
  address: 0,
  bytes: 8,
  hitRatio: 16,
  hitProperty: 20,
  missProperty: 24,
} as const;

/** CUaccessProperty */
export const ACCESS_PROPERTY = { streaming: 1, persisting: 2 } as const;

/** CUDA_KERNEL_NODE_PARAMS_v2 */
export const KERNEL_NODE_PARAMS = {
  size: 72,
  fn: 0,
  gridX: 8,
  gridY: 12,
  gridZ: 16,
  blockX: 20,
  blockY: 24,
  blockZ: 28,
  sharedBytes: 32,
  kernelParams: 40,
  extra: 48,
  kernel: 56,
  context: 64,
} as const;

/** CUdevResource: 12.x leaves bytes from 100 on unused, 13.0 has further fields there. */
export const DEVICE_RESOURCE = { size: 144, type: 0, multiprocessors: 96 } as const;

/** CUtensorMap, opaque. */
export const TENSOR_MAP = { size: 128, alignment: 64 } as const;
