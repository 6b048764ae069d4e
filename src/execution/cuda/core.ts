/**
 * What the parts of one CUDA device share: driver and context, memory, native streams,
 * the arena that launches are written down in, and the state that enqueued work depends
 * on. Buffers, projections, streams and graphs belong to a core and know it by the few
 * methods they need; device.ts is the face of it.
 */

import { DisposedError, InvalidArgumentError, type NexusError } from "../../errors.ts";
import { refusePromise, requireRecord } from "../checks.ts";
import type { AllocateOptions, ComputeBudgets } from "../device.ts";
import { requireOpen } from "../operator-checks.ts";
import type { Operator } from "../operators.ts";
import { CudaBudgets } from "./budgets.ts";
import type { KernelSet } from "./bundle/kernel-set.ts";
import { CachingAllocator } from "./driver/allocator.ts";
import type { Context } from "./driver/context.ts";
import type { DeviceFacts, Driver } from "./driver/driver.ts";
import { EventPool } from "./driver/events.ts";
import { lockMemory } from "./driver/pinned.ts";
import { FaultWord } from "./faults.ts";
import { CudaGraph, type GraphOwner } from "./graph.ts";
import { type IssueSite, issue } from "./issue.ts";
import { LaunchArena, type NativeMemory } from "./launch/arena.ts";
import { type BufferOwner, GpuBuffer } from "./memory.ts";
import { MirrorPool, mirroredBy } from "./mirrors.ts";
import type { OperatorContext } from "./operators/context.ts";
import { encodeOperator } from "./operators/encode.ts";
import type { OwnedOperator } from "./operators/encoder.ts";
import { PartitionPool, type PartitionSet } from "./partitions.ts";
import type { ProjectionOwner } from "./projection.ts";
import { type CudaStream, Recorder, type Recording, type StreamOwner } from "./recorder.ts";
import { NativeStreams } from "./streams.ts";
import { type Job, Timeline } from "./timeline.ts";
import { type TransferOwner, Transfers } from "./transfers.ts";

/** What a core is made of. */
export interface CoreParts {
  readonly driver: Driver;
  readonly facts: DeviceFacts;
  /** Current; closed with the core. */
  readonly context: Context;
  /** Closed with the core. */
  readonly kernels: KernelSet;
  readonly float32: "ieee" | "tf32";
  /** Tests without kernels put something simpler here. */
  readonly encode?: (operator: Operator, context: OperatorContext) => OwnedOperator;
}

export class CudaCore
  implements BufferOwner, StreamOwner, GraphOwner, ProjectionOwner, TransferOwner, OperatorContext
{
  readonly driver: Driver;
  readonly facts: DeviceFacts;
  readonly kernels: KernelSet;
  readonly float32: "ieee" | "tf32";
  readonly allocator: CachingAllocator;
  readonly events: EventPool;
  readonly streams: NativeStreams;
  readonly arena: LaunchArena;
  readonly site: IssueSite;
  readonly fault: FaultWord;
  readonly transfers: Transfers;
  readonly #context: Context;
  readonly #encode: (operator: Operator, context: OperatorContext) => OwnedOperator;
  readonly #mirrors: MirrorPool;
  /** Pinned memory of the arena. */
  readonly #chunks: bigint[] = [];
  readonly #timeline: Timeline;
  readonly #partitions: PartitionPool;
  readonly #graphs = new Set<CudaGraph>();
  /** Buffers by the address of their mirror. */
  readonly #mirrored = new Map<bigint, GpuBuffer>();
  #eager = new Recorder();
  #capture: Recorder | undefined;
  #budgets: CudaBudgets;
  /** Bytes of L2 that are set aside for budgets at present. */
  #persistingBytes = 0;
  /** What the context's limit was before. */
  #persistingFound = 0;
  #closures = 0;
  #closing: Promise<void> | undefined;

  /**
   * @throws CudaError, OutOfDeviceMemoryError if the driver refuses something, DeviceUnavailableError if it is the kernels; these and the
   *   context are closed then, too
   */
  constructor({ driver, facts, context, kernels, float32, encode }: CoreParts) {
    this.driver = driver;
    this.facts = facts;
    this.kernels = kernels;
    this.float32 = float32;
    this.#context = context;
    this.#encode = encode ?? encodeOperator;
    const { multiprocessors, maxWindowBytes, ordinal } = facts;
    this.allocator = new CachingAllocator(driver);
    this.events = new EventPool(driver, false);
    try {
      // Now, since whoever may choose another device does so here and not at the first step.
      kernels.tryOut();
      this.streams = new NativeStreams(driver);
    } catch (error) {
      kernels.close();
      context.close();
      throw error;
    }
    const { streams, events } = this;
    this.site = { driver, streams, events, multiprocessors, maxWindowBytes };
    this.#timeline = new Timeline(driver, context, this.events, this.launchStream);
    this.#mirrors = new MirrorPool(driver);
    this.arena = new LaunchArena((bytes) => this.#grow(bytes));
    this.#partitions = new PartitionPool(driver, ordinal, (set) =>
      this.#timeline.afterwards(() => this.#destroyPartitions(set)),
    );
    this.#budgets = new CudaBudgets(multiprocessors, { units: [] });
    try {
      this.transfers = new Transfers(this);
      const word = this.#newBuffer(4, "fault word", { mirrored: true });
      this.fault = new FaultWord(driver, word, this.launchStream);
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  get owner(): this {
    return this;
  }

  get launchStream(): bigint {
    return this.streams.launch;
  }

  /** Closed on purpose, or dead with a fault of the GPU's. */
  get closed(): boolean {
    return this.#timeline.end !== undefined;
  }

  get closures(): number {
    return this.#closures;
  }

  get recorder(): Recorder {
    return this.#capture ?? this.#eager;
  }

  /** Also makes the context current. @throws DisposedError if the device is closed, DeviceFailedError if it failed */
  requireOpen(): void {
    this.requireLive();
    this.#context.current();
  }

  /** As above, where nothing is asked of the driver. */
  requireLive(): void {
    if (this.#timeline.end !== undefined) throw this.#timeline.end;
  }

  allocate(byteLength: number, label: string, options: AllocateOptions = {}): GpuBuffer {
    this.requireOpen();
    return this.#newBuffer(byteLength, label, options);
  }

  scratch(byteLength: number, label: string): GpuBuffer {
    return this.allocate(byteLength, label);
  }

  retire(buffer: GpuBuffer): void {
    this.#closures += 1;
    const { block, pinned } = buffer;
    this.#timeline.afterwards(() => {
      block.close();
      if (pinned === undefined) return;
      this.#mirrored.delete(pinned.address);
      this.#mirrors.give(pinned);
    });
  }

  upload(address: bigint, data: ArrayBufferView): void {
    this.transfers.upload(address, data);
  }

  encode(operator: Operator): OwnedOperator {
    this.requireOpen();
    return this.#encode(operator, this);
  }

  /** @param budgets checked */
  setComputeBudgets(budgets: ComputeBudgets): void {
    // A layer says them with every step, and they are the same ones most of the time.
    if (this.#budgets.meets(budgets)) return;
    this.requireOpen();
    const sizes = budgets.units.filter((units) => units > 0);
    const partitions =
      budgets.realisation === "partitioned" && sizes.length > 0
        ? this.#partitions.acquire(sizes)
        : undefined;
    const before = this.#budgets;
    this.#budgets = new CudaBudgets(this.facts.multiprocessors, budgets, partitions);
    if (before.partitions !== undefined) this.#partitions.release(before.partitions);
  }

  capture(origin: CudaStream, record: () => void): CudaGraph {
    this.requireOpen();
    requireRecord(record);
    if (this.#capture !== undefined) {
      throw new InvalidArgumentError("Captures cannot be nested. Finish the one under way first.");
    }
    const recorder = new Recorder(origin);
    this.#capture = recorder;
    try {
      refusePromise(record());
      const recording = recorder.finish();
      if (recording === undefined) {
        throw new InvalidArgumentError(
          "Nothing was enqueued in the capture, so there is no graph.",
        );
      }
      requireOpen(recording.resources);
      const graph = new CudaGraph(this, recording, this.#budgets);
      const { partitions } = this.#budgets;
      if (partitions !== undefined) partitions.users += 1;
      this.#graphs.add(graph);
      return graph;
    } catch (error) {
      recorder.discard();
      throw error;
    } finally {
      this.#capture = undefined;
    }
  }

  dropGraph(graph: CudaGraph): void {
    this.#graphs.delete(graph);
    this.#context.current();
    graph.destroy();
    const { partitions } = graph.budgets;
    if (partitions !== undefined) this.#partitions.release(partitions);
  }

  async synchronize(): Promise<void> {
    this.requireOpen();
    if (this.#capture !== undefined) {
      throw new InvalidArgumentError("Cannot synchronize inside a capture. Launch the graph.");
    }
    const recorder = this.#eager;
    this.#eager = new Recorder();
    const recording = recorder.finish();
    if (recording === undefined) {
      await this.#timeline.settled(this.#budgets);
      return;
    }
    try {
      requireOpen(recording.resources);
    } catch (error) {
      recorder.discard();
      throw error;
    }
    await this.#timeline.submit(this.#eagerJob(recording), this.#budgets);
  }

  submit(job: Job): Promise<void> {
    if (this.#capture !== undefined) {
      return Promise.reject(
        new InvalidArgumentError("Cannot launch a graph inside a capture. Launch it afterwards."),
      );
    }
    return this.#timeline.submit(job, this.#budgets);
  }

  begin({ persistingBytes }: CudaBudgets): void {
    this.#setAside(Math.min(persistingBytes, this.facts.maxPersistingL2Bytes));
  }

  #setAside(bytes: number): void {
    if (bytes === this.#persistingBytes) return;
    if (this.#persistingBytes === 0) this.#persistingFound = this.driver.persistingL2Limit();
    // The context can be others', too, and outlive the device.
    this.driver.setPersistingL2Limit(bytes > 0 ? bytes : this.#persistingFound);
    // Lines stay where they are until somebody says that they need not.
    if (bytes < this.#persistingBytes) this.driver.resetPersistingL2();
    this.#persistingBytes = bytes;
  }

  finish(mirrored: readonly GpuBuffer[]): NexusError | undefined {
    for (const buffer of mirrored) buffer.mirrorCurrent = true;
    return this.fault.take();
  }

  mirroredBy(recording: Recording): readonly GpuBuffer[] {
    return mirroredBy(recording, this.#mirrored);
  }

  reached(): Promise<void> {
    return this.#timeline.reached();
  }

  inTurn(enqueue: () => void): Promise<void> {
    return this.#timeline.inTurn(enqueue, this.#budgets);
  }

  carriedOut(enqueue: () => void): Promise<void> {
    return this.#timeline.carriedOut(enqueue, this.#budgets);
  }

  afterwards(action: () => void): void {
    this.#timeline.afterwards(action);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const failed = this.closed;
    this.#timeline.stop(new DisposedError("The device"));
    await this.#timeline.drain();
    const refused = this.#release();
    // After a failure of the GPU the driver refuses everything, and has freed it all.
    if (refused !== undefined && !failed) throw refused;
  }

  /** Frees everything, and the context last; nothing is in flight. @returns what the driver first refused */
  #release(): unknown {
    const { driver } = this;
    const errors: unknown[] = [];
    const attempt = (free: () => void): void => {
      try {
        free();
      } catch (error) {
        errors.push(error);
      }
    };
    attempt(() => this.#context.current());
    for (const graph of this.#graphs) attempt(() => graph.destroy());
    for (const stream of this.streams.drain()) attempt(() => driver.destroyStream(stream));
    for (const { partitions } of this.#partitions.drain()) {
      for (const partition of partitions) attempt(() => driver.destroyPartition(partition));
    }
    attempt(() => this.events.close());
    attempt(() => this.transfers?.close());
    attempt(() => this.#mirrors.close());
    for (const chunk of this.#chunks.splice(0)) attempt(() => driver.freePinned(chunk));
    attempt(() => this.#setAside(0));
    attempt(() => this.allocator.close());
    attempt(() => this.kernels.close());
    attempt(() => this.#context.close());
    this.#graphs.clear();
    return errors[0];
  }

  #newBuffer(byteLength: number, label: string, options: AllocateOptions): GpuBuffer {
    const { mirrored = false, zeroed = true } = options;
    const block = this.allocator.allocate(byteLength, label);
    try {
      // A mirror begins with zeros, and says what the buffer holds.
      if ((zeroed || mirrored) && byteLength > 0)
        this.driver.fillBytes(block.address, 0, byteLength, this.launchStream);
      const pinned = mirrored ? this.#mirrors.take(byteLength) : undefined;
      const buffer = new GpuBuffer(this, block, byteLength, label, pinned);
      if (pinned !== undefined) this.#mirrored.set(pinned.address, buffer);
      return buffer;
    } catch (error) {
      block.close();
      throw error;
    }
  }

  #eagerJob(recording: Recording): Job {
    return {
      prepare: (budgets) => {
        try {
          this.begin(budgets);
        } catch (error) {
          recording.dispose();
          throw error;
        }
      },
      issue: (budgets) => issue(recording, this.site, budgets),
      finish: () => {
        const fault = this.finish(this.mirroredBy(recording));
        recording.dispose();
        return fault;
      },
    };
  }

  #destroyPartitions({ partitions }: PartitionSet): void {
    this.#context.current();
    for (const partition of partitions) {
      for (const stream of this.streams.takeOff(partition)) this.driver.destroyStream(stream);
      this.driver.destroyPartition(partition);
    }
  }

  #grow(bytes: number): NativeMemory {
    const memory = lockMemory(this.driver, bytes, "kernel launches");
    this.#chunks.push(memory.address);
    return memory;
  }
}
