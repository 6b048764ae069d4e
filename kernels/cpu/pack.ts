/**
 * The layout of weights and how they get into it.
 *
 * A matrix [outputs, inputs] is cut into panels of 8 columns, a column being all
 * the inputs of one output: [panel][inputs][8]. So a kernel that walks the inputs
 * reads one contiguous stream and finds the 8 weights of one input beside each
 * other. A panel has two halves of 4 columns. Without a gate, two successive
 * quads of outputs fill them; with one, the first half holds a quad of gate
 * outputs and the second half the value outputs they belong to, so that both sit
 * in registers when the activation joins them. Columns beyond the last output are
 * zero.
 *
 * The element type stays as it is. 16-bit columns are stored in the order
 * 0 4 1 5 2 6 3 7: in a vector of four 32-bit lanes, the first half of the panel
 * is then the lower halves of the lanes and the second half the upper ones, and
 * unpacking needs no shuffle.
 *
 * Behind the panels of a float16 matrix stands one more element, the witness. Packing
 * an infinity or NaN sets it to infinity. Where it is finite all weights are, and the
 * inner loops need not look for the others, which would take half their time.
 */

import { elementBytes, FLOAT16, FLOAT32 } from "./vector";

/** Columns of a panel. */
export const PANEL: i32 = 8;

/** Columns of half a panel. */
const QUAD: i32 = 4;

/** Outputs that one panel computes. */
export function panelOutputs(gated: bool): i32 {
  return gated ? QUAD : PANEL;
}

/** Bytes of one panel: the distance from a panel to the next. */
export function panelBytes(dtype: i32, inputs: i32): usize {
  return <usize>inputs * PANEL * elementBytes(dtype);
}

/** Bytes of the witness, with what aligns the next matrix. */
const WITNESS_BYTES: i32 = 16;

/** The exponent bits of float16: all ones in infinities and NaN. */
const FLOAT16_EXPONENT: u16 = 0x7c00;

/** Bytes of one packed matrix (both halves if gated). A float64, so that sizes beyond 4 GiB are seen as such. */
export function packedBytes(dtype: i32, outputs: i32, inputs: i32, gated: bool): f64 {
  const panels = <f64>panelsOf(outputs, gated) * <f64>panelBytes(dtype, 1) * <f64>inputs;
  return dtype === FLOAT16 ? panels + WITNESS_BYTES : panels;
}

function panelsOf(outputs: i32, gated: bool): i32 {
  const perPanel = panelOutputs(gated);
  return (outputs + perPanel - 1) / perPanel;
}

/** Whether a packed float16 matrix holds infinities or NaN. */
export function hasSpecials(packed: usize, outputs: i32, inputs: i32, gated: bool): bool {
  const witness = load<u16>(witnessOf(packed, outputs, inputs, gated));
  return (witness & FLOAT16_EXPONENT) === FLOAT16_EXPONENT;
}

function witnessOf(packed: usize, outputs: i32, inputs: i32, gated: bool): usize {
  return packed + <usize>panelsOf(outputs, gated) * panelBytes(FLOAT16, inputs);
}

/**
 * Packs outputs firstOutput to firstOutput + outputCount - 1 of one matrix.
 *
 * @param dst the packed matrix, 16-byte aligned and all zeros before it is first packed
 * @param part 0 the value weights, 1 the gate weights (gated projections only)
 * @param firstOutput a multiple of panelOutputs(gated); the range ends at such a
 *   multiple or at the last output, so that workers never share a panel
 * @param src element (firstOutput, 0) of the source, which has the same element type
 * @param rowStride elements from one output to the next
 * @param columnStride elements from one input to the next
 */
export function pack(
  dst: usize,
  dtype: i32,
  outputs: i32,
  inputs: i32,
  gated: bool,
  part: i32,
  firstOutput: i32,
  outputCount: i32,
  src: usize,
  rowStride: i32,
  columnStride: i32,
): void {
  const size = elementBytes(dtype);
  const perPanel = panelOutputs(gated);
  const rowBytes = <usize>rowStride * size;
  const columnBytes = <usize>columnStride * size;
  const onlyHalf = part === 0 ? 1 : 0;
  const count = min(outputCount, outputs - firstOutput);
  // The last panel's columns are all written, those without an output with zeros.
  const padded = ((count + perPanel - 1) / perPanel) * perPanel;
  for (let done = 0; done < padded; done += QUAD) {
    const output = firstOutput + done;
    const half = gated ? onlyHalf : (output / QUAD) & 1;
    const panel = dst + <usize>(output / perPanel) * panelBytes(dtype, inputs);
    const from = src + <usize>done * rowBytes;
    const valid = max(0, min(QUAD, count - done));
    if (dtype === FLOAT32) {
      packQuad32(panel + 16 * half, inputs, from, rowBytes, columnBytes, valid);
    } else {
      const seen = packQuad16(panel + 2 * half, inputs, from, rowBytes, columnBytes, valid);
      // Workers that pack other parts write the same, if anything.
      if (dtype === FLOAT16 && seen) {
        store<u16>(witnessOf(dst, outputs, inputs, gated), FLOAT16_EXPONENT);
      }
    }
  }
}

/** Four columns of 32-bit elements: 16 contiguous bytes for each input, 32 bytes apart. */
function packQuad32(
  to: usize,
  inputs: i32,
  from: usize,
  rowBytes: usize,
  columnBytes: usize,
  valid: i32,
): void {
  let k = 0;
  if (valid === QUAD && columnBytes === 4) {
    for (; k + 4 <= inputs; k += 4) {
      // A 4 x 4 transpose.
      const a = v128.load(from);
      const b = v128.load(from + rowBytes);
      const c = v128.load(from + 2 * rowBytes);
      const d = v128.load(from + 3 * rowBytes);
      const ab01 = v128.shuffle<f32>(a, b, 0, 4, 1, 5);
      const ab23 = v128.shuffle<f32>(a, b, 2, 6, 3, 7);
      const cd01 = v128.shuffle<f32>(c, d, 0, 4, 1, 5);
      const cd23 = v128.shuffle<f32>(c, d, 2, 6, 3, 7);
      v128.store(to, v128.shuffle<i64>(ab01, cd01, 0, 2));
      v128.store(to, v128.shuffle<i64>(ab01, cd01, 1, 3), 32);
      v128.store(to, v128.shuffle<i64>(ab23, cd23, 0, 2), 64);
      v128.store(to, v128.shuffle<i64>(ab23, cd23, 1, 3), 96);
      from += 16;
      to += 128;
    }
  } else if (valid === QUAD && rowBytes === 4) {
    for (; k < inputs; k++) {
      v128.store(to, v128.load(from));
      from += columnBytes;
      to += 32;
    }
  }
  for (; k < inputs; k++) {
    for (let j = 0; j < QUAD; j++) {
      const bits = j < valid ? load<u32>(from + <usize>j * rowBytes) : 0;
      store<u32>(to + ((<usize>j) << 2), bits);
    }
    from += columnBytes;
    to += 32;
  }
}

/**
 * Four columns of 16-bit elements: every other element of 16 bytes for each input.
 * Written element by element, never by changing a vector that holds the other half
 * too: another worker may be packing that half. Tells whether any element has the
 * exponent of float16's infinity and NaN.
 */
function packQuad16(
  to: usize,
  inputs: i32,
  from: usize,
  rowBytes: usize,
  columnBytes: usize,
  valid: i32,
): bool {
  let seen = i16x8.splat(0);
  let k = 0;
  if (valid === QUAD && columnBytes === 2) {
    for (; k + 8 <= inputs; k += 8) {
      let row = from;
      for (let column = to; column !== to + 16; column += 4) {
        const v = v128.load(row);
        seen = v128.or(seen, areSpecial(v));
        v128.store_lane<u16>(column, v, 0, 0);
        v128.store_lane<u16>(column, v, 1, 16);
        v128.store_lane<u16>(column, v, 2, 32);
        v128.store_lane<u16>(column, v, 3, 48);
        v128.store_lane<u16>(column, v, 4, 64);
        v128.store_lane<u16>(column, v, 5, 80);
        v128.store_lane<u16>(column, v, 6, 96);
        v128.store_lane<u16>(column, v, 7, 112);
        row += rowBytes;
      }
      from += 16;
      to += 128;
    }
  } else if (valid === QUAD && rowBytes === 2) {
    for (; k < inputs; k++) {
      const v = v128.load64_zero(from);
      seen = v128.or(seen, areSpecial(v));
      v128.store_lane<u16>(to, v, 0, 0);
      v128.store_lane<u16>(to, v, 1, 4);
      v128.store_lane<u16>(to, v, 2, 8);
      v128.store_lane<u16>(to, v, 3, 12);
      from += columnBytes;
      to += 16;
    }
  }
  for (; k < inputs; k++) {
    for (let j = 0; j < QUAD; j++) {
      const bits = j < valid ? load<u16>(from + <usize>j * rowBytes) : 0;
      seen = v128.or(seen, areSpecial(i16x8.splat(bits)));
      store<u16>(to + ((<usize>j) << 2), bits);
    }
    from += columnBytes;
    to += 16;
  }
  return v128.any_true(seen);
}

/** All ones in the lanes whose float16 exponent is all ones. */
function areSpecial(v: v128): v128 {
  const exponent = i16x8.splat(FLOAT16_EXPONENT);
  return i16x8.eq(v128.and(v, exponent), exponent);
}
