/**
 * Weights on the GPU: all matrices of a projection as the kernels read them, then
 * their biases, in one block of memory.
 *
 * Layout: [count, k / 64, n, 64]; k is the inputs and n the outputs, both rounded up
 * to a multiple of 64, the rest zero. A panel is 64 columns of all rows, so that what
 * a tile of a product reads of it lies in one piece (of 16-bit weights): kilobytes,
 * where rows in one piece would make it 128 to 512 bytes here and there, which memory
 * delivers more slowly. A gate, whose output is float32, lies as [count, n, k]:
 * kernels of its own read it row by row. Of a gated projection n is twice the
 * (rounded) outputs: rows are interleaved, gate 0, value 0, gate 1, ... Elements have
 * the type of the rows that the projection reads; a gate keeps its own type if it is
 * that of the rows, else float32. Biases are float32 [count, n], in the same order.
 *
 * Writing a matrix is staged: a piece of the source goes to the device as it stands
 * and a kernel puts its elements in place.
 */

import { shown } from "../../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import { BYTES_PER_ELEMENT, type MatrixView } from "../../tensor.ts";
import type { Projection, ProjectionPart, ProjectionSpec } from "../device.ts";
import { checkBias, checkExtents, checkMatrix, checkPlace } from "../projection-checks.ts";
import type { CudaBuffer } from "./buffer.ts";
import { chunksOf, type MatrixChunk } from "./matrix-chunks.ts";
import { persistentGrid } from "./operators/grids.ts";
import { kernelWork, type LaunchContext, type OwnKernelWork } from "./operators/kernel-work.ts";
import { packWork } from "./operators/pack.ts";
import { PANEL, padded, type RowType, requireRowType } from "./rows.ts";
import { type TensorMapEncoder, type TensorMapMeta, TensorMaps } from "./tensor-maps.ts";
import type { MemoryRange, Work } from "./work.ts";

/** Brings host memory to the device and runs work that reads it. */
export interface WeightUploader {
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
}

/** What a projection needs of the device it belongs to. */
export interface ProjectionOwner extends LaunchContext, TensorMapEncoder, WeightUploader {
  /** What `Projection.owner` is compared with: the same object that the device's buffers have as theirs. */
  readonly owner: object;
  /** Device memory, all zero. @throws OutOfDeviceMemoryError */
  scratch(bytes: number, label: string): CudaBuffer;
  /** Writes device memory now; work enqueued later finds it there. */
  upload(address: bigint, data: ArrayBufferView): void;
}

/** Largest piece of a matrix that is staged at once: enough that copies run at full speed. */
export const STAGING_BYTES = 16 * 2 ** 20;

/** Where biases begin: what an allocation of their own would be aligned to. */
const ALIGNMENT = 256;

/** Rows of all panels, and elements of a matrix, are numbered by an int32 in the kernels. */
const MOST_NUMBERED = 0x7fffffff;

export class CudaProjection implements Projection {
  readonly owner: object;
  readonly spec: ProjectionSpec;
  /** Element type of the weights. */
  readonly element: RowType;
  /** Rows of a matrix, padding included: 2 for every output if gated. */
  readonly n: number;
  /** Elements of a row, padding included; also the pitch of the rows it reads. */
  readonly k: number;
  /** Columns that lie together: of a row, and below that the next row's. */
  readonly #panel: number;
  readonly #device: ProjectionOwner;
  readonly #buffer: CudaBuffer;
  readonly #biasOffset: number;
  /** The biases as they are on the device: gates and values are written apart and lie interleaved. */
  readonly #bias: Float32Array | null;
  readonly #maps: TensorMaps;

  /**
   * Reserves the memory, all zero.
   *
   * @throws InvalidArgumentError if the spec makes no sense
   * @throws OutOfDeviceMemoryError
   */
  constructor(device: ProjectionOwner, spec: ProjectionSpec, label: string) {
    this.element = elementOf(spec);
    const { count, inputs, outputs, gated, bias } = spec;
    this.#device = device;
    this.owner = device.owner;
    this.spec = { ...spec };
    this.n = (gated ? 2 : 1) * padded(outputs);
    this.k = padded(inputs);
    this.#panel = spec.output === "float32" ? this.k : PANEL;
    if (this.#rows > MOST_NUMBERED) {
      throw new InvalidArgumentError(
        `A projection of ${count} matrices has ${this.#rows} rows of ${this.#panel} inputs, padding included. Use fewer than 2^31.`,
      );
    }
    if (this.n * this.k > MOST_NUMBERED) {
      throw new InvalidArgumentError(
        `A projection's matrices have ${this.n} x ${this.k} elements, padding included. Use fewer than 2^31.`,
      );
    }
    const weights = count * this.n * this.k * BYTES_PER_ELEMENT[this.element];
    this.#biasOffset = Math.ceil(weights / ALIGNMENT) * ALIGNMENT;
    this.#bias = bias ? new Float32Array(count * this.n) : null;
    const biases = this.#bias?.byteLength ?? 0;
    this.#buffer = device.scratch(this.#biasOffset + biases, label);
    this.#maps = new TensorMaps(device, this.#buffer.address);
  }

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

  /** Bytes of all matrices, without biases. */
  get weightBytes(): number {
    return this.spec.count * this.n * this.k * BYTES_PER_ELEMENT[this.element];
  }

  /** Where the matrices lie. */
  get weights(): MemoryRange {
    return { address: this.address, bytes: this.weightBytes };
  }

  /** Pitch of the rows it puts out. */
  get outputPitch(): number {
    return this.n / this.#parts;
  }

  get #parts(): number {
    return this.spec.gated ? 2 : 1;
  }

  /** Rows of all panels. */
  get #rows(): number {
    return this.spec.count * (this.k / this.#panel) * this.n;
  }

  /** Elements from `PANEL` columns to the next. */
  get #panelStep(): number {
    return this.#panel === PANEL ? PANEL * this.n : PANEL;
  }

  /** Address of the biases from one matrix on, or null. */
  bias(matrix: number): bigint | null {
    if (this.#bias === null) return null;
    return this.address + BigInt(this.#biasOffset + matrix * this.n * 4);
  }

  /**
   * The tensor map through which a kernel with such a box reads the panels: of two dimensions
   * all of them one below the other, of four [count, k / 64, n, 64].
   */
  tensorMap(meta: Omit<TensorMapMeta, "argument">): Uint8Array {
    const { element, n } = this;
    const panels = this.k / this.#panel;
    const shape =
      meta.block_size.length === 2
        ? [this.#rows, this.#panel]
        : [this.spec.count, panels, n, this.#panel];
    return this.#maps.of({ element, shape }, meta);
  }

  /**
   * @throws ShapeError if the matrix is not [outputs, inputs] in the projection's element type, or
   *   does not lie within its data
   * @throws DisposedError if the projection is closed before all of it is written
   */
  async write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void> {
    checkPlace(this, index, part);
    checkMatrix(this, matrix);
    for (const chunk of chunksOf(matrix, STAGING_BYTES)) {
      const made: OwnKernelWork[] = [];
      try {
        await this.#device.uploadAndRun(chunk.data, (staged) => {
          // Here and not before the wait for room: what is closed meanwhile is somebody else's memory.
          if (this.closed) throw new DisposedError(`Projection "${this.label}"`);
          made.push(this.#packing(index, part, matrix, chunk, staged));
          return made;
        });
      } finally {
        for (const { launch } of made) launch[Symbol.dispose]();
      }
    }
  }

  writeBias(index: number, part: ProjectionPart, bias: Float32Array): void {
    checkPlace(this, index, part);
    checkBias(this, bias);
    const { outputs } = this.spec;
    const own = (this.#bias as Float32Array).subarray(index * this.n, (index + 1) * this.n);
    const first = this.#place(part);
    for (let i = 0; i < outputs; i++) own[first + i * this.#parts] = bias[i] as number;
    this.#device.upload(this.bias(index) as bigint, own);
  }

  /**
   * The kernel that fills all weights with noise over [-scale, scale]; its launch is the caller's to
   * dispose of.
   *
   * @throws InvalidArgumentError, DisposedError
   */
  fillWork(seed: number, scale: number): OwnKernelWork {
    if (this.closed) throw new DisposedError(`Projection "${this.label}"`);
    if (!Number.isSafeInteger(seed)) {
      throw new InvalidArgumentError(`seed is ${shown(seed)}. Use a whole number.`);
    }
    if (!Number.isFinite(scale) || scale < 0) {
      throw new InvalidArgumentError(`scale is ${shown(scale)}. Use a finite number, 0 or more.`);
    }
    const { count, inputs, outputs } = this.spec;
    const kernel = this.#device.kernels.find({ operator: "fill", element: this.element });
    const validRows = this.#parts * outputs;
    return kernelWork(
      this.#device,
      kernel,
      {
        destination: this.address,
        seed,
        matrices: count,
        n: this.n,
        k: this.k,
        valid_rows: validRows,
        valid_columns: inputs,
        scale,
        row_step: this.#panel,
        panel_step: this.#panelStep,
      },
      persistentGrid(kernel.entry, count * validRows, inputs),
    );
  }

  [Symbol.dispose](): void {
    this.#buffer[Symbol.dispose]();
    this.#maps[Symbol.dispose]();
  }

  /** Which of an output's rows is a part's: the gate comes before its value. */
  #place(part: ProjectionPart): number {
    return this.spec.gated && part === "value" ? 1 : 0;
  }

  #packing(
    index: number,
    part: ProjectionPart,
    { rowStride, columnStride }: MatrixView,
    chunk: MatrixChunk,
    staged: bigint,
  ): OwnKernelWork {
    const row = chunk.row * this.#parts + this.#place(part);
    const element = index * this.n * this.k + row * this.#panel;
    return packWork(this.#device, {
      source: staged + BigInt(chunk.origin * chunk.data.BYTES_PER_ELEMENT),
      sourceType: this.spec.dtype as RowType,
      rows: chunk.rows,
      columns: chunk.columns,
      rowStride,
      columnStride,
      target: this.address + BigInt(element * BYTES_PER_ELEMENT[this.element]),
      targetType: this.element,
      firstColumn: chunk.column,
      rowStep: this.#parts * this.#panel,
      panelStep: this.#panelStep,
      // The padding has held zeros since the memory was reserved.
      pitch: chunk.columns,
    });
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
