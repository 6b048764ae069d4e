/**
 * kernels/triton/experts/grouped.py, and many.py, which gives the same: tiles, rows, sums and stores. Where a
 * product's weights come from is its own: here from panels, in packed.ts from words of 12 bits a weight.
 */

import type { KernelCall } from "../call.ts";
import type { Element, Pointer } from "../memory.ts";
import { toTf32, update } from "../numbers.ts";
import { activate, activationNumbers, joinGate } from "./activation.ts";
import { loadRows, PANEL, type PaneledMatrix } from "./panels.ts";

const GATHER = 1;
const BIAS = 2;
const INPUT_SCALE = 4;
const DENSE = 8;

interface Tile {
  readonly matrix: number;
  readonly first: number;
  readonly rows: number;
  readonly column: number;
}

/** Loads rows of a matrix from one on. */
type WeightRows = (
  call: KernelCall,
  matrix: PaneledMatrix,
  first: number,
  count: number,
) => Float32Array[];

export function project(call: KernelCall): void {
  multiply(call, panelRows);
}

export function multiply(call: KernelCall, weightRows: WeightRows): void {
  const [height, width] = [call.constant("BLOCK_M"), call.constant("BLOCK_N")];
  const columns = Math.ceil(call.number("n") / width);
  const dense = (call.number("options") & DENSE) !== 0;
  const count = call.pointer("tile_count").int(0);
  const rowTiles = dense ? Math.ceil(count / height) : count;
  for (let program = 0; program < call.grid.x; program++) {
    for (let work = program; work < rowTiles * columns; work += call.grid.x) {
      const tile = tileOf(call, work, columns, rowTiles, dense ? count : undefined, height, width);
      run(call, tile, weightRows);
    }
  }
}

/**
 * Pieces are numbered column after column through the groups of a list, or `group` row tiles of a dense product. (On
 * tall tiles the kernels go through the part of busy experts and the rest at once, which changes the order and no more.)
 */
function tileOf(
  call: KernelCall,
  work: number,
  columns: number,
  rowTiles: number,
  denseRows: number | undefined,
  height: number,
  width: number,
): Tile {
  // Some tile of the piece's group.
  const some = Math.floor(work / columns);
  const listed = denseRows === undefined;
  const group = listed ? 0 : call.number("group");
  const told = listed ? call.pointer("tiles").int(4 * some + 3) : 0;
  const first = some - (listed ? told & 0xffff : some % group);
  const inGroup = listed ? told >> 16 : Math.min(rowTiles - first, group);
  const within = work - first * columns;
  const tile = first + (within % inGroup);
  const column = Math.floor(within / inGroup) * width;
  if (denseRows !== undefined) {
    const row = tile * height;
    const rows = Math.min(denseRows - row, height);
    return { matrix: call.number("dense_matrix"), first: row, rows, column };
  }
  const [matrix, row, rows] = call.pointer("tiles").loadInts(4 * tile, 3) as unknown as readonly [
    number,
    number,
    number,
  ];
  // A tile taller than the kernel loses the rows that are beyond it.
  return { matrix, first: row, column, rows: Math.min(rows, height) };
}

function run(
  call: KernelCall,
  { matrix, first, rows, column }: Tile,
  weightRows: WeightRows,
): void {
  const [n, k, topK, options] = ["n", "k", "top_k", "options"].map((name) => call.number(name)) as [
    number,
    number,
    number,
    number,
  ];
  const [out, xPitch, outPitch] = [
    call.pointer("out"),
    call.number("x_pitch"),
    call.number("out_pitch"),
  ];
  const x = mapped(call, "x", {
    element: out.element,
    box: [call.constant("BLOCK_M"), PANEL],
    shape: [first + rows, k],
  });
  const gated = call.flag("GATED");
  const extras = call.flag("EXTRAS");
  const numbers = activationNumbers(call);
  const tf32 = call.entry.constants["PRECISION"] === "tf32" && x.element === "fp32";
  const width = Math.min(call.constant("BLOCK_N"), n - column);
  const gathered = (options & GATHER) !== 0;
  if (call.tensorMap("x") !== undefined && (gathered || xPitch !== k)) {
    throw new Error("Rows of a tensor map can neither be gathered nor lie apart.");
  }
  const weights = weightRows(call, { matrix, n, k }, column, width);
  const scaled = extras && (options & INPUT_SCALE) !== 0;
  const biased = call.flag("BIAS") || (extras && (options & BIAS) !== 0);
  const bias = biased ? call.pointer("bias").load(matrix * n + column, width) : undefined;
  const outputs = gated ? width / 2 : width;
  if (tf32) for (const row of weights) update(row, toTf32);
  for (let r = 0; r < rows; r++) {
    const row = first + r;
    const slot = gathered || scaled ? call.pointer("order").int(row) : 0;
    const a = x.load((gathered ? Math.floor(slot / topK) : row) * xPitch, k);
    if (tf32) update(a, toTf32);
    const scale = scaled ? call.pointer("input_scale").float(slot) : 1;
    const acc = weights.map((w, i) => dot(a, w) * scale + (bias?.[i] ?? 0));
    const result = new Float32Array(outputs);
    for (let i = 0; i < outputs; i++) {
      result[i] = gated
        ? joinGate(acc[2 * i] as number, acc[2 * i + 1] as number, numbers)
        : activate(acc[i] as number, numbers);
    }
    out.store(row * outPitch + (gated ? column / 2 : column), result);
  }
}

/** A step of one panel counts through the rows of all panels; one of several panels reads them at once. */
function panelRows(
  call: KernelCall,
  { matrix, n, k }: PaneledMatrix,
  first: number,
  count: number,
): Float32Array[] {
  const [width, depth] = [call.constant("BLOCK_N"), call.constant("BLOCK_K")];
  const [panels, { element }] = [k / PANEL, call.pointer("out")];
  const w = mapped(
    call,
    "w",
    depth > PANEL
      ? { element, box: [1, depth / PANEL, width, PANEL], shape: [matrix + 1, panels, n, PANEL] }
      : { element, box: [width, PANEL], shape: [(matrix + 1) * panels * n, PANEL] },
  );
  return loadRows(w, { matrix, n, k }, first, count);
}

/** What a kernel takes a tensor map to be. */
interface Expected {
  readonly element: Element;
  readonly box: readonly number[];
  /** There may be more along the first dimension. */
  readonly shape: readonly number[];
}

/** Where an argument's elements are; a tensor map must be what the kernel takes it to be. */
export function mapped(
  call: KernelCall,
  name: string,
  { element, box, shape: [least = 0, ...inner] }: Expected,
): Pointer {
  const map = call.tensorMap(name);
  if (map === undefined) return call.pointer(name);
  const meta = call.entry.tensordesc_meta.find(({ argument }) => argument === name);
  const [outermost = 0, ...rest] = map.shape;
  const fits =
    map.element === element &&
    [map.box, meta?.block_size].every((each) => each?.join() === box.join()) &&
    map.swizzle === meta?.swizzle &&
    outermost >= least &&
    rest.join() === inner.join();
  if (!fits) {
    throw new Error(
      `A tensor map of ${map.element} [${map.shape}] in boxes of [${map.box}] does not fit ${name}, ${element} [${[least, ...inner]}] in boxes of [${box}].`,
    );
  }
  return call.mapped(map);
}

export function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return Math.fround(sum);
}
