/**
 * Where the parts of packed weights lie: words, scales, flags and patches of all matrices, one part behind the other. What
 * they mean is the kernels' affair; in short, a weight is its sign, its mantissa and four bits of exponent, counted from the
 * window of its row, which has a power of two as its scale; weights outside of the window are put right by patches, and flags say
 * where there are any.
 *
 * With P panels of 64 columns and G groups of 16 rows (n and k are multiples of 64):
 *
 *     words    int32   [count, P, n / 64, 3, 512]    12 bits a weight
 *     scales   float32 [count, n]
 *     flags    int32   [count, G, P / 32]            a bit for every panel
 *     patches  16 bytes [count, P, G]
 */

import { aligned, type ProjectionSizes } from "./projection.ts";
import { PANEL } from "./rows.ts";

/** Words of a block of 64 rows and 64 columns: three planes, each of 16 rows of 32. */
export const BLOCK_WORDS = [3, 16, 32] as const;
/** Rows that have their flags and patches together. */
export const GROUP_ROWS = 16;
const FLAGS_A_WORD = 32;
/** Of a group's patches in a panel. */
const PATCH_BYTES = 16;

/** A part of all matrices. */
interface Part {
  /** From the beginning of the projection's memory. */
  readonly offset: number;
  /** Of one matrix. */
  readonly bytes: number;
}

export interface PackedLayout {
  readonly words: Part;
  readonly scales: Part;
  readonly flags: Part;
  readonly patches: Part;
  /** Of all parts, with the gaps between them. */
  readonly byteLength: number;
}

export function packedLayout(
  count: number,
  { n, k }: Pick<ProjectionSizes, "n" | "k">,
): PackedLayout {
  const panels = k / PANEL;
  const groups = n / GROUP_ROWS;
  let byteLength = 0;
  const part = (bytes: number): Part => {
    const offset = byteLength;
    byteLength += aligned(count * bytes);
    return { offset, bytes };
  };
  const blockBytes = 4 * BLOCK_WORDS.reduce<number>((a, b) => a * b, 1);
  const words = part(panels * (n / PANEL) * blockBytes);
  const scales = part(4 * n);
  const flags = part(4 * groups * Math.ceil(panels / FLAGS_A_WORD));
  const patches = part(panels * groups * PATCH_BYTES);
  return { words, scales, flags, patches, byteLength };
}
