/**
 * Weights on the CPU device: all matrices of a projection in the kernels' packed
 * layout, then their biases in float32, in one block of memory.
 *
 * Writing a matrix is staged: the main thread copies a part of the source into
 * device memory as it stands, the workers pack it, and so on. The copy takes runs
 * of memory, not elements, whichever way the matrix is strided.
 */

import { shown } from "../../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import type { DType, MatrixView } from "../../tensor.ts";
import { BYTES_PER_ELEMENT } from "../../tensor.ts";
import type { Projection, ProjectionPart, ProjectionSpec, WeightPacking } from "../device.ts";
import {
  checkBias,
  checkExtents,
  checkMatrix,
  checkPacked,
  checkPlace,
} from "../projection-checks.ts";
import type { CpuBuffer } from "./buffer.ts";
import { DTYPE_CODE, type Kernels, type WeightDType } from "./kernels.ts";
import type { DeviceMemory } from "./memory.ts";
import { packNode } from "./operators/pack.ts";
import type { ProgramNode } from "./program.ts";

/** What a projection needs of the device it belongs to. */
export interface ProjectionOwner {
  readonly closed: boolean;
  readonly memory: DeviceMemory;
  /** Runs device work of the device's own. */
  runNodes(nodes: readonly ProgramNode[]): Promise<void>;
  /** Lends room for one part of a matrix; at most a few are out at a time. */
  withStaging<T>(byteLength: number, work: (address: number) => Promise<T>): Promise<T>;
}

/** Weight types that the kernels can read. */
export const WEIGHT_DTYPES = Object.keys(DTYPE_CODE) as WeightDType[];

export const PACKS_WEIGHTS: WeightPacking = {
  available: false,
  reason: "The CPU device has no kernels for packed weights.",
};

/** Part of a matrix that is staged at once: the last-level cache holds it until it is packed. */
export const STAGING_BYTES = 4 * 2 ** 20;

/** Beyond this distance between neighbours, elements are copied one by one, so that staging does not copy gaps. */
const LONGEST_GAP = 4;

const ALIGNMENT = 64;

/** Where the parts of a projection lie, in bytes from its start. */
export interface ProjectionLayout {
  readonly matrixBytes: number;
  readonly biasOffset: number;
  /** Bytes from one matrix's biases to the next. */
  readonly biasBytes: number;
  readonly byteLength: number;
}

/** @throws InvalidArgumentError if the spec makes no sense */
export function projectionLayout(spec: ProjectionSpec, kernels: Kernels): ProjectionLayout {
  checkExtents(spec);
  checkPacked(spec, PACKS_WEIGHTS);
  if (!isWeightDType(spec.dtype)) {
    throw new InvalidArgumentError(
      `Weights cannot be ${shown(spec.dtype)}. Use ${WEIGHT_DTYPES.join(", ")}.`,
    );
  }
  if (spec.input !== "float32") {
    throw new InvalidArgumentError(
      `A projection's input is ${shown(spec.input)}, and rows on the CPU device are float32. Use the dtype that rowLayout() gives.`,
    );
  }
  if (spec.output !== "rows" && spec.output !== "float32") {
    throw new InvalidArgumentError(
      `A projection's output is ${shown(spec.output)}. Use "rows" or "float32".`,
    );
  }
  if (spec.output === "float32" && (spec.gated || spec.count > 1)) {
    throw new InvalidArgumentError(
      `A projection with output "float32" is one ungated matrix; this one has ${spec.count}, ${spec.gated ? "gated" : "ungated"}. Use output "rows".`,
    );
  }
  const packed = kernels.packedBytes(
    DTYPE_CODE[spec.dtype],
    spec.outputs,
    spec.inputs,
    spec.gated ? 1 : 0,
  );
  const matrixBytes = Math.ceil(packed / ALIGNMENT) * ALIGNMENT;
  const biasBytes = spec.bias ? (spec.gated ? 2 : 1) * spec.outputs * 4 : 0;
  const biasOffset = matrixBytes * spec.count;
  return { matrixBytes, biasOffset, biasBytes, byteLength: biasOffset + biasBytes * spec.count };
}

function isWeightDType(dtype: DType): dtype is WeightDType {
  return dtype in DTYPE_CODE;
}

export class CpuProjection implements Projection {
  readonly owner: ProjectionOwner;
  readonly spec: ProjectionSpec;
  readonly layout: ProjectionLayout;
  readonly dtypeCode: number;
  readonly panelOutputs: number;
  readonly #buffer: CpuBuffer;

  constructor(
    owner: ProjectionOwner,
    spec: ProjectionSpec,
    layout: ProjectionLayout,
    buffer: CpuBuffer,
    kernels: Kernels,
  ) {
    this.owner = owner;
    this.spec = { ...spec };
    this.layout = layout;
    this.dtypeCode = DTYPE_CODE[spec.dtype as WeightDType];
    this.panelOutputs = kernels.panelOutputs(spec.gated ? 1 : 0);
    this.#buffer = buffer;
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

  /** Byte address of the first packed matrix. */
  get address(): number {
    return this.#buffer.address;
  }

  /** Number of panels in one matrix. */
  get panels(): number {
    return Math.ceil(this.spec.outputs / this.panelOutputs);
  }

  /**
   * @throws ShapeError if the matrix is not [outputs, inputs] in the projection's element type, or
   *   does not lie within its data
   * @throws DisposedError if the projection is closed before all of it is written
   */
  async write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void> {
    checkPlace(this, index, part);
    checkMatrix(this, matrix);
    const { inputs } = this.spec;
    const rowBytes = inputs * BYTES_PER_ELEMENT[matrix.dtype];
    const panelsAtOnce = Math.max(1, Math.floor(STAGING_BYTES / (rowBytes * this.panelOutputs)));
    const step = panelsAtOnce * this.panelOutputs;
    for (let first = 0; first < matrix.rows; first += step) {
      const count = Math.min(step, matrix.rows - first);
      const rows = rowsOf(matrix, first, count);
      const staged = stagedLayout(rows);
      await this.owner.withStaging(staged.elements * BYTES_PER_ELEMENT[matrix.dtype], (address) => {
        if (this.closed) throw new DisposedError(`Projection "${this.label}"`);
        stage(rows, staged, this.owner.memory.wasm, address);
        return this.owner.runNodes([packNode(this, index, part, first, count, address, staged)]);
      });
    }
  }

  writeBias(index: number, part: ProjectionPart, bias: Float32Array): void {
    checkPlace(this, index, part);
    checkBias(this, bias);
    const { outputs } = this.spec;
    // Values first, then gates, as `project` reads them.
    const offset = this.layout.biasOffset + index * this.layout.biasBytes;
    const address = this.address + offset + (part === "gate" ? outputs * 4 : 0);
    new Float32Array(this.owner.memory.wasm.buffer, address, outputs).set(bias);
  }

  [Symbol.dispose](): void {
    this.#buffer[Symbol.dispose]();
  }
}

function rowsOf(matrix: MatrixView, first: number, rows: number): MatrixView {
  return { ...matrix, rows, offset: matrix.offset + first * matrix.rowStride };
}

/** How a part of a matrix lies in staging memory, in elements. */
export interface StagedLayout {
  /** Where element (0, 0) is. */
  readonly origin: number;
  readonly rowStride: number;
  readonly columnStride: number;
  readonly elements: number;
}

interface Axis {
  readonly count: number;
  readonly stride: number;
}

/** The axis whose neighbours are closer together is copied in runs, the other one run by run. */
function axesOf({ rows, columns, rowStride, columnStride }: MatrixView) {
  const row: Axis = { count: rows, stride: rowStride };
  const column: Axis = { count: columns, stride: columnStride };
  const rowsInside = rows > 1 && (columns === 1 || Math.abs(rowStride) < Math.abs(columnStride));
  return { rowsInside, inner: rowsInside ? row : column, outer: rowsInside ? column : row };
}

function stagedLayout(matrix: MatrixView): StagedLayout {
  const { rowsInside, inner, outer } = axesOf(matrix);
  const gathered = Math.abs(inner.stride) > LONGEST_GAP;
  const stride = gathered ? 1 : inner.stride;
  const run = (inner.count - 1) * Math.abs(stride) + 1;
  return {
    origin: stride < 0 ? run - 1 : 0,
    rowStride: rowsInside ? stride : run,
    columnStride: rowsInside ? run : stride,
    elements: run * outer.count,
  };
}

function stage(
  matrix: MatrixView,
  staged: StagedLayout,
  memory: WebAssembly.Memory,
  address: number,
): void {
  const { data, offset } = matrix;
  const { inner, outer } = axesOf(matrix);
  const target =
    data instanceof Float32Array
      ? new Float32Array(memory.buffer, address, staged.elements)
      : new Uint16Array(memory.buffer, address, staged.elements);
  const run = staged.elements / outer.count;
  if (Math.abs(inner.stride) > LONGEST_GAP) {
    for (let o = 0; o < outer.count; o++) {
      let from = offset + o * outer.stride;
      for (let i = 0; i < run; i++, from += inner.stride)
        target[o * run + i] = data[from] as number;
    }
    return;
  }
  const begin = offset + Math.min(0, (inner.count - 1) * inner.stride);
  if (outer.stride === run) {
    target.set(data.subarray(begin, begin + staged.elements));
    return;
  }
  for (let o = 0; o < outer.count; o++) {
    const from = begin + o * outer.stride;
    target.set(data.subarray(from, from + run), o * run);
  }
}
