/**
 * `Driver` over the real libcuda: one method a call, every return code checked.
 *
 * Nothing has an owner here and nothing is remembered between calls; those who hold
 * handles are `context.ts`, `allocator.ts`, `pinned.ts` and `events.ts`. Calls on the
 * launch path allocate nothing: no string, no bigint, no array.
 */

import { DeviceUnavailableError, InvalidArgumentError } from "../../../errors.ts";
import type { NativeLibrary } from "../../native/library.ts";
import { openLibrary } from "../../native/library.ts";
import { Checked } from "./checked.ts";
import { readDeviceFacts } from "./device-facts.ts";
import type {
  DenseTensorMap,
  DeviceFacts,
  Driver,
  Extent,
  KernelParameter,
  Partition,
} from "./driver.ts";
import { NO_DEVICE, NOT_READY, SUCCESS } from "./errors.ts";
import type { PartitionCalls, RequiredCalls } from "./ffi.ts";
import { bindDriver } from "./ffi.ts";
import { functionParameters, ModuleLoader } from "./modules.ts";
import { createPartitions, destroyPartition } from "./partitions.ts";
import { KERNEL_NODE_PARAMS } from "./structs.ts";

/** The dynamic linker's name for it, the one of systems without the versioned link, and where WSL keeps it. */
const LIBRARY_PATHS = ["libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"];

const LIMIT_PERSISTING_L2 = 6;
/** Known to every context and mapped into the device's address space. */
const HOST_ALLOC_PORTABLE_MAPPED = 3;
/** Streams that do not order themselves against the legacy default stream. */
const STREAM_NON_BLOCKING = 1;
const EVENT_DEFAULT = 0;
const EVENT_DISABLE_TIMING = 2;
/** Other threads may allocate meanwhile; nothing of Nexus's own depends on the checks that this drops. */
const CAPTURE_RELAXED = 2;
const CAPTURE_ACTIVE = 1;
/** Without it all of a graph has the priority of the stream that it is launched on. */
const INSTANTIATE_USE_NODE_PRIORITY = 8;
const MAX_DYNAMIC_SHARED = 8;
const TENSOR_TYPE = { int32: 3, float16: 6, float32: 7, bfloat16: 9 } as const;
const ELEMENT_BYTES = { int32: 4, float16: 2, float32: 4, bfloat16: 2 } as const;
const INTERLEAVE_NONE = 0;
const OUT_OF_BOUNDS_ZERO = 0;

export type OpenedDriver = { readonly driver: Driver } | { readonly reason: string };

/** Loads and initialises the driver, or tells why there is none: "no CUDA because ...". */
export function openDriver(): OpenedDriver {
  const opened = openLibrary("the NVIDIA driver", LIBRARY_PATHS);
  return "reason" in opened ? opened : driverOf(opened.library);
}

/** The driver in a library. */
export function driverOf(library: NativeLibrary): OpenedDriver {
  const calls = bindDriver(library);
  if (typeof calls === "string") return { reason: calls };
  const checked = new Checked(calls);
  const code = calls.required.cuInit(0);
  if (code === SUCCESS) return { driver: new NativeDriver(checked) };
  const visible = process.env["CUDA_VISIBLE_DEVICES"];
  if (code === NO_DEVICE && visible !== undefined) {
    return {
      reason: `no GPU is visible: CUDA_VISIBLE_DEVICES is ${JSON.stringify(visible)}. Unset it, or name GPUs that exist.`,
    };
  }
  return { reason: checked.error("cuInit", code).message };
}

class NativeDriver implements Driver {
  readonly version: number;
  readonly #at: Checked;
  readonly #cu: RequiredCalls;
  readonly #modules: ModuleLoader;

  constructor(checked: Checked) {
    this.version = checked.calls.version;
    this.#at = checked;
    this.#cu = checked.cu;
    this.#modules = new ModuleLoader(checked);
  }

  // Devices and contexts

  deviceCount(): number {
    this.#at.check("cuDeviceGetCount", this.#cu.cuDeviceGetCount(this.#at.first));
    return this.#at.int32(0);
  }

  deviceFacts(ordinal: number): DeviceFacts {
    return readDeviceFacts(this.#at, ordinal);
  }

  retainContext(ordinal: number): bigint {
    const device = this.#at.device(ordinal);
    const code = this.#cu.cuDevicePrimaryCtxRetain(this.#at.first, device);
    this.#at.check("cuDevicePrimaryCtxRetain", code);
    const context = this.#at.handle(0);
    this.setCurrent(context);
    return context;
  }

  setCurrent(context: bigint): void {
    this.#at.check("cuCtxSetCurrent", this.#cu.cuCtxSetCurrent(context));
  }

  releaseContext(ordinal: number): void {
    const device = this.#at.device(ordinal);
    const code = this.#cu.cuDevicePrimaryCtxRelease_v2(device);
    this.#at.check("cuDevicePrimaryCtxRelease_v2", code);
  }

  priorityRange(): readonly [number, number] {
    const code = this.#cu.cuCtxGetStreamPriorityRange(this.#at.first, this.#at.second);
    this.#at.check("cuCtxGetStreamPriorityRange", code);
    return [this.#at.int32(0), this.#at.int32(1)];
  }

  persistingL2Limit(): number {
    const code = this.#cu.cuCtxGetLimit(this.#at.first, LIMIT_PERSISTING_L2);
    this.#at.check("cuCtxGetLimit", code);
    return this.#at.size(0);
  }

  setPersistingL2Limit(bytes: number): void {
    this.#at.check("cuCtxSetLimit", this.#cu.cuCtxSetLimit(LIMIT_PERSISTING_L2, bytes));
  }

  resetPersistingL2(): void {
    this.#at.check("cuCtxResetPersistingL2Cache", this.#cu.cuCtxResetPersistingL2Cache());
  }

  // Memory

  memoryInfo(): { readonly freeBytes: number; readonly totalBytes: number } {
    const code = this.#cu.cuMemGetInfo_v2(this.#at.first, this.#at.second);
    this.#at.check("cuMemGetInfo_v2", code);
    return { freeBytes: this.#at.size(0), totalBytes: this.#at.size(1) };
  }

  allocate(bytes: number): bigint {
    this.#at.check("cuMemAlloc_v2", this.#cu.cuMemAlloc_v2(this.#at.first, bytes));
    return this.#at.handle(0);
  }

  free(address: bigint): void {
    this.#at.check("cuMemFree_v2", this.#cu.cuMemFree_v2(address));
  }

  allocatePinned(bytes: number): { readonly address: bigint; readonly bytes: ArrayBuffer } {
    const code = this.#cu.cuMemHostAlloc(this.#at.first, bytes, HOST_ALLOC_PORTABLE_MAPPED);
    this.#at.check("cuMemHostAlloc", code);
    const address = this.#at.handle(0);
    return { address, bytes: this.#at.library.view(address, bytes) };
  }

  freePinned(address: bigint): void {
    this.#at.check("cuMemFreeHost", this.#cu.cuMemFreeHost(address));
  }

  copyToDevice(
    target: bigint,
    source: bigint | ArrayBufferView,
    bytes: number,
    stream: bigint,
  ): void {
    if (typeof source !== "bigint" && bytes > source.byteLength) {
      throw new InvalidArgumentError(
        `Cannot copy ${bytes} bytes from an array of ${source.byteLength} bytes.`,
      );
    }
    const code = this.#cu.cuMemcpyHtoDAsync_v2(target, source, bytes, stream);
    this.#at.check("cuMemcpyHtoDAsync_v2", code);
  }

  copyToHost(target: bigint, source: bigint, bytes: number, stream: bigint): void {
    const code = this.#cu.cuMemcpyDtoHAsync_v2(target, source, bytes, stream);
    this.#at.check("cuMemcpyDtoHAsync_v2", code);
  }

  copyOnDevice(target: bigint, source: bigint, bytes: number, stream: bigint): void {
    const code = this.#cu.cuMemcpyDtoDAsync_v2(target, source, bytes, stream);
    this.#at.check("cuMemcpyDtoDAsync_v2", code);
  }

  fillBytes(target: bigint, value: number, bytes: number, stream: bigint): void {
    this.#at.check("cuMemsetD8Async", this.#cu.cuMemsetD8Async(target, value, bytes, stream));
  }

  fillWords(target: bigint, value: number, words: number, stream: bigint): void {
    this.#at.check("cuMemsetD32Async", this.#cu.cuMemsetD32Async(target, value, words, stream));
  }

  // Streams and events

  createStream(priority: number): bigint {
    const code = this.#cu.cuStreamCreateWithPriority(this.#at.first, STREAM_NON_BLOCKING, priority);
    this.#at.check("cuStreamCreateWithPriority", code);
    return this.#at.handle(0);
  }

  destroyStream(stream: bigint): void {
    this.#at.check("cuStreamDestroy_v2", this.#cu.cuStreamDestroy_v2(stream));
  }

  synchronizeStream(stream: bigint): void {
    this.#at.check("cuStreamSynchronize", this.#cu.cuStreamSynchronize(stream));
  }

  createEvent(timing: boolean): bigint {
    const flags = timing ? EVENT_DEFAULT : EVENT_DISABLE_TIMING;
    this.#at.check("cuEventCreate", this.#cu.cuEventCreate(this.#at.first, flags));
    return this.#at.handle(0);
  }

  destroyEvent(event: bigint): void {
    this.#at.check("cuEventDestroy_v2", this.#cu.cuEventDestroy_v2(event));
  }

  recordEvent(event: bigint, stream: bigint): void {
    this.#at.check("cuEventRecord", this.#cu.cuEventRecord(event, stream));
  }

  waitEvent(stream: bigint, event: bigint): void {
    this.#at.check("cuStreamWaitEvent", this.#cu.cuStreamWaitEvent(stream, event, 0));
  }

  eventDone(event: bigint): boolean {
    const code = this.#cu.cuEventQuery(event);
    if (code === NOT_READY) return false;
    this.#at.check("cuEventQuery", code);
    return true;
  }

  elapsedMilliseconds(from: bigint, to: bigint): number {
    const code = this.#cu.cuEventElapsedTime(this.#at.first, from, to);
    this.#at.check("cuEventElapsedTime", code);
    return this.#at.float32(0);
  }

  // Modules

  loadModule(image: Uint8Array): bigint {
    return this.#modules.load(image);
  }

  unloadModule(module: bigint): void {
    this.#at.check("cuModuleUnload", this.#cu.cuModuleUnload(module));
  }

  getFunction(module: bigint, name: string): bigint {
    const code = this.#cu.cuModuleGetFunction(this.#at.first, module, name);
    if (code !== SUCCESS) throw this.#at.error("cuModuleGetFunction", code, name);
    return this.#at.handle(0);
  }

  functionParameters(fn: bigint): readonly KernelParameter[] | null {
    return functionParameters(this.#at, fn);
  }

  setMaxDynamicShared(fn: bigint, bytes: number): void {
    this.#at.check(
      "cuFuncSetAttribute",
      this.#cu.cuFuncSetAttribute(fn, MAX_DYNAMIC_SHARED, bytes),
    );
  }

  // Launches

  launchKernel(config: bigint, fn: bigint, params: bigint): void {
    this.#at.check("cuLaunchKernelEx", this.#cu.cuLaunchKernelEx(config, fn, params, null));
  }

  encodeTensorMap(target: bigint, map: DenseTensorMap): void {
    // The driver counts dimensions from the innermost; the innermost stride is the element itself.
    const shape = map.shape.toReversed();
    let bytes = ELEMENT_BYTES[map.element];
    const strides = shape.slice(0, -1).map((size) => {
      bytes *= size;
      return BigInt(bytes);
    });
    const code = this.#cu.cuTensorMapEncodeTiled(
      target,
      TENSOR_TYPE[map.element],
      shape.length,
      map.address,
      new BigUint64Array(shape.map(BigInt)),
      new BigUint64Array(strides),
      new Uint32Array(map.box.toReversed()),
      new Uint32Array(shape.map(() => 1)),
      INTERLEAVE_NONE,
      map.swizzle,
      map.l2Promotion,
      OUT_OF_BOUNDS_ZERO,
    );
    this.#at.check("cuTensorMapEncodeTiled", code);
  }

  // Graphs

  beginCapture(stream: bigint): void {
    const code = this.#cu.cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED);
    this.#at.check("cuStreamBeginCapture_v2", code);
  }

  lastCapturedNode(stream: bigint): bigint {
    // What the next call on the stream will depend on: after a call that adds a node, that node alone.
    const { first, second, third } = this.#at;
    const code = this.#cu.cuStreamGetCaptureInfo_v2(stream, first, null, null, second, third);
    this.#at.check("cuStreamGetCaptureInfo_v2", code);
    if (this.#at.int32(0) !== CAPTURE_ACTIVE) {
      throw new InvalidArgumentError("The stream captures nothing: begin a capture first.");
    }
    if (this.#at.size(2) !== 1) {
      throw new InvalidArgumentError(
        `The stream goes on from ${this.#at.size(2)} graph nodes: ask right after a call that adds one.`,
      );
    }
    return this.#at.library.addressAt(this.#at.handle(1));
  }

  endCapture(stream: bigint): bigint {
    this.#at.check("cuStreamEndCapture", this.#cu.cuStreamEndCapture(stream, this.#at.first));
    return this.#at.handle(0);
  }

  instantiateGraph(graph: bigint): bigint {
    const flags = INSTANTIATE_USE_NODE_PRIORITY;
    const code = this.#cu.cuGraphInstantiateWithFlags(this.#at.first, graph, flags);
    this.#at.check("cuGraphInstantiateWithFlags", code);
    return this.#at.handle(0);
  }

  uploadGraph(exec: bigint, stream: bigint): void {
    this.#at.check("cuGraphUpload", this.#cu.cuGraphUpload(exec, stream));
  }

  launchGraph(exec: bigint, stream: bigint): void {
    this.#at.check("cuGraphLaunch", this.#cu.cuGraphLaunch(exec, stream));
  }

  setNodeLaunch(exec: bigint, node: bigint, grid: Extent, params: bigint): void {
    const { node: structure, nodeAddress } = this.#at;
    const got = this.#cu.cuGraphKernelNodeGetParams_v2(node, nodeAddress);
    this.#at.check("cuGraphKernelNodeGetParams_v2", got);
    structure.setUint32(KERNEL_NODE_PARAMS.gridX, grid.x, true);
    structure.setUint32(KERNEL_NODE_PARAMS.gridY, grid.y, true);
    structure.setUint32(KERNEL_NODE_PARAMS.gridZ, grid.z, true);
    structure.setBigUint64(KERNEL_NODE_PARAMS.kernelParams, params, true);
    const set = this.#cu.cuGraphExecKernelNodeSetParams_v2(exec, node, nodeAddress);
    this.#at.check("cuGraphExecKernelNodeSetParams_v2", set);
  }

  destroyGraph(graph: bigint): void {
    this.#at.check("cuGraphDestroy", this.#cu.cuGraphDestroy(graph));
  }

  destroyGraphExec(exec: bigint): void {
    this.#at.check("cuGraphExecDestroy", this.#cu.cuGraphExecDestroy(exec));
  }

  // Partitions

  partitionsUnavailable(): string | null {
    const calls = this.#at.calls.partitions;
    return typeof calls === "string" ? calls : null;
  }

  createPartitions(ordinal: number, multiprocessors: readonly number[]): readonly Partition[] {
    return createPartitions(this.#at, this.#partitionCalls(), ordinal, multiprocessors);
  }

  destroyPartition(partition: Partition): void {
    destroyPartition(this.#at, this.#partitionCalls(), partition);
  }

  createPartitionStream(partition: Partition, priority: number): bigint {
    const code = this.#partitionCalls().cuGreenCtxStreamCreate(
      this.#at.first,
      partition.context,
      STREAM_NON_BLOCKING,
      priority,
    );
    this.#at.check("cuGreenCtxStreamCreate", code);
    return this.#at.handle(0);
  }

  #partitionCalls(): PartitionCalls {
    const calls = this.#at.calls.partitions;
    if (typeof calls === "string") throw new DeviceUnavailableError(`${calls}.`);
    return calls;
  }
}
