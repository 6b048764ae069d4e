/**
 * The CUDA device: an NVIDIA GPU behind the `Device` interface, driven through libcuda
 * alone. A compute unit is a streaming multiprocessor; the main thread describes work
 * and hands it over.
 *
 * The parts: driver/ (libcuda, checked), bundle/ (which kernels there are), operators/
 * (what the operators become), launch/ (launches as bytes), recorder.ts and issue.ts
 * (streams and events into calls), graph.ts (the same, captured), timeline.ts (what is
 * under way), memory.ts and transfers.ts (who has which bytes and how they get there).
 */

import { shown } from "../../errors/wording.ts";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
  OutOfDeviceMemoryError,
} from "../../errors.ts";
import type { DType, Tensor } from "../../tensor.ts";
import { checkBudgets } from "../budgets.ts";
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
import { checkAllocation, checkLabel } from "../memory-checks.ts";
import { checkExtents, checkPacked } from "../projection-checks.ts";
import { BesideProjection } from "./beside-projection.ts";
import { KernelSet } from "./bundle/kernel-set.ts";
import { CudaCore } from "./core.ts";
import { Context } from "./driver/context.ts";
import type { Driver } from "./driver/driver.ts";
import { openDriver } from "./driver/native-driver.ts";
import { CudaGraph } from "./graph.ts";
import { migOfDevice } from "./mig/instances.ts";
import { type NvmlEnergy, openNvmlEnergy } from "./nvml/energy.ts";
import { PackedProjection } from "./packed-projection.ts";
import { PlainProjection } from "./plain-projection.ts";
import { CudaProjection } from "./projection.ts";
import { cudaProperties } from "./properties.ts";
import { CudaEvent, CudaStream } from "./recorder.ts";
import { rowLayoutOf } from "./rows.ts";
import { timeBackToBack, timeReplays } from "./timing.ts";

export interface CudaDeviceOptions {
  /** Which of the visible GPUs. Default: the first. */
  readonly ordinal?: number;
  /**
   * How float32 rows are multiplied: `ieee` as they are (the default), `tf32` cut to
   * 10 bits of mantissa for the tensor cores.
   */
  readonly float32?: "ieee" | "tf32";
}

const FALLBACK = 'Use "cpu", or "auto" without a GPU\'s number: the CPU device does the same work.';

/**
 * Opens a GPU.
 *
 * @throws InvalidArgumentError if an option makes no sense
 * @throws DeviceUnavailableError if there is no such GPU or it cannot be used, saying why
 */
export async function openCudaDevice(options: CudaDeviceOptions = {}): Promise<CudaDevice> {
  checkOptions(options);
  const opened = openDriver();
  if ("reason" in opened) {
    throw new DeviceUnavailableError(unavailable(opened.reason));
  }
  return openOnDriver(opened.driver, options);
}

/** @internal As openCudaDevice(), with a driver that is open already. */
export async function openOnDriver(
  driver: Driver,
  options: CudaDeviceOptions = {},
): Promise<CudaDevice> {
  checkOptions(options);
  const { ordinal = 0, float32 = "ieee" } = options;
  try {
    const count = driver.deviceCount();
    if (ordinal >= count) throw new DeviceUnavailableError(noSuchGpu(ordinal, count));
    const facts = driver.deviceFacts(ordinal);
    const kernels = await KernelSet.open(driver, facts);
    const [energy, mig] = await Promise.all([openNvmlEnergy(facts.uuid), migOfDevice(facts.uuid)]);
    const properties = cudaProperties(facts, kernels, driver.partitionsUnavailable(), mig);
    try {
      const context = new Context(driver, ordinal);
      const core = new CudaCore({ driver, facts, context, kernels, float32 });
      return new CudaDevice(core, properties, energy);
    } catch (error) {
      energy.close();
      throw error;
    }
  } catch (error) {
    // A GPU without any room is of no use either.
    const refused = error instanceof DeviceFailedError || error instanceof OutOfDeviceMemoryError;
    if (!refused) throw error;
    throw new DeviceUnavailableError(unavailable(error.message), { cause: error });
  }
}

function checkOptions({ ordinal = 0, float32 = "ieee" }: CudaDeviceOptions): void {
  if (!Number.isInteger(ordinal) || ordinal < 0) {
    throw new InvalidArgumentError(
      `ordinal is ${shown(ordinal)}. Use a whole number, 0 for the first GPU.`,
    );
  }
  if (float32 !== "ieee" && float32 !== "tf32") {
    throw new InvalidArgumentError(`float32 is ${shown(float32)}. Use "ieee" or "tf32".`);
  }
}

function noSuchGpu(ordinal: number, count: number): string {
  const visible = process.env["CUDA_VISIBLE_DEVICES"];
  const found = count === 0 ? "no GPU is visible" : `there is no GPU ${ordinal}, only ${count}`;
  const why =
    visible === undefined
      ? "Check nvidia-smi."
      : `CUDA_VISIBLE_DEVICES is ${JSON.stringify(visible)}: unset it, or name GPUs that exist.`;
  return unavailable(`${found}. ${why}`);
}

function unavailable(reason: string): string {
  return `There is no CUDA device: ${reason.replace(/\.?$/, ".")} ${FALLBACK}`;
}

export class CudaDevice implements Device {
  readonly properties: DeviceProperties;
  readonly energy: EnergySource;
  readonly #core: CudaCore;
  readonly #energy: Pick<NvmlEnergy, "close">;

  /** @internal Use openCudaDevice(). */
  constructor(
    core: CudaCore,
    properties: DeviceProperties,
    energy: Pick<NvmlEnergy, "source" | "close">,
  ) {
    this.#core = core;
    this.properties = properties;
    this.energy = energy.source;
    this.#energy = energy;
  }

  get closed(): boolean {
    return this.#core.closed;
  }

  allocate(byteLength: number, label: string, options: AllocateOptions = {}): DeviceBuffer {
    checkAllocation(label, options);
    return this.#core.allocate(byteLength, label, options);
  }

  write(target: DeviceBuffer, source: ArrayBufferView, byteOffset = 0): void {
    this.#core.transfers.write(target, source, byteOffset);
  }

  read(source: DeviceBuffer, target: ArrayBufferView, byteOffset = 0): Promise<void> {
    return this.#core.transfers.read(source, target, byteOffset);
  }

  copy(target: DeviceBuffer, source: DeviceBuffer, byteLength: number): Promise<void> {
    return this.#core.transfers.copy(target, source, byteLength);
  }

  memory(): MemoryUsage {
    const { usedBytes, peakBytes, allocations } = this.#core.allocator.statistics;
    return { usedBytes, peakBytes, allocations, limitBytes: this.properties.memoryBytes };
  }

  rowLayout(width: number, weights: DType): RowLayout {
    return rowLayoutOf(width, weights);
  }

  writeRows(target: DeviceBuffer, layout: RowLayout, source: Tensor): void {
    this.#core.transfers.writeRows(target, layout, source);
  }

  copyRows(
    target: DeviceBuffer,
    layout: RowLayout,
    source: DeviceBuffer,
    dtype: DType,
    rows: number,
  ): Promise<void> {
    return this.#core.transfers.copyRows(target, layout, source, dtype, rows);
  }

  createProjection(spec: ProjectionSpec, label: string): Projection {
    this.#core.requireOpen();
    checkLabel("A projection", label);
    checkExtents(spec);
    checkPacked(spec, this.properties.packsWeights);
    const { packed = false } = spec;
    const Kind =
      packed === "beside" ? BesideProjection : packed ? PackedProjection : PlainProjection;
    return new Kind(this.#core, spec, label);
  }

  async fillUniform(projection: Projection, seed: number, scale: number): Promise<void> {
    this.#core.requireOpen();
    if (!(projection instanceof CudaProjection) || projection.owner !== this.#core) {
      throw new InvalidArgumentError("The projection to fill is not one of this device.");
    }
    await projection.fill(seed, scale);
  }

  createStream(options: StreamOptions): Stream {
    this.#core.requireOpen();
    return new CudaStream(this.#core, options);
  }

  createEvent(label: string): DeviceEvent {
    this.#core.requireOpen();
    checkLabel("An event", label);
    return new CudaEvent(this.#core, label);
  }

  setComputeBudgets(budgets: ComputeBudgets): void {
    this.#core.requireLive();
    checkBudgets(budgets, this.properties);
    if (budgets.realisation === "mig") {
      throw new InvalidArgumentError(
        'MIG instances are devices of their own, which this device cannot give budgets on. Open them with openMigPool(), and use "shared" or "partitioned" here.',
      );
    }
    this.#core.setComputeBudgets(budgets);
  }

  capture(origin: Stream, record: () => void): CudaGraph {
    if (!(origin instanceof CudaStream) || origin.owner !== this.#core) {
      throw new InvalidArgumentError("The stream to capture from is not one of this device.");
    }
    if (origin.closed) throw new DisposedError("The stream to capture from");
    return this.#core.capture(origin, record);
  }

  synchronize(): Promise<void> {
    return this.#core.synchronize();
  }

  /**
   * Times replays on the GPU, each between events of its own.
   *
   * @param graphs one graph, or several that take turns
   * @param repeats replays in all
   * @returns microseconds of each replay
   * @throws InvalidArgumentError if a graph is not one of this device, or `repeats` not 1 or more
   */
  async time(graphs: Graph | readonly Graph[], repeats: number): Promise<Float64Array> {
    const each = [graphs].flat().map((graph) => this.#graph(graph));
    return timeReplays(this.#core, each, repeats);
  }

  /**
   * Times replays that follow each other without a gap.
   *
   * @param graphs one graph, or several that take turns
   * @param repeats replays in all
   * @returns microseconds a replay, on average
   * @throws InvalidArgumentError if a graph is not one of this device, or `repeats` not 1 or more
   */
  async timeBackToBack(graphs: Graph | readonly Graph[], repeats: number): Promise<number> {
    const each = [graphs].flat().map((graph) => this.#graph(graph));
    return timeBackToBack(this.#core, each, repeats);
  }

  async close(): Promise<void> {
    try {
      await this.#core.close();
    } finally {
      this.#energy.close();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #graph(graph: Graph): CudaGraph {
    if (graph instanceof CudaGraph && graph.owner === this.#core) return graph;
    throw new InvalidArgumentError("The graph to time is not one of this device.");
  }
}
