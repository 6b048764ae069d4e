/**
 * A projection on the GPU, whichever way its weights lie: what it is of, its sizes, one block of memory with the
 * matrices and behind them their biases, in float32, [count, n]. How matrices lie and are written is said by the two kinds:
 * plain-projection.ts and packed-projection.ts.
 *
 * n and k are the outputs and the inputs, rounded up to a multiple of 64. Of a gated projection n is twice the
 * (rounded) outputs: rows are interleaved, gate 0, value 0, gate 1, ... So are biases.
 */

import { shown } from "../../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import type { MatrixView } from "../../tensor.ts";
import type { Projection, ProjectionPart, ProjectionSpec } from "../device.ts";
import { checkBias, checkExtents, checkPlace } from "../projection-checks.ts";
import type { CudaBuffer } from "./buffer.ts";
import type { LaunchContext, OwnKernelWork } from "./operators/kernel-work.ts";
import { padded, type RowType, requireRowType } from "./rows.ts";
import {
  type Mapped,
  type TensorMapEncoder,
  type TensorMapMeta,
  TensorMaps,
} from "./tensor-maps.ts";
import type { MemoryRange, Work } from "./work.ts";

/** How weights get to the device, and what has been made of them back; all in the order of the calls. */
export interface WeightTransfers {
  /** Writes device memory now; work enqueued later finds it there. */
  upload(address: bigint, data: ArrayBufferView): void;
  /**
   * Copies `chunk` (at most STAGING_BYTES) to device memory, then runs the work that is made for its
   * address there, in order. `makeWork` is called when there is room for the chunk, which may be later;
   * if it throws, nothing is copied. The copy is taken from `chunk` before this returns its promise or while it
   * is pending; the promise resolves when the work is finished.
   */
  uploadAndRun(
    chunk: ArrayBufferView,
    makeWork: (stagedAddress: bigint) => readonly Work[],
  ): Promise<void>;
  /** Runs a kernel; resolves when it is done. Its launch is given back. */
  runKernel(work: OwnKernelWork): Promise<void>;
  /** Reads device memory from `byteOffset` on. */
  read(source: CudaBuffer, target: ArrayBufferView, byteOffset: number): Promise<void>;
}

/** What a projection needs of the device it belongs to. */
export interface ProjectionOwner extends LaunchContext, TensorMapEncoder {
  /** What `Projection.owner` is compared with: the same object that the device's buffers have as theirs. */
  readonly owner: object;
  readonly transfers: WeightTransfers;
  /** Device memory, all zero. @throws OutOfDeviceMemoryError */
  scratch(bytes: number, label: string): CudaBuffer;
}

/** Largest piece of a matrix that is staged at once: enough that copies run at full speed. */
export const STAGING_BYTES = 16 * 2 ** 20;

/** Where the parts of a projection's memory begin: what an allocation of their own would be aligned to. */
const ALIGNMENT = 256;

/** Rows of all panels, and elements of a matrix, are numbered by an int32 in the kernels. */
const MOST_NUMBERED = 0x7fffffff;

/** The sizes of a projection, padding included. */
export interface ProjectionSizes {
  /** Element type of the weights. */
  readonly element: RowType;
  /** Rows of a matrix: 2 for every output if gated. */
  readonly n: number;
  /** Elements of a row. */
  readonly k: number;
}

export abstract class CudaProjection implements Projection, ProjectionSizes {
  readonly owner: object;
  readonly spec: ProjectionSpec;
  /** Element type of the weights as they are written. */
  readonly element: RowType;
  /** Rows of a matrix, padding included: 2 for every output if gated. */
  readonly n: number;
  /** Elements of a row, padding included; also the pitch of the rows it reads. */
  readonly k: number;
  /** Bytes that products read of all matrices, without biases. */
  abstract readonly weightBytes: number;
  /** Where those lie. */
  abstract readonly weights: MemoryRange;
  protected readonly device: ProjectionOwner;
  readonly #buffer: CudaBuffer;
  readonly #biasOffset: number;
  /** The biases as they are on the device: gates and values are written apart and lie interleaved. */
  readonly #bias: Float32Array | null;
  readonly #maps: TensorMaps;

  /**
   * Reserves the memory, all zero.
   *
   * @param sizes of the spec
   * @param bytes of all matrices
   * @throws OutOfDeviceMemoryError
   */
  protected constructor(
    device: ProjectionOwner,
    spec: ProjectionSpec,
    { element, n, k }: ProjectionSizes,
    bytes: number,
    label: string,
  ) {
    this.device = device;
    this.owner = device.owner;
    this.spec = { ...spec };
    this.element = element;
    this.n = n;
    this.k = k;
    this.#biasOffset = aligned(bytes);
    this.#bias = spec.bias ? new Float32Array(spec.count * n) : null;
    this.#buffer = device.scratch(this.#biasOffset + (this.#bias?.byteLength ?? 0), label);
    this.#maps = new TensorMaps(device, this.#buffer.address);
  }

  /**
   * @throws ShapeError if the matrix is not [outputs, inputs] in the projection's element type, or
   *   does not lie within its data
   * @throws DisposedError if the projection is closed before all of it is written
   */
  abstract write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void>;

  /**
   * Fills all weights with noise over [-scale, scale].
   *
   * @throws InvalidArgumentError, DisposedError
   */
  abstract fill(seed: number, scale: number): Promise<void>;

  /** The tensor map through which a kernel with such a box reads the weights. */
  abstract tensorMap(meta: Omit<TensorMapMeta, "argument">): Uint8Array;

  get byteLength(): number {
    return this.#buffer.byteLength;
  }

  get label(): string {
    return this.#buffer.label;
  }

  get closed(): boolean {
    return this.#buffer.closed;
  }

  /** Address of the first matrix. */
  get address(): bigint {
    return this.#buffer.address;
  }

  /** Pitch of the rows it puts out. */
  get outputPitch(): number {
    return this.n / partsOf(this.spec);
  }

  /** Address of the biases from one matrix on, or null. */
  bias(matrix: number): bigint | null {
    if (this.#bias === null) return null;
    return this.address + BigInt(this.#biasOffset + matrix * this.n * 4);
  }

  writeBias(index: number, part: ProjectionPart, bias: Float32Array): void {
    checkPlace(this, index, part);
    checkBias(this, bias);
    const { outputs } = this.spec;
    const own = (this.#bias as Float32Array).subarray(index * this.n, (index + 1) * this.n);
    const first = placeOf(this.spec, part);
    const step = partsOf(this.spec);
    for (let i = 0; i < outputs; i++) own[first + i * step] = bias[i] as number;
    this.device.transfers.upload(this.bias(index) as bigint, own);
  }

  [Symbol.dispose](): void {
    this.#buffer[Symbol.dispose]();
    this.#maps[Symbol.dispose]();
  }

  /** A tensor map of what lies at `address`. */
  protected mapped(what: Mapped, meta: Omit<TensorMapMeta, "argument">): Uint8Array {
    return this.#maps.of(what, meta);
  }

  /** @throws DisposedError */
  protected requireOpen(): void {
    if (this.closed) throw new DisposedError(`Projection "${this.label}"`);
  }
}

/** Matrices that every output is computed from. */
export function partsOf({ gated }: ProjectionSpec): number {
  return gated ? 2 : 1;
}

/** Which of an output's rows is a part's: the gate comes before its value. */
export function placeOf({ gated }: ProjectionSpec, part: ProjectionPart): number {
  return gated && part === "value" ? 1 : 0;
}

/** A size of memory, rounded up so that what comes behind begins where it may. */
export function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/** @throws InvalidArgumentError if the spec makes no sense */
export function sizesOf(spec: ProjectionSpec): ProjectionSizes {
  const element = elementOf(spec);
  return { element, n: partsOf(spec) * padded(spec.outputs), k: padded(spec.inputs) };
}

/** @throws InvalidArgumentError if there are more rows, in panels of so many columns, or elements than kernels can number */
export function checkNumbers(
  { count }: ProjectionSpec,
  { n, k }: ProjectionSizes,
  panel: number,
): void {
  const rows = count * (k / panel) * n;
  if (rows > MOST_NUMBERED) {
    throw new InvalidArgumentError(
      `A projection of ${count} matrices has ${rows} rows of ${panel} inputs, padding included. Use fewer than 2^31.`,
    );
  }
  if (n * k > MOST_NUMBERED) {
    throw new InvalidArgumentError(
      `A projection's matrices have ${n} x ${k} elements, padding included. Use fewer than 2^31.`,
    );
  }
}

/** The element type that weights are kept in. @throws InvalidArgumentError if the spec makes no sense */
function elementOf(spec: ProjectionSpec): RowType {
  checkExtents(spec);
  const { dtype, input, output, count, gated } = spec;
  requireRowType("Weights", dtype);
  requireRowType("Input rows", input);
  if (output === "float32") {
    if (gated || count > 1) {
      throw new InvalidArgumentError(
        `A projection to float32 is ${gated ? "gated" : `of ${count} matrices`}. Use one matrix without a gate, or "rows" as its output.`,
      );
    }
    return dtype === input ? dtype : "float32";
  }
  if (output !== "rows") {
    throw new InvalidArgumentError(
      `A projection's output is ${shown(output)}. Use "rows" or "float32".`,
    );
  }
  if (dtype !== input && input !== "float32") {
    throw new InvalidArgumentError(
      `${dtype} weights would have to be rounded for rows of ${input}. Use rows of ${dtype} or float32: what rowLayout() gives for the layer's weights.`,
    );
  }
  return input;
}
