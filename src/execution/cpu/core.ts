/**
 * What the parts of one CPU device share: memory, kernels, workers, and the state
 * that enqueued work depends on. Buffers, projections, streams and graphs belong to
 * a core and know it by the few methods they need; device.ts is the face of it.
 */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import { refusePromise, requireRecord } from "../checks.ts";
import type { AllocateOptions, ComputeBudgets, DeviceBuffer, DeviceProperties } from "../device.ts";
import { requireOpen } from "../operator-checks.ts";
import type { Operator } from "../operators.ts";
import { ArgumentWriter } from "./arguments.ts";
import { equalShares, type WorkerShares, workerShares } from "./budgets.ts";
import { type BufferOwner, CpuBuffer } from "./buffer.ts";
import { CpuGraph, type GraphOwner } from "./graph.ts";
import type { Kernels } from "./kernels.ts";
import type { Block, DeviceMemory } from "./memory.ts";
import { writeBucket } from "./operators/bucket.ts";
import { writeCombine } from "./operators/combine.ts";
import { writeProject } from "./operators/project.ts";
import { writeRoute } from "./operators/route.ts";
import type { WorkerPool } from "./pool.ts";
import { buildProgram, OPERATOR_KIND, type ProgramNode } from "./program.ts";
import type { ProjectionOwner } from "./projection.ts";
import { type CpuStream, type EncodedOperator, Recorder, type StreamOwner } from "./recorder.ts";

/** Writers that stage parts of matrices at the same time: one copies while the workers pack for the other. */
const STAGING_SLOTS = 2;

export class DeviceCore implements BufferOwner, ProjectionOwner, StreamOwner, GraphOwner {
  readonly memory: DeviceMemory;
  readonly kernels: Kernels;
  readonly properties: DeviceProperties;
  readonly #pool: WorkerPool;
  #eager = new Recorder();
  #capture: Recorder | undefined;
  #shares: WorkerShares;
  #closures = 0;
  #freeSlots = STAGING_SLOTS;
  readonly #slotWaiters: (() => void)[] = [];

  constructor(
    memory: DeviceMemory,
    kernels: Kernels,
    pool: WorkerPool,
    properties: DeviceProperties,
  ) {
    this.memory = memory;
    this.kernels = kernels;
    this.properties = properties;
    this.#pool = pool;
    this.#shares = equalShares(properties.computeUnits);
  }

  /** Closed on purpose, or dead with one of its workers. */
  get closed(): boolean {
    return this.#pool.end !== undefined;
  }

  get closures(): number {
    return this.#closures;
  }

  get recorder(): Recorder {
    return this.#capture ?? this.#eager;
  }

  /** @throws DisposedError if the device is closed, DeviceFailedError if a worker ended */
  requireOpen(): void {
    if (this.#pool.end !== undefined) throw this.#pool.end;
  }

  allocate(byteLength: number, label: string, options: AllocateOptions = {}): CpuBuffer {
    this.requireOpen();
    const { zeroed = true, mirrored = false } = options;
    const block = this.memory.allocate(byteLength, label, zeroed);
    return new CpuBuffer(this, block, byteLength, label, mirrored);
  }

  /** Submitted programs may still use the block, so it is given back when they are over. */
  retireBlock(block: Block): void {
    this.#closures += 1;
    this.#pool.afterwards(() => this.memory.release(block));
  }

  setComputeBudgets(budgets: ComputeBudgets): void {
    this.requireOpen();
    this.#shares = workerShares(budgets, this.properties);
  }

  encode(operator: Operator): EncodedOperator {
    const to = new ArgumentWriter(this, String(operator.kind));
    switch (operator.kind) {
      case "route":
        writeRoute(operator, to);
        break;
      case "bucket":
        writeBucket(operator, to, this.kernels.maxTileRows(), (elements, label) =>
          this.allocate(elements * 4, label),
        );
        break;
      case "project":
        writeProject(operator, to);
        break;
      case "combine":
        writeCombine(operator, to);
        break;
      case "decode":
        throw new InvalidArgumentError(
          "decode: the CPU device has no such operator (its decodeTokens is 0). Enqueue bucket, project and combine.",
        );
      default:
        throw new InvalidArgumentError(
          `Unknown operator ${shown((operator as { kind: unknown }).kind)}. Use route, bucket, project or combine.`,
        );
    }
    to.checkOutputs();
    return { kind: OPERATOR_KIND[operator.kind], words: to.words, resources: to.resources };
  }

  capture(origin: CpuStream, record: () => void): CpuGraph {
    this.requireOpen();
    requireRecord(record);
    if (this.#capture !== undefined) {
      throw new InvalidArgumentError("Captures cannot be nested. Finish the one under way first.");
    }
    const recorder = new Recorder(origin);
    this.#capture = recorder;
    try {
      refusePromise(record());
    } finally {
      this.#capture = undefined;
    }
    if (recorder.nodes.length === 0) {
      throw new InvalidArgumentError("Nothing was enqueued in the capture, so there is no graph.");
    }
    return new CpuGraph(this, recorder);
  }

  async synchronize(): Promise<void> {
    this.requireOpen();
    if (this.#capture !== undefined) {
      throw new InvalidArgumentError("Cannot synchronize inside a capture. Launch the graph.");
    }
    const { nodes, resources } = this.#eager;
    if (nodes.length === 0) {
      await this.#pool.settled();
      return;
    }
    this.#eager = new Recorder();
    requireOpen(resources);
    await this.#pool.submit(buildProgram(nodes), this.#shares);
  }

  submit(image: Int32Array): Promise<void> {
    if (this.#capture !== undefined) {
      return Promise.reject(
        new InvalidArgumentError("Cannot launch a graph inside a capture. Launch it afterwards."),
      );
    }
    return this.#pool.submit(image, this.#shares);
  }

  /** Does something on the host once everything submitted so far is over, and before what is submitted later. */
  async inTurn(action: () => void): Promise<void> {
    this.requireOpen();
    await this.#pool.inTurn(action);
  }

  owns(buffer: DeviceBuffer): buffer is CpuBuffer {
    return buffer instanceof CpuBuffer && buffer.owner === this;
  }

  copyInTurn(target: CpuBuffer, source: CpuBuffer, bytes: number): Promise<void> {
    const view = ({ address }: CpuBuffer) =>
      new Uint8Array(this.memory.wasm.buffer, address, bytes);
    return this.inTurn(() => view(target).set(view(source)));
  }

  /** Runs work of the device's own, outside the budgets. */
  runNodes(nodes: readonly ProgramNode[]): Promise<void> {
    return this.#pool.submit(buildProgram(nodes), equalShares(this.properties.computeUnits));
  }

  async withStaging<T>(byteLength: number, work: (address: number) => Promise<T>): Promise<T> {
    if (this.#freeSlots === 0) {
      await new Promise<void>((resolve) => this.#slotWaiters.push(resolve));
    } else {
      this.#freeSlots -= 1;
    }
    try {
      this.requireOpen();
      const block = this.memory.allocate(byteLength, "staging", false);
      try {
        return await work(block.address);
      } finally {
        this.memory.release(block);
      }
    } finally {
      const next = this.#slotWaiters.shift();
      if (next === undefined) this.#freeSlots += 1;
      else next();
    }
  }

  close(): Promise<void> {
    return this.#pool.close();
  }
}
