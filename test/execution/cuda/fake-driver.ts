/**
 * A CUDA driver without a GPU: device memory is host memory, streams are queues, and
 * what is queued runs a few steps at a time, whenever somebody asks whether an event is
 * done, in an order drawn at random among all that streams and events allow. So work
 * that is not ordered as it should be goes wrong sooner or later, as on a GPU.
 *
 * Captures, graphs, page-locked copies and the ordinary ones that the driver stages
 * behave as the driver's documentation says. Kernels do what a test tells them to. Calls
 * are counted, objects are counted, and every call can be made to fail.
 */

import { InvalidArgumentError } from "../../../src/errors.ts";
import type {
  AccessWindow,
  DenseTensorMap,
  DeviceFacts,
  Driver,
  Extent,
  KernelParameter,
  Partition,
} from "../../../src/execution/cuda/driver/driver.ts";
import { failed } from "./fake-calls.ts";
import { FakeMemory } from "./fake-memory.ts";
import { FakeStreams, type NodeLaunch, type Parameter } from "./fake-streams.ts";

/** A kernel launch as it ran. */
export interface FakeLaunch {
  readonly fn: bigint;
  readonly grid: Extent;
  /** The partition of its stream. */
  readonly partition: Partition | undefined;
  readonly priority: number;
  /** Its access-policy window. */
  readonly window: AccessWindow | undefined;
  /** Whether it may start beside the end of the kernel in front of it. */
  readonly early: boolean;
  /** Addresses of the parameters. */
  readonly params: bigint;
  /** A parameter's bytes, as they were when it was launched or captured. */
  parameter(index: number, bytes: number): DataView;
}

/** What the driver deals multiprocessors out in, on an H200. */
const PARTITION_STEP = 8;

export const FAKE_FACTS: DeviceFacts = {
  ordinal: 0,
  name: "Fake H200",
  uuid: "GPU-00000000-0000-0000-0000-000000000000",
  memoryBytes: 2 ** 30,
  memoryBytesPerSecond: 4.8e12,
  multiprocessors: 132,
  capability: [9, 0],
  l2Bytes: 50 * 2 ** 20,
  maxPersistingL2Bytes: 32 * 2 ** 20,
  maxWindowBytes: 128 * 2 ** 20,
  sharedPerBlockOptin: 227 * 1024,
  readsPageable: false,
};

export class FakeDriver extends FakeStreams implements Driver {
  readonly version = 13000;
  readonly facts: DeviceFacts;
  /** Kernels in the order in which they ran. */
  readonly launches: FakeLaunch[] = [];
  /** What kernels do. */
  onKernel: (launch: FakeLaunch) => void = () => {};
  gpus = 1;
  persistingL2 = 0;
  noPartitions: string | null = null;
  /** Bytes of the parameters of a function, by the image that it is in. */
  parametersOf: (image: Uint8Array, name: string) => readonly number[] = () => [];
  readonly #memory = new FakeMemory();
  readonly #modules = new Map<bigint, Uint8Array>();
  readonly #functions = new Map<bigint, { readonly image: Uint8Array; readonly name: string }>();
  readonly #partitions = new Set<Partition>();
  #contexts = 0;

  constructor(facts: Partial<DeviceFacts> = {}) {
    super();
    this.facts = { ...FAKE_FACTS, ...facts };
  }

  override get live(): Readonly<Record<string, number>> {
    const counts = {
      ...super.live,
      allocations: this.#memory.count(false),
      pinned: this.#memory.count(true),
      modules: this.#modules.size,
      partitions: this.#partitions.size,
      contexts: this.#contexts,
    };
    return Object.fromEntries(Object.entries(counts).filter(([, count]) => count > 0));
  }

  nameOf(fn: bigint): string | undefined {
    return this.#functions.get(fn)?.name;
  }

  /** The bytes at an address of either memory. */
  bytesAt(address: bigint, length: number): Uint8Array<ArrayBuffer> {
    return this.#memory.bytesAt(address, length);
  }

  // Devices and contexts

  deviceCount(): number {
    this.call("deviceCount");
    return this.gpus;
  }

  deviceFacts(): DeviceFacts {
    this.call("deviceFacts");
    return this.facts;
  }

  retainContext(): bigint {
    this.call("retainContext");
    this.#contexts += 1;
    return 1n;
  }

  setCurrent(): void {
    this.call("setCurrent");
  }

  releaseContext(): void {
    this.#contexts -= 1;
    this.call("releaseContext");
  }

  priorityRange(): readonly [number, number] {
    return [0, -5];
  }

  persistingL2Limit(): number {
    this.call("persistingL2Limit");
    return this.persistingL2;
  }

  setPersistingL2Limit(bytes: number): void {
    this.call("setPersistingL2Limit");
    this.persistingL2 = bytes;
  }

  resetPersistingL2(): void {
    this.call("resetPersistingL2");
  }

  // Memory

  memoryInfo(): { freeBytes: number; totalBytes: number } {
    const totalBytes = this.facts.memoryBytes;
    return { freeBytes: totalBytes - this.#memory.usedBytes, totalBytes };
  }

  allocate(bytes: number): bigint {
    this.call("allocate");
    if (this.#memory.usedBytes + bytes > this.facts.memoryBytes) throw failed("allocate", 2);
    return this.#memory.allocate(bytes, false).address;
  }

  free(address: bigint): void {
    this.#memory.free(address);
    this.call("free");
  }

  allocatePinned(bytes: number): { address: bigint; bytes: ArrayBuffer } {
    this.call("allocatePinned");
    return this.#memory.allocate(bytes, true);
  }

  freePinned(address: bigint): void {
    this.#memory.free(address);
    this.call("freePinned");
  }

  /** Ordinary memory is copied at once, page-locked memory when the stream comes to it. */
  copyToDevice(
    target: bigint,
    source: bigint | ArrayBufferView,
    bytes: number,
    stream: bigint,
  ): void {
    this.call("copyToDevice");
    if (typeof source === "bigint") {
      this.enqueue(stream, () => this.#memory.copy(target, source, bytes));
      return;
    }
    const there = new Uint8Array(source.buffer, source.byteOffset, bytes);
    const staged = this.facts.readsPageable ? there : there.slice();
    this.enqueue(stream, () => this.bytesAt(target, bytes).set(staged));
  }

  copyToHost(target: bigint, source: bigint, bytes: number, stream: bigint): void {
    this.call("copyToHost");
    this.enqueue(stream, () => this.#memory.copy(target, source, bytes));
  }

  copyOnDevice(target: bigint, source: bigint, bytes: number, stream: bigint): void {
    this.call("copyOnDevice");
    this.enqueue(stream, () => this.#memory.copy(target, source, bytes));
  }

  fillBytes(target: bigint, value: number, bytes: number, stream: bigint): void {
    this.call("fillBytes");
    this.enqueue(stream, () => this.bytesAt(target, bytes).fill(value));
  }

  fillWords(target: bigint, value: number, words: number, stream: bigint): void {
    this.call("fillWords");
    this.enqueue(stream, () => {
      const { buffer, byteOffset } = this.bytesAt(target, words * 4);
      new Int32Array(buffer, byteOffset, words).fill(value);
    });
  }

  // Streams

  createStream(priority: number): bigint {
    this.call("createStream");
    return this.newStream(priority, undefined);
  }

  // Modules

  loadModule(image: Uint8Array): bigint {
    this.call("loadModule");
    const handle = this.handle();
    this.#modules.set(handle, image);
    return handle;
  }

  unloadModule(module: bigint): void {
    if (!this.#modules.delete(module)) throw new Error("A module is unloaded that is not there.");
    this.call("unloadModule");
  }

  getFunction(module: bigint, name: string): bigint {
    this.call("getFunction");
    const handle = this.handle();
    const image = this.#modules.get(module);
    if (image === undefined) throw failed("getFunction", 400);
    this.#functions.set(handle, { image, name });
    return handle;
  }

  functionParameters(fn: bigint): readonly KernelParameter[] {
    const { image, name } = this.#functions.get(fn) as { image: Uint8Array; name: string };
    return this.parametersOf(image, name).map((size, index) => ({ offset: index * 8, size }));
  }

  setMaxDynamicShared(): void {}

  // Launches

  /** Reads a CUlaunchConfig and copies the parameters, as the driver does. */
  launchKernel(config: bigint, fn: bigint, params: bigint): void {
    this.call("launchKernel");
    const view = new DataView(this.bytesAt(config, 56).buffer, this.bytesAt(config, 56).byteOffset);
    const grid = {
      x: view.getUint32(0, true),
      y: view.getUint32(4, true),
      z: view.getUint32(8, true),
    };
    if (grid.x * grid.y * grid.z === 0) throw failed("launchKernel", 1);
    const stream = this.stream(view.getBigUint64(32, true));
    const freeze = (table: bigint): Parameter => this.freeze(fn, table);
    const window = this.#windowOf(view);
    const early = this.#attribute(view, 6)?.getInt32(8, true) === 1;
    if (early && !stream.afterKernel)
      throw new Error("There is no kernel to start beside the end of.");
    const run = (actual: NodeLaunch): void => {
      const launch = {
        fn,
        grid: actual.grid,
        params,
        parameter: actual.parameter as Parameter,
        window,
        early,
        partition: stream.partition,
        priority: stream.priority,
      };
      this.launches.push(launch);
      this.onKernel(launch);
    };
    this.enqueue(stream.handle, run, { grid, parameter: freeze(params) }, freeze);
    stream.afterKernel = true;
  }

  #windowOf(config: DataView): AccessWindow | undefined {
    const view = this.#attribute(config, 1);
    return (
      view && {
        address: view.getBigUint64(8, true),
        bytes: Number(view.getBigUint64(16, true)),
        hitRatio: view.getFloat32(24, true),
      }
    );
  }

  /** Of a CUlaunchConfig. */
  #attribute(config: DataView, id: number): DataView | undefined {
    const attributes = config.getBigUint64(40, true);
    for (let i = 0; i < config.getUint32(48, true); i++) {
      const bytes = this.bytesAt(attributes + BigInt(72 * i), 72);
      const view = new DataView(bytes.buffer, bytes.byteOffset, 72);
      if (view.getUint32(0, true) === id) return view;
    }
    return undefined;
  }

  encodeTensorMap(target: bigint, map: DenseTensorMap): void {
    this.call("encodeTensorMap");
    const bytes = this.bytesAt(target, 128);
    new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(0, map.address, true);
  }

  // Partitions

  partitionsUnavailable(): string | null {
    return this.noPartitions;
  }

  createPartitions(_ordinal: number, sizes: readonly number[]): readonly Partition[] {
    this.call("createPartitions");
    const made = this.dealOut(sizes);
    if (made.reduce((sum, size) => sum + size, 0) > this.facts.multiprocessors) {
      throw new InvalidArgumentError(`Partitions of [${sizes.join(", ")}] do not fit.`);
    }
    return made.map((multiprocessors) => {
      const partition = { context: this.handle(), multiprocessors };
      this.#partitions.add(partition);
      return partition;
    });
  }

  /** Multiprocessors that partitions of these sizes get. */
  protected dealOut(sizes: readonly number[]): readonly number[] {
    return sizes.map((size) => Math.ceil(size / PARTITION_STEP) * PARTITION_STEP);
  }

  destroyPartition(partition: Partition): void {
    for (const stream of this.streams.values()) {
      if (stream.partition === partition) throw new Error("A partition still has streams.");
    }
    if (!this.#partitions.delete(partition)) throw new Error("There is no such partition.");
    this.call("destroyPartition");
  }

  createPartitionStream(partition: Partition, priority: number): bigint {
    this.call("createPartitionStream");
    if (!this.#partitions.has(partition)) throw failed("createPartitionStream", 201);
    return this.newStream(priority, partition);
  }

  /** Parameters live where the launch is written down; the driver has copied them when it returns. */
  protected freeze(_fn: bigint, params: bigint): Parameter {
    const most = 16;
    const table = this.#memory.upTo(params, most * 8);
    const values = Array.from({ length: Math.floor(table.byteLength / 8) }, (_, index) => {
      const address = new DataView(table.buffer, table.byteOffset).getBigUint64(index * 8, true);
      try {
        return this.#memory.upTo(address, 128).slice();
      } catch {
        return undefined;
      }
    });
    return (index, bytes) =>
      new DataView((values[index] as Uint8Array).buffer as ArrayBuffer, 0, bytes);
  }
}
