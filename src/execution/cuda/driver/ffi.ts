/**
 * The entry points of libcuda that Nexus calls, with the C types of their arguments.
 *
 * Names are those the library exports, not those programs write: cuda.h renames
 * many of them by macro (`cuMemAlloc` is `cuMemAlloc_v2`), and the plain names
 * are older functions with other structures behind them. All return a CUresult;
 * nothing here looks at it but for the version's.
 *
 * Handles and device addresses are `void *`, which koffi takes as a bigint without
 * converting it; declaring them as integers costs several times the call.
 */

import type { NativeFunctions, NativeLibrary } from "../../native/library.ts";
import { bindAll } from "../../native/library.ts";
import { CudaError, SUCCESS } from "./errors.ts";

/** Oldest driver interface that has all of `REQUIRED`: tensor maps and the second kernel-node structure. */
export const LEAST_VERSION = 12000;

const REQUIRED = {
  cuInit: ["uint32_t"],
  cuGetErrorName: ["int32_t", "void *"],
  cuDeviceGetCount: ["void *"],
  cuDeviceGet: ["void *", "int32_t"],
  cuDeviceGetName: ["void *", "int32_t", "int32_t"],
  cuDeviceGetUuid_v2: ["void *", "int32_t"],
  cuDeviceTotalMem_v2: ["void *", "int32_t"],
  cuDeviceGetAttribute: ["void *", "int32_t", "int32_t"],
  cuDevicePrimaryCtxRetain: ["void *", "int32_t"],
  cuDevicePrimaryCtxRelease_v2: ["int32_t"],
  cuCtxSetCurrent: ["void *"],
  cuCtxGetStreamPriorityRange: ["void *", "void *"],
  cuCtxGetLimit: ["void *", "int32_t"],
  cuCtxSetLimit: ["int32_t", "size_t"],
  cuCtxResetPersistingL2Cache: [],

  cuMemGetInfo_v2: ["void *", "void *"],
  cuMemAlloc_v2: ["void *", "size_t"],
  cuMemFree_v2: ["void *"],
  cuMemHostAlloc: ["void *", "size_t", "uint32_t"],
  cuMemFreeHost: ["void *"],
  cuMemcpyHtoDAsync_v2: ["void *", "void *", "size_t", "void *"],
  cuMemcpyDtoHAsync_v2: ["void *", "void *", "size_t", "void *"],
  cuMemcpyDtoDAsync_v2: ["void *", "void *", "size_t", "void *"],
  cuMemsetD8Async: ["void *", "uint8_t", "size_t", "void *"],
  cuMemsetD32Async: ["void *", "uint32_t", "size_t", "void *"],

  cuStreamCreateWithPriority: ["void *", "uint32_t", "int32_t"],
  cuStreamDestroy_v2: ["void *"],
  cuStreamSynchronize: ["void *"],
  cuStreamWaitEvent: ["void *", "void *", "uint32_t"],
  cuEventCreate: ["void *", "uint32_t"],
  cuEventDestroy_v2: ["void *"],
  cuEventRecord: ["void *", "void *"],
  cuEventQuery: ["void *"],
  cuEventElapsedTime: ["void *", "void *", "void *"],

  cuModuleLoadDataEx: ["void *", "void *", "uint32_t", "void *", "void *"],
  cuModuleUnload: ["void *"],
  cuModuleGetFunction: ["void *", "void *", "str"],
  cuFuncSetAttribute: ["void *", "int32_t", "int32_t"],
  cuLaunchKernelEx: ["void *", "void *", "void *", "void *"],
  cuTensorMapEncodeTiled: [
    "void *",
    "int32_t",
    "uint32_t",
    "void *",
    "void *",
    "void *",
    "void *",
    "void *",
    "int32_t",
    "int32_t",
    "int32_t",
    "int32_t",
  ],

  cuStreamBeginCapture_v2: ["void *", "int32_t"],
  cuStreamGetCaptureInfo_v2: ["void *", "void *", "void *", "void *", "void *", "void *"],
  cuStreamEndCapture: ["void *", "void *"],
  cuGraphInstantiateWithFlags: ["void *", "void *", "uint64_t"],
  cuGraphUpload: ["void *", "void *"],
  cuGraphLaunch: ["void *", "void *"],
  cuGraphKernelNodeGetParams_v2: ["void *", "void *"],
  cuGraphExecKernelNodeSetParams_v2: ["void *", "void *", "void *"],
  cuGraphDestroy: ["void *"],
  cuGraphExecDestroy: ["void *"],
} as const;

/** Since CUDA 12.4. */
const PARAMETER_QUERY = {
  cuFuncGetParamInfo: ["void *", "size_t", "void *", "void *"],
} as const;

/** Green contexts: 12.4, and 12.5 for their streams. */
const PARTITIONS = {
  cuDeviceGetDevResource: ["int32_t", "void *", "int32_t"],
  cuDevSmResourceSplitByCount: ["void *", "void *", "void *", "void *", "uint32_t", "uint32_t"],
  cuDevResourceGenerateDesc: ["void *", "void *", "uint32_t"],
  cuGreenCtxCreate: ["void *", "void *", "int32_t", "uint32_t"],
  cuGreenCtxDestroy: ["void *"],
  cuGreenCtxStreamCreate: ["void *", "void *", "uint32_t", "int32_t"],
} as const;

export type RequiredCalls = NativeFunctions<typeof REQUIRED>;
export type ParameterQueryCalls = NativeFunctions<typeof PARAMETER_QUERY>;
export type PartitionCalls = NativeFunctions<typeof PARTITIONS>;

export interface DriverCalls {
  readonly library: NativeLibrary;
  /** E.g. 13000 for CUDA 13.0. */
  readonly version: number;
  readonly required: RequiredCalls;
  /** Null where the driver is older than that. */
  readonly parameterQuery: ParameterQueryCalls | null;
  /** Or why this driver does not have them. */
  readonly partitions: PartitionCalls | string;
}

/** Binds the entry points, or tells why this driver will not do. Needs no initialised driver. */
export function bindDriver(library: NativeLibrary): DriverCalls | string {
  const version = readVersion(library);
  if (typeof version === "string") return version;
  if (version < LEAST_VERSION) {
    return (
      `the driver supports CUDA ${versionText(version)} and Nexus needs ${versionText(LEAST_VERSION)} ` +
      "or newer. Update the NVIDIA driver."
    );
  }
  const required = bindAll(library, REQUIRED);
  if ("missing" in required) {
    return (
      `${library.path} says it supports CUDA ${versionText(version)} but lacks ` +
      `${required.missing.join(", ")}. Reinstall the NVIDIA driver.`
    );
  }
  const query = bindAll(library, PARAMETER_QUERY);
  const partitions = bindAll(library, PARTITIONS);
  return {
    library,
    version,
    required: required.functions,
    parameterQuery: "functions" in query ? query.functions : null,
    partitions: "functions" in partitions ? partitions.functions : partitionsMissing(version),
  };
}

export function versionText(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
}

/** Or why it cannot be told. */
function readVersion(library: NativeLibrary): number | string {
  const call = "cuDriverGetVersion";
  const getVersion = library.find(call, ["void *"]);
  if (getVersion === null) return `${library.path} is no CUDA driver: it lacks ${call}`;
  const version = new Int32Array(1);
  const code = getVersion(version);
  if (code === SUCCESS) return version[0] as number;
  // Without a name: a stub, which is what fails here, has none for any code.
  return `${library.path} tells no version: ${new CudaError(call, code, "code").message}`;
}

function partitionsMissing(version: number): string {
  return `Green contexts need a driver for CUDA 12.5; this one is for ${versionText(version)}`;
}
