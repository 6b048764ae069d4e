/**
 * The CPU device: worker threads over one shared memory, behind the `Device`
 * interface. A compute unit is a worker thread; the main thread only describes
 * work and hands it over.
 *
 * The parts: memory.ts (who has which bytes), recorder.ts (streams and events into
 * programs), program.ts (what a program is), pool.ts and worker.ts (who runs it),
 * scheduler.ts (in what order), operators/ (what the operators do), kernels.ts (with
 * what arithmetic).
 */

import { availableParallelism } from "node:os";
import { shown } from "../../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import { type DType, type Tensor, toFloat32 } from "../../tensor.ts";
import type {
  AllocateOptions,
  ComputeBudgets,
  Device,
  DeviceBuffer,
  DeviceEvent,
  DeviceProperties,
  EnergySource,
  Graph,
  MemoryUsage,
  Projection,
  ProjectionSpec,
  RowLayout,
  Stream,
  StreamOptions,
} from "../device.ts";
import {
  checkAllocation,
  checkHostMemory,
  checkLabel,
  checkLayout,
  checkRange,
  checkRowCount,
  checkRowSource,
  checkRowWidth,
} from "../memory-checks.ts";
import type { CpuBuffer } from "./buffer.ts";
import { DeviceCore } from "./core.ts";
import { compileKernels, instantiateKernels } from "./kernels.ts";
import { DeviceMemory } from "./memory.ts";
import { fillNode } from "./operators/pack.ts";
import { WorkerPool } from "./pool.ts";
import { CpuProjection, projectionLayout } from "./projection.ts";
import { cpuProperties } from "./properties.ts";
import { openRapl } from "./rapl.ts";
import { CpuEvent, CpuStream } from "./recorder.ts";

export interface CpuDeviceOptions {
  /** Worker threads. Default: as many as the process can run at once. */
  readonly threads?: number;
}

/** Each worker has its own scratch memory and stack, and atomics do not scale for ever. */
const MOST_THREADS = 1024;

/**
 * Opens a CPU device.
 *
 * @throws InvalidArgumentError if `threads` is not a whole number from 1 to 1024
 * @throws DeviceUnavailableError if this runtime cannot run the kernels
 * @throws DeviceFailedError if a worker thread cannot be started
 */
export async function openCpuDevice(options: CpuDeviceOptions = {}): Promise<CpuDevice> {
  const threads = options.threads ?? availableParallelism();
  if (!Number.isInteger(threads) || threads < 1 || threads > MOST_THREADS) {
    throw new InvalidArgumentError(
      `threads is ${shown(threads)}. Use a whole number from 1 to ${MOST_THREADS}.`,
    );
  }
  const compiled = await compileKernels();
  const memory = new DeviceMemory();
  const kernels = instantiateKernels(compiled.module, memory.wasm);
  const pool = await WorkerPool.start(threads, memory, compiled, kernels);
  const properties = cpuProperties(threads, memory.limitBytes, compiled.variant);
  return new CpuDevice(new DeviceCore(memory, kernels, pool, properties), openRapl());
}

export class CpuDevice implements Device {
  readonly energy: EnergySource;
  readonly #core: DeviceCore;

  /** @internal Use openCpuDevice(). */
  constructor(core: DeviceCore, energy: EnergySource) {
    this.#core = core;
    this.energy = energy;
  }

  get properties(): DeviceProperties {
    return this.#core.properties;
  }

  get closed(): boolean {
    return this.#core.closed;
  }

  /** The host reads all device memory at once: what is `mirrored` as it is, the rest when it is its turn. */
  allocate(byteLength: number, label: string, options: AllocateOptions = {}): DeviceBuffer {
    checkAllocation(label, options);
    return this.#core.allocate(byteLength, label, options);
  }

  write(target: DeviceBuffer, source: ArrayBufferView, byteOffset = 0): void {
    checkHostMemory("source", source);
    const bytes = this.#bytes(target, byteOffset, source.byteLength);
    bytes.set(new Uint8Array(source.buffer, source.byteOffset, source.byteLength));
  }

  async read(source: DeviceBuffer, target: ArrayBufferView, byteOffset = 0): Promise<void> {
    checkHostMemory("target", target);
    const from = this.#range(source, byteOffset, target.byteLength);
    const bytes = this.#view(from, byteOffset, target.byteLength);
    const into = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
    if (from.mirrored) into.set(bytes);
    else await this.#core.inTurn(() => into.set(bytes));
  }

  async copy(target: DeviceBuffer, source: DeviceBuffer, byteLength: number): Promise<void> {
    const to = this.#range(target, 0, byteLength);
    const from = this.#range(source, 0, byteLength);
    await this.#core.copyInTurn(to, from, byteLength);
  }

  memory(): MemoryUsage {
    return this.#core.memory.usage();
  }

  /** Float32 without gaps, whatever the weights are: the kernels convert weights as they read them. */
  rowLayout(width: number, weights: DType): RowLayout {
    checkRowWidth(width);
    if (!this.properties.weightDTypes.includes(weights)) {
      throw new InvalidArgumentError(
        `Rows for weights of ${shown(weights)} are not supported. Use one of ${this.properties.weightDTypes.join(", ")}.`,
      );
    }
    return { dtype: "float32", width, pitch: width };
  }

  writeRows(target: DeviceBuffer, layout: RowLayout, source: Tensor): void {
    requireRows(layout);
    checkRowSource(layout, source);
    this.write(target, toFloat32(source));
  }

  async copyRows(
    target: DeviceBuffer,
    layout: RowLayout,
    source: DeviceBuffer,
    dtype: DType,
    rows: number,
  ): Promise<void> {
    requireRows(layout);
    checkRowCount(rows);
    if (dtype !== "float32") {
      throw new InvalidArgumentError(
        `The CPU device cannot copy ${shown(dtype)} rows: it computes in float32. Convert them on the host.`,
      );
    }
    const bytes = rows * layout.width * 4;
    this.#bytes(target, 0, bytes).set(this.#bytes(source, 0, bytes));
  }

  createProjection(spec: ProjectionSpec, label: string): Projection {
    checkLabel("A projection", label);
    const { kernels } = this.#core;
    const layout = projectionLayout(spec, kernels);
    const buffer = this.#core.allocate(layout.byteLength, label);
    return new CpuProjection(this.#core, spec, layout, buffer, kernels);
  }

  async fillUniform(projection: Projection, seed: number, scale: number): Promise<void> {
    this.#core.requireOpen();
    if (!(projection instanceof CpuProjection) || projection.owner !== this.#core) {
      throw new InvalidArgumentError("The projection to fill is not one of this device.");
    }
    if (projection.closed) throw new DisposedError(`Projection "${projection.label}"`);
    if (!Number.isInteger(seed) || !Number.isFinite(scale)) {
      throw new InvalidArgumentError(
        `Cannot fill with seed ${shown(seed)} and scale ${shown(scale)}. Use a whole number and a finite number.`,
      );
    }
    await this.#core.runNodes([fillNode(projection, seed, scale)]);
  }

  createStream(options: StreamOptions): Stream {
    this.#core.requireOpen();
    return new CpuStream(this.#core, options);
  }

  createEvent(label: string): DeviceEvent {
    this.#core.requireOpen();
    checkLabel("An event", label);
    return new CpuEvent(this.#core, label);
  }

  setComputeBudgets(budgets: ComputeBudgets): void {
    this.#core.setComputeBudgets(budgets);
  }

  capture(origin: Stream, record: () => void): Graph {
    if (!(origin instanceof CpuStream) || origin.owner !== this.#core) {
      throw new InvalidArgumentError("The stream to capture from is not one of this device.");
    }
    if (origin.closed) throw new DisposedError("The stream to capture from");
    return this.#core.capture(origin, record);
  }

  synchronize(): Promise<void> {
    return this.#core.synchronize();
  }

  close(): Promise<void> {
    return this.#core.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#core.close();
  }

  /** Bytes `begin` to `begin + length - 1` of a buffer, if it has them. */
  #bytes(buffer: DeviceBuffer, begin: number, length: number): Uint8Array {
    return this.#view(this.#range(buffer, begin, length), begin, length);
  }

  #view({ address }: CpuBuffer, begin: number, length: number): Uint8Array {
    return new Uint8Array(this.#core.memory.wasm.buffer, address + begin, length);
  }

  /** A buffer of this device that has these bytes. */
  #range(buffer: DeviceBuffer, begin: number, length: number): CpuBuffer {
    this.#core.requireOpen();
    if (!this.#core.owns(buffer)) {
      throw new InvalidArgumentError("The buffer is not one of this device.");
    }
    if (buffer.closed) throw new DisposedError(`Buffer "${buffer.label}"`);
    checkRange(buffer, begin, length);
    return buffer;
  }
}

/** @throws InvalidArgumentError unless the rows are as rowLayout() gives them */
function requireRows(layout: RowLayout): void {
  checkLayout(layout);
  const { dtype, width, pitch } = layout;
  if (dtype === "float32" && pitch === width) return;
  throw new InvalidArgumentError(
    `The CPU device has no ${shown(dtype)} rows of ${shown(width)} values ${shown(pitch)} apart. Use the layout that its rowLayout() gives.`,
  );
}
