/**
 * The product of weights in 12 bits, and how a kernel reads them: words, flags, patches and scales back to the very
 * bfloat16 values. All else is project.ts. How weights become words, pack-weights.ts tells: the two share the sizes below
 * and no more, so that what one puts in a wrong place the other does not find.
 */

import type { KernelCall } from "../call.ts";
import type { Pointer } from "../memory.ts";
import { widenBrains } from "../numbers.ts";
import { PANEL, type PaneledMatrix } from "./panels.ts";
import { mapped, multiply } from "./project.ts";

/** Rows whose words lie together, and that have patches together. */
export const GROUP = 16;
/** Words of a plane that are a group's: 32 lanes with 4 words each. */
export const GROUP_WORDS = 128;
/** Rows of a block, and words of one of its planes. */
export const BLOCK = 4 * GROUP;
export const PLANE_WORDS = 4 * GROUP_WORDS;
export const PLANES = 3;
/** Records of 16 bits that a group has in a panel. */
export const PATCHES = 8;

/** Sign and the lower half of an exponent, as they are in the third plane. */
const HIGH_BYTES = 0x87878787;
/** The upper half of an exponent that no patch changes, in the high byte of a bfloat16. */
const WINDOW_BITS = 0x38;

export function projectPacked(call: KernelCall): void {
  multiply(call, unpackRows);
}

/** Rows of a matrix from one on, which begins a block; whole blocks of them. Of patches only those are looked at that flags tell of. */
export function unpackRows(
  call: KernelCall,
  matrix: PaneledMatrix,
  first: number,
  count: number,
): Float32Array[] {
  const { n, k } = matrix;
  const words = mapped(call, "w", {
    element: "i32",
    box: [call.constant("BLOCK_N") / BLOCK, 1, 16, 32],
    shape: [((matrix.matrix + 1) * k * n) / PANEL / BLOCK, PLANES, 16, 32],
  });
  return unpack(call, words, matrix, first, count, (group, panel) => {
    const row = (matrix.matrix * n) / GROUP + group;
    const flags = row * Math.ceil(k / PANEL / 32) + Math.floor(panel / 32);
    return ((call.pointer("flags").int(flags) >>> (panel % 32)) & 1) !== 0;
  });
}

/** The same by kernels that find words by their address, and look at all patches. */
export function unpackRowsByAddress(
  call: KernelCall,
  matrix: PaneledMatrix,
  first: number,
  count: number,
): Float32Array[] {
  return unpack(call, call.pointer("words"), matrix, first, count, () => true);
}

function unpack(
  call: KernelCall,
  words: Pick<Pointer, "loadInts">,
  { matrix, n, k }: PaneledMatrix,
  first: number,
  count: number,
  flagged: (group: number, panel: number) => boolean,
): Float32Array[] {
  const [panels, blocks] = [k / PANEL, n / BLOCK];
  const rows = Array.from({ length: count }, () => new Float32Array(k));
  for (let panel = 0; panel < panels; panel++) {
    for (let row = first; row < first + count; row += BLOCK) {
      const block = (matrix * panels + panel) * blocks + row / BLOCK;
      const planes = words.loadInts(block * PLANES * PLANE_WORDS, PLANES * PLANE_WORDS);
      for (let inBlock = 0; inBlock < BLOCK; inBlock += GROUP) {
        const bits = bitsOf(planes, (inBlock / GROUP) * GROUP_WORDS);
        const group = (row + inBlock) / GROUP;
        if (flagged(group, panel)) patch(call, bits, { matrix, n, k }, group, panel);
        const done = row + inBlock - first;
        place(widenBrains(bits), rows.slice(done, done + GROUP), panel * PANEL);
      }
    }
  }
  const scales = call.pointer("scales").load(matrix * n + first, count);
  return rows.map((row, i) => row.map((value) => value * (scales[i] as number)));
}

/** A group's scaled weights as the words have them: 32 of every lane, 8 of each of its words. */
function bitsOf(planes: Int32Array, first: number): Uint16Array {
  const bits = new Uint16Array(GROUP * PANEL);
  for (let at = 0; at < GROUP_WORDS; at++) {
    const [lower, upper, high] = [0, 1, 2].map((p) => planes[p * PLANE_WORDS + first + at]) as [
      number,
      number,
      number,
    ];
    const halves = [
      [lower, high & HIGH_BYTES],
      [upper, ((high >>> 4) | (high << 28)) & HIGH_BYTES],
    ] as const;
    for (const [half, [lows, highs]] of halves.entries()) {
      for (let byte = 0; byte < 4; byte++) {
        const low = (lows >>> (8 * byte)) & 0xff;
        const top = ((highs >>> (8 * byte)) & 0xff) | WINDOW_BITS;
        bits[8 * at + 4 * half + byte] = (top << 8) | low;
      }
    }
  }
  return bits;
}

/** Puts a group's weights right by its patches in a panel. */
function patch(
  call: KernelCall,
  bits: Uint16Array,
  { matrix, n, k }: PaneledMatrix,
  group: number,
  panel: number,
): void {
  const [panels, groups] = [k / PANEL, n / GROUP];
  const first = ((matrix * panels + panel) * groups + group) * (PATCHES / 2);
  const records = call
    .pointer("patches")
    .as("i32")
    .loadInts(first, PATCHES / 2);
  for (let i = 0; i < PATCHES; i++) {
    const record = ((records[i >> 1] as number) >>> (16 * (i % 2))) & 0xffff;
    if (record === 0) return;
    const [change, index, lane] = [record & 15, (record >> 4) & 31, record >> 9];
    bits[32 * lane + index] = (bits[32 * lane + index] as number) ^ (change << 11);
  }
}

/** Puts a group's weights into its rows, from a column on. */
function place(weights: Float32Array, rows: readonly Float32Array[], column: number): void {
  for (const [i, weight] of weights.entries()) {
    const [lane, word, j] = [i >> 5, (i >> 3) & 3, i & 7];
    const row = rows[2 * (lane >> 2) + ((j >> 1) & 1)] as Float32Array;
    row[column + 16 * word + 8 * (j >> 2) + 2 * (lane & 3) + (j & 1)] = weight;
  }
}
