/**
 * The kernel that turns weights in panels into 12 bits each, with scales, flags and patches, or counts what cannot be
 * turned. It goes from a weight to its bits; packed.ts goes the other way.
 */

import type { KernelCall } from "../call.ts";
import { brainBits, widenBrains } from "../numbers.ts";
import { GROUP, GROUP_WORDS, PATCHES, PLANE_WORDS, PLANES } from "./packed.ts";
import { loadRows, PANEL, type PaneledMatrix } from "./panels.ts";

/** Exponents of a window, the largest included. */
const WINDOW = 16;
/** A window begins at a row's largest exponent, or up to 7 below. */
const LOWER_WINDOWS = 8;
/** The largest exponent of the lowest window, in which the least number of all is. */
const LEAST_TOP = 9;
/** The upper half of a scaled exponent within the window. */
const UPPER = 7;

/** A row to be packed: its valid columns, and its window's largest exponent; none if it is all zeros. */
interface Row {
  readonly weights: Float32Array;
  readonly top: number | undefined;
}

/** What 16 rows of a panel become. */
interface Packed {
  readonly planes: readonly Int32Array[];
  readonly patches: readonly number[];
  /** Weights that a row's window cannot hold exactly, even with a patch. */
  readonly inexact: number;
}

export function packWeights(call: KernelCall): void {
  const number = (name: string) => call.number(name);
  const [n, k, matrices] = [number("n"), number("k"), number("matrices")];
  const groups = n / GROUP;
  for (let program = 0; program < call.grid.x; program++) {
    for (let work = program; work < matrices * groups; work += call.grid.x) {
      packGroup(call, { matrix: Math.floor(work / groups), n, k }, work % groups);
    }
  }
}

function packGroup(call: KernelCall, { matrix, n, k }: PaneledMatrix, group: number): void {
  const [panels, groups, valid] = [k / PANEL, n / GROUP, call.number("valid_columns")];
  const source = loadRows(call.pointer("source"), { matrix, n, k }, group * GROUP, GROUP);
  const rows = source.map((row): Row => {
    const weights = row.subarray(0, valid);
    return { weights, top: topOf(weights) };
  });
  const scales = rows.map(({ top }) => (top === undefined ? 0 : 2 ** (top - 127)));
  call.pointer("scales").store(matrix * n + group * GROUP, Float32Array.from(scales));
  const flags = new Int32Array(Math.ceil(panels / 32));
  let failures = 0;
  for (let panel = 0; panel < panels; panel++) {
    const { planes, patches, inexact } = packPanel(rows, panel * PANEL);
    const block = (matrix * panels + panel) * (groups / 4) + Math.floor(group / 4);
    for (const [plane, words] of planes.entries()) {
      const at = (block * PLANES + plane) * PLANE_WORDS + (group % 4) * GROUP_WORDS;
      call.pointer("words").storeInts(at, words);
    }
    const records = new Uint16Array(PATCHES);
    records.set(patches.slice(0, PATCHES));
    const at = ((matrix * panels + panel) * groups + group) * (PATCHES / 2);
    call.pointer("patches").as("i32").storeInts(at, new Int32Array(records.buffer));
    if (patches.length > 0) flags[panel >> 5] = (flags[panel >> 5] as number) | (1 << (panel % 32));
    failures += inexact + (patches.length > PATCHES ? 1 : 0);
  }
  call.pointer("flags").storeInts((matrix * groups + group) * flags.length, flags);
  const counted = call.pointer("failures").atomic(0);
  counted[0] = (counted[0] as number) + failures;
}

/** The largest exponent of the window that fewest weights are outside of; of several the largest. */
function topOf(weights: Float32Array): number | undefined {
  if (weights.every((weight) => weight === 0)) return undefined;
  const exponents = Array.from(weights, (weight) => (brainBits(weight) >> 7) & 0xff);
  const largest = exponents.reduce((a, b) => Math.max(a, b), LEAST_TOP);
  const tops = Array.from({ length: LOWER_WINDOWS }, (_, lower) => largest - lower);
  const outside = tops.map((top) => exponents.filter((e) => e > top || e <= top - WINDOW).length);
  const best = tops[outside.indexOf(Math.min(...outside))] as number;
  return Math.max(best, LEAST_TOP);
}

function packPanel(rows: readonly Row[], firstColumn: number): Packed {
  const planes = Array.from({ length: PLANES }, () => new Int32Array(GROUP_WORDS));
  const patches: number[] = [];
  let inexact = 0;
  const or = (plane: number, at: number, bits: number) => {
    const words = planes[plane] as Int32Array;
    words[at] = (words[at] as number) | bits;
  };
  for (const [r, { weights, top }] of rows.entries()) {
    if (top === undefined) continue;
    for (const [column, weight] of weights.subarray(firstColumn, firstColumn + PANEL).entries()) {
      const scaled = weight * 2 ** (127 - top);
      const bits = brainBits(scaled);
      const exact = Number.isFinite(scaled) && widenBrains(Uint16Array.of(bits))[0] === scaled;
      if (!exact) inexact += 1;
      const lane = Math.floor(r / 2) * 4 + Math.floor((column % 8) / 2);
      const word = Math.floor(column / 16);
      const j = (column % 2) + 2 * (r % 2) + 4 * Math.floor((column % 16) / 8);
      const [sign, upper, lower] = [bits >> 15, (bits >> 11) & 15, (bits >> 8) & 7];
      const at = lane * 4 + word;
      or(Math.floor(j / 4), at, (bits & 0xff) << (8 * (j % 4)));
      // The second four lie between the first, turned by four bits.
      if (j < 4) or(2, at, (sign << (8 * j + 7)) | (lower << (8 * j)));
      else or(2, at, (sign << ((8 * (j - 4) + 11) % 32)) | (lower << (8 * (j - 4) + 4)));
      if (upper !== UPPER) patches.push((upper ^ UPPER) | ((word * 8 + j) << 4) | (lane << 9));
    }
  }
  return { planes, patches, inexact };
}
