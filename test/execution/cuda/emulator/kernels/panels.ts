/** Weights in panels, as kernels/triton/experts/grouped.py has them: [matrices, k / 64, n, 64]. */

import type { Pointer } from "../memory.ts";

/** Columns that lie together. */
export const PANEL = 64;

/** One of several matrices of n rows and k columns. */
export interface PaneledMatrix {
  readonly matrix: number;
  readonly n: number;
  readonly k: number;
}

/** Rows of a matrix from one on, each put together from its piece of every panel. */
export function loadRows(
  w: Pointer,
  { matrix, n, k }: PaneledMatrix,
  first: number,
  count: number,
): Float32Array[] {
  const rows = Array.from({ length: count }, () => new Float32Array(k));
  const panels = k / PANEL;
  for (let panel = 0; panel < panels; panel++) {
    const pieces = w.load(((matrix * panels + panel) * n + first) * PANEL, count * PANEL);
    for (const [i, row] of rows.entries()) {
      row.set(pieces.subarray(i * PANEL, (i + 1) * PANEL), panel * PANEL);
    }
  }
  return rows;
}

/** Stores a stretch of a row from a column on; the row's pieces lie `panelStep` apart. */
export function storeStretch(
  target: Pointer,
  row: number,
  panelStep: number,
  column: number,
  values: Float32Array,
): void {
  for (let done = 0; done < values.length; ) {
    const within = (column + done) % PANEL;
    const piece = values.subarray(done, done + PANEL - within);
    target.store(row + ((column + done - within) / PANEL) * panelStep + within, piece);
    done += piece.length;
  }
}
