/** Weights for tests of the 12-bit format: drawn, laid out in panels, packed and unpacked by the emulated kernels. */

import type { KernelEntry } from "../../../../src/execution/cuda/bundle/manifest.ts";
import type { Random } from "../../../../src/workload/random.ts";
import { type ByHand, callByHand } from "./by-hand.ts";
import type { TensorMapFields } from "./call.ts";
import { shippedManifest } from "./driver.ts";
import { packWeights } from "./kernels/pack-weights.ts";
import { unpackRows } from "./kernels/packed.ts";
import { brainBits, widenBrains } from "./numbers.ts";

/** Of a kernel for 128 columns at a time. */
const WORDS_BOX = [2, 1, 16, 32];

/** A kernel of the bundle. */
export function shipped(name: string): KernelEntry {
  return shippedManifest().kernels.find((each) => each.name === name) as KernelEntry;
}

export interface Sizes {
  readonly matrices: number;
  readonly n: number;
  readonly k: number;
  /** Columns that are no padding. */
  readonly columns: number;
}

/** A weight's place: row of all matrices, column. */
export type Weigh = (row: number, column: number) => number;

/** Rows of all matrices, rounded to bfloat16. */
export function rowsOf({ matrices, n, k }: Sizes, weigh: Weigh): Float32Array[] {
  return Array.from({ length: matrices * n }, (_, row) =>
    widenBrains(Uint16Array.from({ length: k }, (_, column) => brainBits(weigh(row, column)))),
  );
}

/** Changes so many weights of every 16 rows in every panel, each at a place of its own. Padding and other zeros stay. */
export function sprinkle(
  random: Random,
  rows: readonly Float32Array[],
  columns: number,
  count: number,
  change: (weight: number) => number,
): void {
  for (let row = 0; row < rows.length; row += 16) {
    for (let column = 0; column < columns; column += 64) {
      const width = Math.min(64, columns - column);
      for (const place of random.permutation(16 * width).slice(0, count)) {
        const weights = rows[row + Math.floor(place / width)] as Float32Array;
        const at = column + (place % width);
        const weight = weights[at] as number;
        if (weight !== 0) weights[at] = change(weight);
      }
    }
  }
}

/** [matrices, k / 64, n, 64] */
export function inPanels({ n, k }: Sizes, rows: readonly Float32Array[]): Uint16Array<ArrayBuffer> {
  const panels = new Uint16Array(rows.length * k);
  for (const [i, row] of rows.entries()) {
    const first = Math.floor(i / n) * n * k + (i % n) * 64;
    for (const [column, weight] of row.entries()) {
      panels[first + Math.floor(column / 64) * n * 64 + (column % 64)] = brainBits(weight);
    }
  }
  return panels;
}

export interface PackedWeights {
  readonly sizes: Sizes;
  readonly words: Int32Array<ArrayBuffer>;
  readonly scales: Float32Array<ArrayBuffer>;
  readonly flags: Int32Array<ArrayBuffer>;
  readonly patches: BigInt64Array<ArrayBuffer>;
  readonly failures: number;
}

/** Packs into memory that held something else before. */
export function pack(sizes: Sizes, rows: readonly Float32Array[], programs = 3): PackedWeights {
  const { matrices, n, k, columns } = sizes;
  const [panels, groups] = [k / 64, n / 16];
  const buffers = {
    source: inPanels(sizes, rows),
    words: new Int32Array(matrices * panels * (n / 64) * 3 * 512).fill(0x5a5a5a5a),
    scales: new Float32Array(matrices * n).fill(Number.NaN),
    flags: new Int32Array(matrices * groups * Math.ceil(panels / 32)).fill(-1),
    patches: new BigInt64Array(matrices * panels * groups * 2).fill(-1n),
    failures: new Int32Array(1),
  };
  const numbers = { matrices, n, k, valid_columns: columns };
  packWeights(callByHand({ entry: shipped("pack_weights_bf16"), programs, buffers, numbers }));
  const { source, failures, ...packed } = buffers;
  return { sizes, ...packed, failures: failures[0] as number };
}

/** What a launch of the packed product gets of the weights; the map is one that fits but for `changes`. */
export function packedArguments(
  { sizes: { matrices, n, k }, words, scales, flags, patches }: PackedWeights,
  changes: Partial<TensorMapFields> = {},
): Pick<ByHand, "buffers"> & { readonly map: Omit<TensorMapFields, "address"> } {
  const shape = [matrices * (k / 64) * (n / 64), 3, 16, 32];
  const map = { element: "i32", shape, box: WORDS_BOX, swizzle: 3, ...changes } as const;
  return { buffers: { w: words, scales, flags, patches }, map };
}

/** The rows of a matrix again. */
export function unpack(
  packed: PackedWeights,
  matrix = 0,
  changes: Partial<TensorMapFields> = {},
): Float32Array[] {
  const entry = shipped("project_gated_logistic_bf16_packed64");
  const [{ block_size: box } = { block_size: WORDS_BOX }] = entry.tensordesc_meta;
  const { buffers, map } = packedArguments(packed, { box, ...changes });
  const call = callByHand({ entry, programs: 1, buffers, numbers: {}, maps: { w: map } });
  const { n, k } = packed.sizes;
  return unpackRows(call, { matrix, n, k }, 0, n);
}
