/**
 * From finished sums to stored results: scale, bias, activation, and only the
 * columns that are outputs.
 */

import { activate, joinGate } from "./activation";
import { SUM_ROW_BYTES } from "./multiply";
import { panelOutputs } from "./pack";
import { loadLanes, storeLanes } from "./vector";

/** Finishes all rows of one panel; parameters as in `project`, `sums` being [rowCount][8]. */
export function finishPanel(
  sums: usize,
  rowCount: i32,
  panel: i32,
  outputs: i32,
  gated: bool,
  rowIndex: usize,
  bias: usize,
  scale: usize,
  activation: i32,
  alpha: f32,
  limit: f32,
  output: usize,
  outputStride: i32,
): void {
  const firstOutput = panel * panelOutputs(gated);
  const offset = (<usize>firstOutput) << 2;
  const left = outputs - firstOutput;
  let lowBias = f32x4.splat(0);
  let highBias = lowBias;
  if (bias) {
    const low = gated ? bias + ((<usize>outputs) << 2) : bias;
    const high = gated ? bias : bias + 16;
    lowBias = loadLanes(low + offset, left);
    highBias = loadLanes(high + offset, gated ? left : left - 4);
  }
  for (let r = 0; r < rowCount; r++) {
    let low = v128.load(sums);
    let high = v128.load(sums, 16);
    if (scale) {
      const slot = rowIndex ? load<i32>(rowIndex + ((<usize>r) << 2)) : r;
      const factor = v128.load32_splat(scale + ((<usize>slot) << 2));
      low = f32x4.mul(low, factor);
      high = f32x4.mul(high, factor);
    }
    if (bias) {
      low = f32x4.add(low, lowBias);
      high = f32x4.add(high, highBias);
    }
    const to = output + ((<usize>r * <usize>outputStride) << 2) + offset;
    if (gated) {
      storeLanes(to, joinGate(activation, low, high, alpha, limit), left);
    } else {
      storeLanes(to, activate(activation, low), left);
      storeLanes(to + 16, activate(activation, high), left - 4);
    }
    sums += SUM_ROW_BYTES;
  }
}
