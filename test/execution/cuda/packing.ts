/** Random matrices, and what pack_rows does with them, bit by bit: for tests of what a projection sends to a device. */

import assert from "node:assert/strict";
import { type DType, float16ToNumber, type MatrixView } from "../../../src/tensor.ts";
import type { Random } from "../../../src/workload/random.ts";
import { between, chance, pick } from "../../support/seed.ts";
import type { SeenKernel } from "./operators/harness.ts";

const SHORT: Readonly<Record<string, DType>> = {
  bf16: "bfloat16",
  fp16: "float16",
  fp32: "float32",
};

export type Bits = Uint16Array | Uint32Array;

/** Memory as the bits of its elements. */
export function bitsOf(buffer: ArrayBuffer, dtype: DType): Bits {
  return dtype === "float32" ? new Uint32Array(buffer) : new Uint16Array(buffer);
}

/** The bits that an element of one type has in another; only what projections convert. */
export function converted(bits: number, from: DType, to: DType): number {
  if (from === to) return bits;
  assert.equal(to, "float32");
  if (from === "bfloat16") return bits * 2 ** 16;
  return new Uint32Array(Float32Array.of(float16ToNumber(bits)).buffer)[0] as number;
}

/** Does what pack_rows does. */
export function pack(
  { name, values }: SeenKernel,
  staged: Bits,
  at: bigint,
  memory: Bits,
  base: bigint,
) {
  const [, from = "", to = ""] = name.split("_");
  const [source, target] = [SHORT[from], SHORT[to]] as [DType, DType];
  const number = (field: string) => values[field] as number;
  const [rows, columns, pitch] = [number("rows"), number("columns"), number("pitch")];
  const [rowStride, columnStride] = [number("row_stride"), number("column_stride")];
  const first = Number((values["source"] as bigint) - at) / staged.BYTES_PER_ELEMENT;
  const destination = Number((values["destination"] as bigint) - base) / memory.BYTES_PER_ELEMENT;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < pitch; column++) {
      const bits = column < columns ? staged[first + row * rowStride + column * columnStride] : 0;
      const to = number("first_column") + column;
      const panel = Math.floor(to / 64) * number("panel_step");
      const index = destination + row * number("row_step") + panel + (to % 64);
      memory[index] = converted(bits as number, source, target);
    }
  }
}

export interface Strides {
  /** What may lie between neighbours. */
  readonly steps?: readonly number[];
  /** Whether those are of a column, and not of a row. */
  readonly turned?: boolean;
}

/** A random matrix view: contiguous or strided, transposed or not, forwards or backwards. */
export function matrixOf(
  random: Random,
  rows: number,
  columns: number,
  dtype: DType,
  { steps = [1, 1, 2, 3], turned = chance(random, 0.5) }: Strides = {},
): MatrixView {
  const [inner, outer] = turned ? [rows, columns] : [columns, rows];
  const step = pick(random, steps);
  const pitch = inner * step + between(random, 0, 9);
  let offset = between(random, 0, 20);
  let [innerStride, outerStride] = [step, pitch];
  if (chance(random, 0.2)) {
    offset += (inner - 1) * step;
    innerStride = -step;
  }
  if (chance(random, 0.2)) {
    offset += (outer - 1) * pitch;
    outerStride = -pitch;
  }
  const length = 20 + outer * pitch + 20;
  const data = dtype === "float32" ? new Float32Array(length) : new Uint16Array(length);
  // Finite in every type, and different from all that lie near.
  const start = random.integer(0x7b00);
  for (let i = 0; i < length; i++) data[i] = (start + i * 7919) % 0x7b00;
  return {
    dtype,
    data,
    offset,
    rows,
    columns,
    rowStride: turned ? innerStride : outerStride,
    columnStride: turned ? outerStride : innerStride,
  };
}

export function elementBits(matrix: MatrixView, row: number, column: number): number {
  const { data, offset, rowStride, columnStride } = matrix;
  const bits = bitsOf(data.buffer as ArrayBuffer, matrix.dtype);
  const first = data.byteOffset / data.BYTES_PER_ELEMENT + offset;
  return bits[first + row * rowStride + column * columnStride] as number;
}
