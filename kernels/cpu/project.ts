/**
 * output = activation(scale * (input x matrix) + bias) for a tile of rows and a
 * range of panels: which inner loop (multiply.ts) works on which piece, and in
 * what order. What happens to the finished sums is in epilogue.ts.
 *
 * The order of additions is fixed, and the same for every shape of tile: for each
 * output the inputs are taken in blocks of BLOCK; a block is summed from zero in
 * ascending order; block sums are added up in order. So a row has the same bits
 * alone, in any batch and under any split of the panels.
 *
 * The order of the loops follows the caches. With few rows the weights come from
 * memory and all inputs of the rows fit into scratch: every panel is read once,
 * from end to end. With many rows arithmetic takes longer than reading: one block
 * of inputs of all rows is kept interleaved, in the second-level cache, and used
 * for all panels of a strip. In both cases a block of weights, once read, serves
 * all rows before the next is touched.
 *
 * Memory is read in turns: PANELS panels advance together, TURN inputs at a time.
 * WebAssembly has no prefetch, so the processor must guess what comes next, and it
 * guesses for several sequences at once: turns gave 76 % of the bandwidth of a plain
 * sum where one panel after the other gave 57 % (4 float32 rows, Zen 4).
 */

import { biasFactor, placedMask, widenPanel } from "./convert";
import { finishPanel } from "./epilogue";
import {
  multiplyRows1,
  multiplyRows2,
  multiplyRows3,
  multiplyRows4,
  multiplyRows5,
  multiplyRows6,
  SUM_ROW_BYTES,
} from "./multiply";
import { hasSpecials, PANEL, panelBytes } from "./pack";
import { firstRowOf, groupsOf, interleaveRows, locateRows } from "./rows";
import { BFLOAT16, FLOAT32 } from "./vector";

/** Inputs summed from zero before they join the total. 256 bounds the rounding error, and a block of a panel to 8 KiB. */
const BLOCK: i32 = 256;

/** Most rows of one call. With BLOCK inputs they take 192 KiB, which leaves room in a second-level cache. */
const MAX_TILE_ROWS: i32 = 192;

/** Panels whose totals are kept at once: enough to make interleaving the rows a few percent of the work. */
const STRIP_PANELS: i32 = 32;

/** Panels that are read in turns. */
const PANELS: i32 = 4;

/** Inputs of a turn: 1 KiB of float32 weights. Half or twice as many are slower. */
const TURN: i32 = 32;

/**
 * Most rows for which bfloat16 is widened by the inner loops; for more it pays to do
 * it once, into scratch. The plain build is short of registers there.
 */
const MAX_INNER_BFLOAT16_ROWS: i32 = ASC_FEATURE_RELAXED_SIMD ? 48 : 16;

/** The same for float16, which takes more instructions and two constants in registers. */
const MAX_INNER_FLOAT16_ROWS: i32 = 4;

// Scratch memory, in this order.
const ROW_ADDRESS_BYTES: usize = MAX_TILE_ROWS * sizeof<usize>();
const INTERLEAVED_BYTES: usize = MAX_TILE_ROWS * BLOCK * 4;
const TOTALS_BYTES: usize = STRIP_PANELS * MAX_TILE_ROWS * 32;
const SUMS_BYTES: usize = PANELS * MAX_TILE_ROWS * 32;
const WIDENED_PANEL_BYTES: usize = BLOCK * PANEL * 4;
const WIDENED_BYTES: usize = PANELS * BLOCK * PANEL * 4;

export function maxTileRows(): i32 {
  return MAX_TILE_ROWS;
}

/** Bytes of scratch memory a call of `project` needs, 16-byte aligned; one such block for each thread. */
export function scratchBytes(): usize {
  return ROW_ADDRESS_BYTES + INTERLEAVED_BYTES + TOTALS_BYTES + SUMS_BYTES + WIDENED_BYTES;
}

/**
 * Computes rows 0 to rowCount - 1 of the output for panels firstPanel to
 * firstPanel + panelCount - 1.
 *
 * @param input float32 rows, inputStride elements apart
 * @param rowIndex int32 [rowCount], or 0: row r of the output comes from row r of the
 *   input; otherwise from row rowIndex[r] / rowDivisor, or, where rowDivisor is 0, again from row r
 * @param weights what `pack` wrote
 * @param bias float32: `outputs` values, then `outputs` gate biases if gated; 0: none
 * @param scale float32, or 0: the product of row r is multiplied by scale[rowIndex[r]]
 * @param scratch scratchBytes() bytes whose contents do not matter
 */
export function project(
  input: usize,
  inputStride: i32,
  rowIndex: usize,
  rowDivisor: i32,
  rowCount: i32,
  weights: usize,
  dtype: i32,
  inputs: i32,
  outputs: i32,
  gated: bool,
  firstPanel: i32,
  panelCount: i32,
  bias: usize,
  scale: usize,
  activation: i32,
  alpha: f32,
  limit: f32,
  output: usize,
  outputStride: i32,
  scratch: usize,
): void {
  const rows = scratch;
  const totals = rows + ROW_ADDRESS_BYTES + INTERLEAVED_BYTES;
  const sums = totals + TOTALS_BYTES;
  const totalBytes = <usize>rowCount * SUM_ROW_BYTES;
  const widenFirst = widensFirst(weights, dtype, outputs, inputs, gated, rowCount);
  const groups = groupsOf(rowCount, dtype !== FLOAT32 && !widenFirst);
  locateRows(rows, input, inputStride, rowIndex, rowDivisor, rowCount);

  // A lone row is in the order that the inner loops want; several are copied, as many whole blocks as fit.
  const isLone = rowCount === 1;
  const interleaved = isLone ? load<usize>(rows) : rows + ROW_ADDRESS_BYTES;
  const span = isLone ? inputs : (<i32>(INTERLEAVED_BYTES / 4) / rowCount / BLOCK) * BLOCK;
  const end = firstPanel + panelCount;
  for (let strip = firstPanel; strip < end; strip += STRIP_PANELS) {
    const stripEnd = min(strip + STRIP_PANELS, end);
    memory.fill(totals, 0, <usize>(stripEnd - strip) * totalBytes);
    for (let k = 0; k < inputs; k += span) {
      const depth = min(span, inputs - k);
      // Rows that fit whole are still there from the strip before.
      if (!isLone && (strip === firstPanel || span < inputs)) {
        interleaveRows(interleaved, rows, rowCount, groups, k, depth);
      }
      for (let p = strip; p < stripEnd; p += PANELS) {
        multiplyPanels(
          interleaved,
          rowCount,
          groups,
          depth,
          weights + <usize>p * panelBytes(dtype, inputs) + panelBytes(dtype, k),
          panelBytes(dtype, inputs),
          min(PANELS, stripEnd - p),
          dtype,
          widenFirst,
          totals + <usize>(p - strip) * totalBytes,
          sums,
        );
      }
    }
    for (let p = strip; p < stripEnd; p++) {
      finishPanel(
        totals + <usize>(p - strip) * totalBytes,
        rowCount,
        p,
        outputs,
        gated,
        rowIndex,
        bias,
        scale,
        activation,
        alpha,
        limit,
        output,
        outputStride,
      );
    }
  }
}

/**
 * Whether 16-bit weights are widened into scratch first, rather than by the inner
 * loops, which cannot widen infinities and NaN of float16.
 */
function widensFirst(
  weights: usize,
  dtype: i32,
  outputs: i32,
  inputs: i32,
  gated: bool,
  rowCount: i32,
): bool {
  if (dtype === FLOAT32) return false;
  if (dtype === BFLOAT16) return rowCount > MAX_INNER_BFLOAT16_ROWS;
  return rowCount > MAX_INNER_FLOAT16_ROWS || hasSpecials(weights, outputs, inputs, gated);
}

/**
 * All rows times `depth` inputs of up to PANELS panels, added to the totals.
 *
 * @param weights the first panel's weights of the first input, `stride` bytes before the next panel's
 * @param totals [panels][rows][8]
 * @param sums room for the sums of one block, [PANELS][rows][8], and behind it for widened weights
 */
function multiplyPanels(
  interleaved: usize,
  rowCount: i32,
  groups: i32,
  depth: i32,
  weights: usize,
  stride: usize,
  panels: i32,
  dtype: i32,
  widenFirst: bool,
  totals: usize,
  sums: usize,
): void {
  const widened = sums + SUMS_BYTES;
  const sumBytes = <usize>rowCount * SUM_ROW_BYTES;
  const placed = placedMask(sums);
  const bias = biasFactor(sums);
  memory.fill(sums, 0, <usize>PANELS * sumBytes);
  for (let k = 0; k < depth; k += BLOCK) {
    const block = min(BLOCK, depth - k);
    const from = weights + panelBytes(dtype, k);
    // What reads the weights from memory does so in turns: widening, or else the first group of rows.
    for (let t = 0; t < block; t += TURN) {
      const turn = min(TURN, block - t);
      const at = from + panelBytes(dtype, t);
      if (widenFirst) {
        for (let p = 0; p < panels; p++) {
          const to = widened + <usize>p * WIDENED_PANEL_BYTES + panelBytes(FLOAT32, t);
          widenPanel(to, at + <usize>p * stride, turn, dtype);
        }
      } else {
        const count = firstRowOf(1, groups, rowCount);
        const a = interleaved + ((<usize>((k + t) * count)) << 2);
        multiply(dtype, count, a, at, stride, panels, turn, sums, sumBytes, placed, bias);
      }
    }
    for (let g = widenFirst ? 0 : 1; g < groups; g++) {
      const first = firstRowOf(g, groups, rowCount);
      const count = firstRowOf(g + 1, groups, rowCount) - first;
      const a = interleaved + ((<usize>(first * depth + k * count)) << 2);
      const to = sums + <usize>first * SUM_ROW_BYTES;
      const type = widenFirst ? FLOAT32 : dtype;
      const source = widenFirst ? widened : from;
      const step = widenFirst ? WIDENED_PANEL_BYTES : stride;
      multiply(type, count, a, source, step, panels, block, to, sumBytes, placed, bias);
    }
    addToTotals(totals, sums, <usize>panels * sumBytes);
  }
}

/** One group of rows times a run of inputs of some panels, by the inner loops for the type of the weights. */
function multiply(
  dtype: i32,
  count: i32,
  a: usize,
  weights: usize,
  stride: usize,
  panels: i32,
  depth: i32,
  sums: usize,
  sumBytes: usize,
  placed: v128,
  bias: v128,
): void {
  if (dtype === FLOAT32) {
    multiplyAs<f32>(count, a, weights, stride, panels, depth, sums, sumBytes, placed, bias);
  } else if (dtype === BFLOAT16) {
    multiplyAs<u16>(count, a, weights, stride, panels, depth, sums, sumBytes, placed, bias);
  } else {
    multiplyAs<i16>(count, a, weights, stride, panels, depth, sums, sumBytes, placed, bias);
  }
}

function multiplyAs<T>(
  count: i32,
  a: usize,
  weights: usize,
  stride: usize,
  panels: i32,
  depth: i32,
  sums: usize,
  sumBytes: usize,
  placed: v128,
  bias: v128,
): void {
  if (count <= 2) {
    for (let p = 0; p < panels; p += 2) {
      // A lone last panel is multiplied twice, the second time in vain: there is room for PANELS sums, an even number.
      const panel1 = p + 1 < panels ? weights + stride : weights;
      const sums1 = sums + sumBytes;
      if (count === 1) multiplyRows1<T>(a, weights, panel1, depth, sums, sums1, placed, bias);
      else multiplyRows2<T>(a, weights, panel1, depth, sums, sums1, placed, bias);
      weights += 2 * stride;
      sums += 2 * sumBytes;
    }
    return;
  }
  for (let p = 0; p < panels; p++) {
    if (count === 4) multiplyRows4<T>(a, weights, depth, sums, placed, bias);
    else if (count === 3) multiplyRows3<T>(a, weights, depth, sums, placed, bias);
    else if (isFloat<T>()) {
      if (count === 6) multiplyRows6<T>(a, weights, depth, sums, placed, bias);
      else multiplyRows5<T>(a, weights, depth, sums, placed, bias);
    }
    weights += stride;
    sums += sumBytes;
  }
}

/** Adds the sums of a block to the totals, and clears them for the next. */
function addToTotals(totals: usize, sums: usize, bytes: usize): void {
  for (const end = sums + bytes; sums !== end; sums += 16) {
    v128.store(totals, f32x4.add(v128.load(totals), v128.load(sums)));
    v128.store(sums, f32x4.splat(0));
    totals += 16;
  }
}
