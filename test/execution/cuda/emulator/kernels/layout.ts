/** kernels/triton/experts/pack.py and fill.py */

import type { KernelCall } from "../call.ts";
import { storeStretch } from "./panels.ts";

export function packRows(call: KernelCall): void {
  const number = (name: string) => call.number(name);
  const [rows, columns, pitch] = [number("rows"), number("columns"), number("pitch")];
  const [rowStride, columnStride] = [number("row_stride"), number("column_stride")];
  const [rowStep, panelStep] = [number("row_step"), number("panel_step")];
  const [source, target] = [call.pointer("source"), call.pointer("destination")];
  stretches(call, rows, pitch, (row, column, count) => {
    const values = new Float32Array(count);
    const valid = Math.max(0, Math.min(count, columns - column));
    const first = row * rowStride + column * columnStride;
    if (columnStride === 1) values.set(source.load(first, valid));
    else for (let i = 0; i < valid; i++) values[i] = source.float(first + i * columnStride);
    storeStretch(target, row * rowStep, panelStep, number("first_column") + column, values);
  });
}

/**
 * Noise that is a function of seed and of the weight's number, row by row wherever it lies, as
 * the kernel's is. It is not the same noise: nothing compares the two.
 */
export function fillUniform(call: KernelCall): void {
  const number = (name: string) => call.number(name);
  const [n, k, scale, validRows] = [
    number("n"),
    number("k"),
    number("scale"),
    number("valid_rows"),
  ];
  const [rowStep, panelStep] = [number("row_step"), number("panel_step")];
  const target = call.pointer("destination");
  const rows = number("matrices") * validRows;
  stretches(call, rows, number("valid_columns"), (row, column, count) => {
    const [matrix, inMatrix] = [Math.floor(row / validRows), row % validRows];
    const first = (matrix * n + inMatrix) * k + column;
    const values = Float32Array.from({ length: count }, (_, i) => {
      return (2 * hash(number("seed"), first + i) - 1) * scale;
    });
    storeStretch(target, matrix * n * k + inMatrix * rowStep, panelStep, column, values);
  });
}

function hash(seed: number, place: number): number {
  let h = Math.imul(place ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(seed + 0x7f4a7c15, 0xc2b2ae35);
  for (let round = 0; round < 3; round++) {
    h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
    h ^= h >>> 12;
  }
  return (h >>> 0) / 2 ** 32;
}

function stretches(
  call: KernelCall,
  rows: number,
  width: number,
  piece: (row: number, column: number, count: number) => void,
): void {
  const block = call.constant("BLOCK");
  const each = Math.ceil(width / block);
  for (let program = 0; program < call.grid.x; program++) {
    for (let work = program; work < rows * each; work += call.grid.x) {
      const column = (work % each) * block;
      piece(Math.floor(work / each), column, Math.min(block, width - column));
    }
  }
}
