/**
 * The one interface between the planes and the hardware.
 *
 * A device owns memory, weights in a layout of its own, streams, events and
 * captured graphs. It offers a handful of operators (operators.ts) and runs
 * them; it knows nothing of why an expert sits in a slice or what a model is.
 * The CPU device is in cpu/; a CUDA device stands beside it behind this same
 * interface.
 *
 * Promises every device keeps:
 *
 * - Order. Operators on one stream run in the order they were enqueued. Between
 *   streams only events order: work enqueued on a stream after `wait(event)`
 *   starts after everything enqueued on the recording stream before
 *   `record(event)` is finished.
 * - Time. `enqueue`, `record` and `wait` return at once and never block the
 *   event loop. Enqueued work may start at once or only when `synchronize()` is
 *   called; it is finished when the promise of `synchronize()`, or of the
 *   graph's `launch()`, resolves.
 * - Waiting. `write` and `writeRows` have read their source when they return. For large
 *   ones a device may wait until it is done with what was launched before, and the event
 *   loop with it.
 * - Memory. `write`, `read` and `copy` move bytes in the order of their calls, before
 *   whatever is launched later. `copy` and `read` come after what was launched before, too,
 *   but for reads of mirrored buffers; these, `write`, `writeRows` and `copyRows` are not
 *   ordered against that, nor against a read that waits for it: touching a buffer that
 *   unfinished work or an unfinished read uses is the caller's mistake. Fresh memory holds zeros, unless it need not. A buffer, stream,
 *   event, graph or projection can be closed twice; closing a device closes all it owns.
 * - Bits. An operator's output depends on its inputs and its description alone:
 *   not on the stream, the compute budgets, the number of compute units, whether
 *   it runs eagerly or from a graph, or on which other rows share its tile.
 *   (`mostTokens` is part of the description: a device may have one kernel for a
 *   few tokens and another for many.)
 * - Replay. Launching a graph runs the operators that were enqueued while it
 *   was captured, on the same buffers, with no planning and no allocation. It
 *   reads buffer contents (token count, expert-to-lane table) and the compute
 *   budgets anew each time, so one graph serves any routing and, as long as the
 *   realisation is `shared`, any division of the device.
 * - Failure. Bad arguments throw before any work starts. A fault found while
 *   running (NaN logits) rejects that launch and leaves the device usable.
 */

import type { DType, MatrixView, Tensor } from "../tensor.ts";
import type { Activation, Operator } from "./operators.ts";

/** Something the device can do, or why it cannot. */
export type Availability =
  | { readonly available: true }
  | { readonly available: false; readonly reason: string };

/** How weights are kept: as they are, packed, or both, `"beside"`: as they are and packed beside that. */
export type Packing = boolean | "beside";

/** Whether projections can be `packed`, or why they cannot. */
export type WeightPacking =
  | {
      readonly available: true;
      /** What may join gates and values of packed weights. */
      readonly activations: readonly Activation["kind"][];
    }
  | { readonly available: false; readonly reason: string };

/** The two kinds of devices that there are. */
export type DeviceKind = "cpu" | "cuda";

/** How compute budgets can be made real. */
export type Realisation = "shared" | "partitioned" | "mig";

/** A MIG instance of a GPU, as NVML lists it: a device by itself, which a process of its own opens. */
export interface MigInstance {
  /** `MIG-...`: what `CUDA_VISIBLE_DEVICES` takes. */
  readonly uuid: string;
  /** As nvidia-smi numbers the GPU it is part of. */
  readonly gpu: number;
  readonly gpuInstance: number;
  readonly computeInstance: number;
  /** E.g. `"1g.18gb"`; the whole device name where the driver has no such part in it. */
  readonly profile: string;
  /** Null where the driver does not tell. */
  readonly computeUnits: number | null;
  readonly memoryBytes: number | null;
}

/** What a device is and what it can do; fixed for its lifetime. */
export interface DeviceProperties {
  readonly kind: DeviceKind;
  readonly name: string;
  /** Worker threads of the CPU device; streaming multiprocessors of a GPU. */
  readonly computeUnits: number;
  /** Smallest step of a compute budget, in compute units (a fraction where units are time-sliced). */
  readonly computeUnitGranularity: number;
  /** Most bytes this device can ever hold. */
  readonly memoryBytes: number;
  /** What the memory transfers at most, or null where the system does not tell. */
  readonly memoryBytesPerSecond: number | null;
  /** Last-level cache in bytes, or null where the system does not tell. */
  readonly cacheBytes: number | null;
  /** Instruction-set or hardware features the kernels use, for people to read. */
  readonly features: readonly string[];
  /** Element types that weights may have. */
  readonly weightDTypes: readonly DType[];
  /** Element types that router logits may have. */
  readonly logitsDTypes: readonly DType[];
  /** `mig`: whether the device's GPU has instances to open with `openMigPool()`; no budgets of this device become such. */
  readonly realisations: Readonly<Record<Realisation, Availability>>;
  /** MIG instances of the device's GPU when it was opened; none where `realisations.mig` says why. */
  readonly migInstances: readonly MigInstance[];
  /** Whether a bandwidth or cache budget is enforced by the hardware or only accounted for. */
  readonly enforces: {
    readonly bandwidth: Availability;
    readonly cache: Availability;
  };
  /** Whether `BucketRows.busy` is filled. */
  readonly timesExperts: Availability;
  /** Streams that a layer's experts are best spread over where nobody asks for another number. */
  readonly recommendedStreams: number;
  /** Most tokens that a `decode` operator takes; 0 where the device has no such operator. */
  readonly decodeTokens: number;
  /** Whether bfloat16 weights can be packed into fewer bits (`ProjectionSpec.packed`). */
  readonly packsWeights: WeightPacking;
}

/** Bytes in use, the most that were ever in use, and the most there can be. */
export interface MemoryUsage {
  readonly usedBytes: number;
  readonly peakBytes: number;
  readonly limitBytes: number;
  readonly allocations: number;
}

/** A block of device memory. */
export interface DeviceBuffer extends Disposable {
  readonly byteLength: number;
  readonly label: string;
  readonly closed: boolean;
}

/** What is particular about a buffer. */
export interface AllocateOptions {
  /**
   * Whoever writes the buffer in a launch also brings it to host memory, beside
   * other work; a read after the launch then costs next to nothing. For the few
   * hundred bytes that the host looks at after every step.
   */
  readonly mirrored?: boolean;
  /** False: contents may be anything until they are written, for what is about to be. Default: true. */
  readonly zeroed?: boolean;
}

/**
 * How rows of activations lie in device memory where operators read and write
 * them: element type, values in a row, and elements from one row to the next. What
 * lies between `width` and `pitch` is zero.
 */
export interface RowLayout {
  readonly dtype: DType;
  readonly width: number;
  readonly pitch: number;
}

/** Bytes of `rows` rows. */
export function rowBytes({ dtype, pitch }: RowLayout, rows: number): number {
  return rows * pitch * (dtype === "float32" ? 4 : 2);
}

/**
 * One or more weight matrices of equal shape, each mapping `inputs` values to
 * `outputs` values, in whatever layout the device's kernels like best.
 */
export interface ProjectionSpec {
  /** Number of matrices: one for a dense layer, one per expert otherwise. */
  readonly count: number;
  readonly inputs: number;
  readonly outputs: number;
  readonly dtype: DType;
  /** Element type of the rows it reads: `rowLayout(inputs, ...)` of the layer's weights. */
  readonly input: DType;
  /**
   * What it puts out. `rows`: rows in the layout of its input's element type.
   * `float32`: [rows, outputs] in float32 without gaps, for logits and gates, which
   * decide and must not be rounded; neither gated nor more than one matrix.
   */
  readonly output: "rows" | "float32";
  /** Every output is computed from two rows, `gate` and `value`, joined by the activation. */
  readonly gated: boolean;
  readonly bias: boolean;
  /**
   * Keeps the weights in 12 bits each, without loss, where the device can (`packsWeights`): bfloat16 weights on bfloat16
   * rows. For `decode`, and for `project` on buckets: a gated projection gathers its rows, one that is not gated reads them as they
   * lie. There is no input scale. With "beside" the weights are kept as they are, too, for whatever operator, and packed ones are read where
   * that takes less time. Default: false.
   */
  readonly packed?: Packing;
}

/** What products read of a packed weight. Beside that there are 4 bytes for each row of a matrix, and patches, a hundredth at most. */
export const BYTES_PER_PACKED_WEIGHT = 1.5;

/** The two matrices of a gated projection; one that is not gated has a value alone. */
export type ProjectionPart = "value" | "gate";

/** Weight matrices on a device, in its own layout. */
export interface Projection extends Disposable {
  readonly spec: ProjectionSpec;
  readonly byteLength: number;
  /**
   * Copies one [outputs, inputs] matrix in; any strides, so transposed and interleaved sources need no copy first. Gate and value
   * of a packed matrix take effect together, once both have been written; of one that is kept both ways each at once.
   *
   * @throws UnpackableWeightsError
   */
  write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void>;
  /** Copies the [outputs] bias of one matrix in. */
  writeBias(index: number, part: ProjectionPart, bias: Float32Array): void;
}

/** Whose budget a stream is charged to, and how urgent it is. */
export interface StreamOptions {
  /** Which compute budget the stream's work is charged to: 0 to MAX_GROUPS - 1. */
  readonly group: number;
  /** Higher runs first where two streams of equal claim are ready. */
  readonly priority: number;
}

/** Number of compute budgets a device keeps. */
export const MAX_GROUPS = 8;

/** Operators that run one after the other. */
export interface Stream extends Disposable {
  readonly group: number;
  readonly priority: number;
  enqueue(operator: Operator): void;
  record(event: DeviceEvent): void;
  wait(event: DeviceEvent): void;
}

/** A point on a stream that other streams can wait for. */
export interface DeviceEvent extends Disposable {
  readonly label: string;
}

/** How the compute units are shared out among the groups; the units never add up to more than the device has. */
export interface ComputeBudgets {
  readonly realisation: Realisation;
  /** Compute units of each group, by group index. */
  readonly units: readonly number[];
  /** Bytes of last-level cache set aside for each group's weights; for devices that enforce it. */
  readonly cacheBytes?: readonly number[];
}

/** A buffer in the place of another one, for one launch of a graph. */
export interface Substitute {
  /** One that the graph was captured with, not mirrored. */
  readonly buffer: DeviceBuffer;
  /** What the launch uses instead. Not mirrored if it is written. */
  readonly by: DeviceBuffer;
  /** Bytes from the beginning that operators may touch, which both have. */
  readonly byteLength: number;
  /**
   * What the graph does with it. A device whose graphs hold on to an address copies: what is read before the
   * graph runs, what is written afterwards.
   */
  readonly access: "read" | "write";
}

/** Operators captured once, to be launched any number of times. */
export interface Graph extends Disposable {
  /** Number of operators in it. */
  readonly nodes: number;
  /**
   * Runs them all; resolves when they are finished.
   *
   * @param substitutes for this launch alone; default: none
   */
  launch(substitutes?: readonly Substitute[]): Promise<void>;
}

/** A counter of energy spent since some point in the past, or why there is none. */
export type EnergySource =
  | {
      readonly available: true;
      /** What is counted, e.g. `"RAPL package-0"`. */
      readonly domain: string;
      /** Shortest window for which a difference of two readings means anything, in seconds. */
      readonly minimumWindowSeconds: number;
      /** Joules since an arbitrary start; never decreases. Slow: never called on the hot path. */
      joules(): Promise<number>;
      /** Watts drawn at this moment; absent where only energy is counted. */
      watts?(): Promise<number>;
    }
  | { readonly available: false; readonly reason: string };

/** What Nexus computes on: `openDevice()` gives one. Its promises are in the head of this file. */
export interface Device extends AsyncDisposable {
  readonly properties: DeviceProperties;
  readonly closed: boolean;
  readonly energy: EnergySource;

  /** @throws OutOfDeviceMemoryError naming the label and the sizes. */
  allocate(byteLength: number, label: string, options?: AllocateOptions): DeviceBuffer;
  write(target: DeviceBuffer, source: ArrayBufferView, byteOffset?: number): void;
  read(source: DeviceBuffer, target: ArrayBufferView, byteOffset?: number): Promise<void>;
  /**
   * Copies the first `byteLength` bytes of one buffer into another, after all that was launched
   * before. Once the promise resolves every later call and launch finds them there.
   */
  copy(target: DeviceBuffer, source: DeviceBuffer, byteLength: number): Promise<void>;
  memory(): MemoryUsage;

  /** How the device wants rows of `width` values that go through weights of this element type. */
  rowLayout(width: number, weights: DType): RowLayout;
  /** Writes a host tensor [*, width] of floats as rows, converted and padded. */
  writeRows(target: DeviceBuffer, layout: RowLayout, source: Tensor): void;
  /** Copies dense rows [rows, width] of `dtype` on the device into the layout. */
  copyRows(
    target: DeviceBuffer,
    layout: RowLayout,
    source: DeviceBuffer,
    dtype: DType,
    rows: number,
  ): Promise<void>;

  /** Reserves room for weights, all zero until written. @throws OutOfDeviceMemoryError */
  createProjection(spec: ProjectionSpec, label: string): Projection;
  /**
   * Fills all weights with uniform noise over [-scale, scale]: synthetic layers of
   * many gigabytes in seconds. The same seed gives the same weights on every device
   * of this kind; biases and padding stay as they are.
   */
  fillUniform(projection: Projection, seed: number, scale: number): Promise<void>;

  createStream(options: StreamOptions): Stream;
  createEvent(label: string): DeviceEvent;
  /** Takes effect with the next submission; work in flight keeps the budgets it started with. */
  setComputeBudgets(budgets: ComputeBudgets): void;

  /**
   * Runs `record` and keeps what it enqueues instead of running it. `origin` is
   * the stream the captured work begins on; other streams join by waiting for
   * an event that descends from it.
   */
  capture(origin: Stream, record: () => void): Graph;

  /** Submits everything enqueued and resolves when it is finished. */
  synchronize(): Promise<void>;

  /** Stops the device and frees all it owns. */
  close(): Promise<void>;
}
