/**
 * The CUDA driver as the objects beside this file use it: the calls of `ffi.ts`
 * with every return code checked. What fails throws `CudaError` naming the call,
 * the code and what to do.
 *
 * An interface, so that allocator, recorder and graphs can be tested on machines
 * without a GPU against a driver that only takes notes.
 *
 * Handles and addresses are bigints made once, when the object is: nothing on the
 * launch path makes one. Sizes in bytes are numbers.
 */

/** A grid or a block. */
export interface Extent {
  readonly x: number;
  readonly y: number;
  readonly z: number;
}

export interface DeviceFacts {
  readonly ordinal: number;
  readonly name: string;
  readonly uuid: string;
  readonly memoryBytes: number;
  /** What the memory transfers at most, by its clock and its width. */
  readonly memoryBytesPerSecond: number;
  readonly multiprocessors: number;
  /** Compute capability: [9, 0] for an H200. */
  readonly capability: readonly [number, number];
  readonly l2Bytes: number;
  /** Most of the L2 that can be set aside for persisting accesses; 0 where none can. */
  readonly maxPersistingL2Bytes: number;
  /** Longest range of addresses that an access-policy window covers. */
  readonly maxWindowBytes: number;
  /** Most dynamic shared memory that a block can ask for. */
  readonly sharedPerBlockOptin: number;
  /** Whether it reads ordinary memory of the host by itself, so that copies from there need no staging. */
  readonly readsPageable: boolean;
}

export interface KernelParameter {
  readonly offset: number;
  readonly size: number;
}

/** Which L2 lines of a range stay longest: an access-policy window. */
export interface AccessWindow {
  readonly address: bigint;
  readonly bytes: number;
  /** Share of the accesses that persist, 0 to 1; the others stream. */
  readonly hitRatio: number;
}

/** Calls that need no context are `Driver`'s own; the others act on the one that is current. */
export interface Driver {
  /** E.g. 13000 for CUDA 13.0. */
  readonly version: number;

  // Devices and contexts
  deviceCount(): number;
  deviceFacts(ordinal: number): DeviceFacts;
  /** Retains the device's primary context and makes it current on this thread. */
  retainContext(ordinal: number): bigint;
  setCurrent(context: bigint): void;
  releaseContext(ordinal: number): void;
  /** [lowest, highest] stream priority; the highest is the smaller number. */
  priorityRange(): readonly [number, number];
  /** Bytes of L2 that the current context sets aside for persisting accesses. */
  persistingL2Limit(): number;
  /** The driver rounds up. */
  setPersistingL2Limit(bytes: number): void;
  resetPersistingL2(): void;

  // Memory
  memoryInfo(): { readonly freeBytes: number; readonly totalBytes: number };
  /** @throws CudaError with code `CUDA_ERROR_OUT_OF_MEMORY` if there is no room */
  allocate(bytes: number): bigint;
  free(address: bigint): void;
  /**
   * Page-locked host memory that the device can read and write at the same address.
   *
   * @throws CudaError with code `CUDA_ERROR_OUT_OF_MEMORY` if the system cannot lock so much
   */
  allocatePinned(bytes: number): { readonly address: bigint; readonly bytes: ArrayBuffer };
  freePinned(address: bigint): void;
  copyToDevice(
    target: bigint,
    source: bigint | ArrayBufferView,
    bytes: number,
    stream: bigint,
  ): void;
  copyToHost(target: bigint, source: bigint, bytes: number, stream: bigint): void;
  copyOnDevice(target: bigint, source: bigint, bytes: number, stream: bigint): void;
  fillBytes(target: bigint, value: number, bytes: number, stream: bigint): void;
  fillWords(target: bigint, value: number, words: number, stream: bigint): void;

  // Streams and events
  createStream(priority: number): bigint;
  destroyStream(stream: bigint): void;
  synchronizeStream(stream: bigint): void;
  createEvent(timing: boolean): bigint;
  destroyEvent(event: bigint): void;
  recordEvent(event: bigint, stream: bigint): void;
  waitEvent(stream: bigint, event: bigint): void;
  /** True once all work recorded in the event is done. @throws CudaError if that work failed */
  eventDone(event: bigint): boolean;
  elapsedMilliseconds(from: bigint, to: bigint): number;

  // Modules
  /** @param image a cubin, or PTX ending in a zero byte. @throws CudaError with the JIT's log where there is one */
  loadModule(image: Uint8Array): bigint;
  unloadModule(module: bigint): void;
  getFunction(module: bigint, name: string): bigint;
  /** Parameters in ABI order, as the code itself has them; null where the driver cannot tell (before CUDA 12.4). */
  functionParameters(fn: bigint): readonly KernelParameter[] | null;
  setMaxDynamicShared(fn: bigint, bytes: number): void;

  // Launches
  /** @param config address of a CUlaunchConfig; @param params address of its table of parameter addresses */
  launchKernel(config: bigint, fn: bigint, params: bigint): void;
  /** Writes a CUtensorMap to `target` (64-byte aligned host memory). */
  encodeTensorMap(target: bigint, map: DenseTensorMap): void;

  // Graphs
  beginCapture(stream: bigint): void;
  /** The node that the last call on a capturing stream added; only after a call that adds one. */
  lastCapturedNode(stream: bigint): bigint;
  endCapture(stream: bigint): bigint;
  instantiateGraph(graph: bigint): bigint;
  uploadGraph(exec: bigint, stream: bigint): void;
  launchGraph(exec: bigint, stream: bigint): void;
  /**
   * Changes a kernel node's grid and parameters in an instantiated graph; all else stays as captured.
   *
   * @param params address of a table of parameter addresses, as for `launchKernel`
   */
  setNodeLaunch(exec: bigint, node: bigint, grid: Extent, params: bigint): void;
  destroyGraph(graph: bigint): void;
  destroyGraphExec(exec: bigint): void;

  // Partitions (green contexts)
  /** Null, or why the driver cannot divide multiprocessors. */
  partitionsUnavailable(): string | null;
  /**
   * Divides the multiprocessors into disjoint sets of at least the given sizes, in order, and
   * makes a green context of each. Sizes that fit the device, but not rounded up to the groups
   * that it deals multiprocessors out in, are met as nearly as those allow.
   */
  createPartitions(ordinal: number, multiprocessors: readonly number[]): readonly Partition[];
  destroyPartition(partition: Partition): void;
  createPartitionStream(partition: Partition, priority: number): bigint;
}

export interface Partition {
  readonly context: bigint;
  readonly multiprocessors: number;
}

/** Elements right behind each other, in 2 to 5 dimensions. */
export interface DenseTensorMap {
  readonly address: bigint;
  readonly element: "bfloat16" | "float16" | "float32" | "int32";
  /** Sizes from the outermost dimension on. */
  readonly shape: readonly number[];
  /** Sizes of a box, likewise. */
  readonly box: readonly number[];
  /** CUtensorMapSwizzle, as the kernel's metadata has it. */
  readonly swizzle: number;
  /** CUtensorMapL2promotion, likewise: 2 for 128 bytes, 3 for 256. */
  readonly l2Promotion: number;
}
