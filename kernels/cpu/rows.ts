/**
 * The rows of a tile on their way into the inner loops: where they come from, how
 * they are grouped, and the order in which the loops read their inputs.
 */

/** Rows that the inner loops take at once: 6, or 4 where the engine would spill more. Set by the loader. */
declare const groupRows: i32;

/** Writes the address of every source row. */
export function locateRows(
  rows: usize,
  input: usize,
  inputStride: i32,
  rowIndex: usize,
  rowDivisor: i32,
  rowCount: i32,
): void {
  for (let r = 0; r < rowCount; r++) {
    const at = (<usize>r) << 2;
    const row = rowIndex && rowDivisor ? load<i32>(rowIndex + at) / rowDivisor : r;
    store<usize>(rows + at, input + ((<usize>row * <usize>inputStride) << 2));
  }
}

/** Number of groups the rows are processed in. Widening in the inner loops leaves registers for 4 rows only. */
export function groupsOf(rowCount: i32, innerLoopsWiden: bool): i32 {
  const most = ASC_FEATURE_RELAXED_SIMD && !innerLoopsWiden ? groupRows : 4;
  return (rowCount + most - 1) / most;
}

/** First row of group g; that of the group after the last is rowCount. Groups are even: 7 rows are 4 and 3, not 6 and 1. */
export function firstRowOf(g: i32, groups: i32, rowCount: i32): i32 {
  return g * (rowCount / groups) + min(g, rowCount % groups);
}

/** Copies inputs k to k + depth - 1 of all rows, group after group, each as [depth][rows of the group]. */
export function interleaveRows(
  to: usize,
  rows: usize,
  rowCount: i32,
  groups: i32,
  k: i32,
  depth: i32,
): void {
  for (let g = 0; g < groups; g++) {
    const first = firstRowOf(g, groups, rowCount);
    const count = firstRowOf(g + 1, groups, rowCount) - first;
    const step = (<usize>count) << 2;
    for (let r = 0; r < count; r += 2) {
      const at = rows + ((<usize>(first + r)) << 2);
      const even = load<usize>(at) + ((<usize>k) << 2);
      const odd = r + 1 < count ? load<usize>(at, sizeof<usize>()) + ((<usize>k) << 2) : 0;
      interleavePair(to + ((<usize>r) << 2), step, even, odd, depth);
    }
    to += <usize>depth * step;
  }
}

/** Two rows side by side, `step` bytes from one input to the next; one row if `odd` is 0. */
function interleavePair(to: usize, step: usize, even: usize, odd: usize, depth: i32): void {
  const isPair = odd !== 0;
  let k = 0;
  if (isPair) {
    for (; k + 4 <= depth; k += 4) {
      const e = v128.load(even);
      const o = v128.load(odd);
      const front = v128.shuffle<f32>(e, o, 0, 4, 1, 5);
      const back = v128.shuffle<f32>(e, o, 2, 6, 3, 7);
      v128.store_lane<u64>(to, front, 0);
      v128.store_lane<u64>(to + step, front, 1);
      v128.store_lane<u64>(to + 2 * step, back, 0);
      v128.store_lane<u64>(to + 3 * step, back, 1);
      even += 16;
      odd += 16;
      to += 4 * step;
    }
  }
  for (; k < depth; k++) {
    store<f32>(to, load<f32>(even));
    if (isPair) store<f32>(to, load<f32>(odd), 4);
    even += 4;
    odd += 4;
    to += step;
  }
}
