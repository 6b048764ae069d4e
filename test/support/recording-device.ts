/**
 * A device that computes nothing and takes down what it is asked to do: memory is
 * host memory, operators are kept as they came. It stands for devices unlike the
 * CPU's, with rows of 16 bits and an operator for a handful of tokens.
 */

import type {
  AllocateOptions,
  ComputeBudgets,
  Device,
  DeviceBuffer,
  DeviceEvent,
  DeviceProperties,
  Graph,
  MemoryUsage,
  Projection,
  ProjectionSpec,
  RowLayout,
  Stream,
  StreamOptions,
} from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";
import type { DType, Tensor } from "../../src/tensor.ts";

/** What a stream was asked to do, in the order in which all streams were asked. */
export type Enqueued =
  | { readonly stream: RecordingStream; readonly operator: Operator }
  | { readonly stream: RecordingStream; readonly wait: string };

export class RecordingBuffer implements DeviceBuffer {
  readonly byteLength: number;
  readonly label: string;
  readonly mirrored: boolean;
  readonly bytes: Uint8Array;
  closed = false;

  constructor(byteLength: number, label: string, { mirrored = false }: AllocateOptions = {}) {
    this.byteLength = byteLength;
    this.label = label;
    this.mirrored = mirrored;
    this.bytes = new Uint8Array(byteLength);
  }

  [Symbol.dispose](): void {
    this.closed = true;
  }
}

export class RecordingStream implements Stream {
  readonly group: number;
  readonly priority: number;
  readonly #log: (entry: Enqueued) => void;

  constructor({ group, priority }: StreamOptions, log: (entry: Enqueued) => void) {
    this.group = group;
    this.priority = priority;
    this.#log = log;
  }

  enqueue(operator: Operator): void {
    this.#log({ stream: this, operator });
  }

  record(): void {}

  wait(event: DeviceEvent): void {
    this.#log({ stream: this, wait: event.label });
  }

  [Symbol.dispose](): void {}
}

const GPU: DeviceProperties = {
  kind: "cuda",
  name: "A recording device",
  computeUnits: 132,
  computeUnitGranularity: 1,
  memoryBytes: 2 ** 40,
  memoryBytesPerSecond: 3.35e12,
  cacheBytes: 2 ** 25,
  features: [],
  weightDTypes: ["float32", "bfloat16", "float16"],
  logitsDTypes: ["float32", "bfloat16"],
  realisations: {
    shared: { available: true },
    partitioned: { available: true },
    mig: { available: false, reason: "There is none." },
  },
  migInstances: [],
  enforces: {
    bandwidth: { available: false, reason: "Nothing runs." },
    cache: { available: true },
  },
  timesExperts: { available: false, reason: "Nothing runs." },
  recommendedStreams: 1,
  decodeTokens: 4,
  packsWeights: { available: true, activations: ["silu"] },
};

/** Rows are this many elements, or a multiple of it. */
const PITCH = 64;

export class RecordingDevice implements Device {
  readonly properties: DeviceProperties;
  readonly closed = false;
  readonly energy = { available: false, reason: "Nothing runs." } as const;
  readonly buffers: RecordingBuffer[] = [];
  readonly projections: ProjectionSpec[] = [];
  /** Labels of the buffers that write() was called for. */
  readonly writes: string[] = [];
  /** Buffers that copyRows() was called for, and from which element type. */
  readonly rowCopies: string[] = [];
  readonly budgets: ComputeBudgets[] = [];
  /** How long a submission takes. */
  runMilliseconds = 0;
  /** Every submission: its entries, and whether a graph was launched. */
  readonly runs: { readonly entries: readonly Enqueued[]; readonly graph: boolean }[] = [];
  /** Labels of buffers that were read, and whether while something ran. */
  readonly reads: { readonly label: string; readonly meanwhile: boolean }[] = [];
  #running = false;
  #entries: Enqueued[] = [];

  constructor(properties: Partial<DeviceProperties> = {}) {
    this.properties = { ...GPU, ...properties };
  }

  /** Operators of the last submission. */
  get operators(): Operator[] {
    const entries = this.runs.at(-1)?.entries ?? [];
    return entries.flatMap((entry) => ("operator" in entry ? [entry.operator] : []));
  }

  allocate(byteLength: number, label: string, options?: AllocateOptions): RecordingBuffer {
    const buffer = new RecordingBuffer(byteLength, label, options);
    this.buffers.push(buffer);
    return buffer;
  }

  write(target: DeviceBuffer, source: ArrayBufferView, byteOffset = 0): void {
    this.writes.push(target.label);
    const bytes = new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
    (target as RecordingBuffer).bytes.set(bytes, byteOffset);
  }

  async read(source: DeviceBuffer, target: ArrayBufferView, byteOffset = 0): Promise<void> {
    const { bytes, label } = source as RecordingBuffer;
    this.reads.push({ label, meanwhile: this.#running });
    await new Promise(setImmediate);
    const into = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
    into.set(bytes.subarray(byteOffset, byteOffset + target.byteLength));
  }

  async copy(target: DeviceBuffer, source: DeviceBuffer, byteLength: number): Promise<void> {
    const { bytes } = source as RecordingBuffer;
    (target as RecordingBuffer).bytes.set(bytes.subarray(0, byteLength));
  }

  memory(): MemoryUsage {
    return { usedBytes: 0, peakBytes: 0, limitBytes: 0, allocations: 0 };
  }

  rowLayout(width: number, weights: DType): RowLayout {
    return { dtype: weights, width, pitch: Math.ceil(width / PITCH) * PITCH };
  }

  writeRows(target: DeviceBuffer, _layout: RowLayout, _source: Tensor): void {
    this.writes.push(target.label);
  }

  async copyRows(
    target: DeviceBuffer,
    layout: RowLayout,
    _source: DeviceBuffer,
    dtype: DType,
    rows: number,
  ): Promise<void> {
    this.rowCopies.push(`${rows} rows of ${dtype} to ${layout.dtype} in ${target.label}`);
  }

  createProjection(spec: ProjectionSpec, _label: string): Projection {
    this.projections.push(spec);
    return {
      spec,
      byteLength: spec.count * spec.inputs * spec.outputs * 2,
      async write() {},
      writeBias() {},
      [Symbol.dispose]() {},
    };
  }

  async fillUniform(): Promise<void> {}

  createStream(options: StreamOptions): RecordingStream {
    return new RecordingStream(options, (entry) => this.#entries.push(entry));
  }

  createEvent(label: string): DeviceEvent {
    return { label, [Symbol.dispose]() {} };
  }

  setComputeBudgets(budgets: ComputeBudgets): void {
    this.budgets.push(budgets);
  }

  capture(_origin: Stream, record: () => void): Graph {
    record();
    const entries = this.#entries;
    this.#entries = [];
    return {
      nodes: entries.length,
      launch: async () => {
        this.runs.push({ entries, graph: true });
        await this.#pass();
      },
      [Symbol.dispose]() {},
    };
  }

  async synchronize(): Promise<void> {
    this.runs.push({ entries: this.#entries, graph: false });
    this.#entries = [];
    await this.#pass();
  }

  async #pass(): Promise<void> {
    this.#running = true;
    if (this.runMilliseconds > 0) {
      await new Promise((resolve) => setTimeout(resolve, this.runMilliseconds));
    }
    this.#running = false;
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}
