/** kernels/triton/experts/combine.py */

import type { KernelCall } from "../call.ts";
import { tidyUp } from "./tidy.ts";

export const WEIGHTS = 1;
const SHARED = 2;
const SHARED_SCALE = 4;
const RESIDUAL = 8;

/** sums += scale * shared[token] + residual[token], each if asked for. */
export function addSharedAndResidual(
  call: KernelCall,
  sums: Float32Array,
  token: number,
  column: number,
): void {
  const options = call.number("options");
  const there = token * call.number("row_pitch") + column;
  const add = (name: string, scale: number) => {
    const values = call.pointer(name).load(there, sums.length);
    values.forEach((value, i) => {
      sums[i] = (sums[i] as number) + scale * value;
    });
  };
  if (options & SHARED) {
    add("shared", options & SHARED_SCALE ? call.pointer("shared_scale").float(token) : 1);
  }
  if (options & RESIDUAL) add("residual", 1);
}

export function combine(call: KernelCall): void {
  tidyUp(call);
  const [width, topK] = [call.number("width"), call.number("top_k")];
  pieces(call, call.pointer("tokens").int(0), (token, column, count) => {
    const sums = new Float32Array(count);
    for (let choice = 0; choice < topK; choice++) {
      const values = weighted(call, token * topK + choice, column, count);
      for (let i = 0; i < count; i++) sums[i] = (sums[i] as number) + (values?.[i] ?? 0);
    }
    addSharedAndResidual(call, sums, token, column);
    call.pointer("out").store(token * width + column, sums);
  });
}

export function concat(call: KernelCall): void {
  const width = call.number("width");
  const slots = call.pointer("tokens").int(0) * call.number("top_k");
  pieces(call, slots, (slot, column, count) => {
    const values = weighted(call, slot, column, count) ?? new Float32Array(count);
    call.pointer("out").store(slot * width + column, values);
  });
}

/** The pieces that the programs of the grid take: rows, in stretches of BLOCK columns. */
function pieces(
  call: KernelCall,
  rows: number,
  piece: (row: number, column: number, count: number) => void,
): void {
  const [block, width] = [call.constant("BLOCK"), call.number("width")];
  const stretches = Math.ceil(width / block);
  for (let program = 0; program < call.grid.x; program++) {
    for (let work = program; work < rows * stretches; work += call.grid.x) {
      const column = (work % stretches) * block;
      piece(Math.floor(work / stretches), column, Math.min(block, width - column));
    }
  }
}

/** A slot's row times its weight; undefined if it was dropped. */
function weighted(
  call: KernelCall,
  slot: number,
  column: number,
  count: number,
): Float32Array | undefined {
  const row = call.pointer("inverse").int(slot);
  if (row < 0) return undefined;
  const weight = call.number("options") & WEIGHTS ? call.pointer("weights").float(slot) : 1;
  const values = call.pointer("rows").load(row * call.number("row_pitch") + column, count);
  return values.map((value) => weight * value);
}
