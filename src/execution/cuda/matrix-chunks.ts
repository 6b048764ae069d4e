/**
 * A strided matrix in host memory, cut into pieces that can be brought to the device
 * one at a time. A piece is a block of the matrix together with the run of memory
 * that its elements lie in, gaps included: one copy, whatever the strides; the
 * kernel that puts the elements in place knows strides.
 */

import type { MatrixView, TensorData } from "../../tensor.ts";

export interface MatrixChunk {
  /** First row and column of the block in the matrix. */
  readonly row: number;
  readonly column: number;
  readonly rows: number;
  readonly columns: number;
  /** The memory that holds the block. */
  readonly data: TensorData;
  /** Element of `data` that is the block's first. */
  readonly origin: number;
}

/**
 * Cuts along the axis whose neighbours lie further apart, so that a piece holds as
 * little of its neighbours as can be.
 *
 * @param mostBytes of a piece's memory
 */
export function* chunksOf(matrix: MatrixView, mostBytes: number): Generator<MatrixChunk> {
  const most = Math.max(1, Math.floor(mostBytes / matrix.data.BYTES_PER_ELEMENT));
  yield* cut(matrix, { row: 0, column: 0, rows: matrix.rows, columns: matrix.columns }, most);
}

type Block = Pick<MatrixChunk, "row" | "column" | "rows" | "columns">;

function* cut(matrix: MatrixView, block: Block, most: number): Generator<MatrixChunk> {
  const { rows, columns } = block;
  const { offset, rowStride, columnStride } = matrix;
  const rowSpan = (rows - 1) * rowStride;
  const columnSpan = (columns - 1) * columnStride;
  if (Math.abs(rowSpan) + Math.abs(columnSpan) < most) {
    const first = offset + block.row * rowStride + block.column * columnStride;
    const begin = first + Math.min(0, rowSpan) + Math.min(0, columnSpan);
    const end = first + Math.max(0, rowSpan) + Math.max(0, columnSpan) + 1;
    yield { ...block, data: matrix.data.subarray(begin, end), origin: first - begin };
    return;
  }
  const byRows = columns === 1 || (rows > 1 && Math.abs(rowStride) >= Math.abs(columnStride));
  const stride = Math.abs(byRows ? rowStride : columnStride);
  const across = Math.abs(byRows ? columnSpan : rowSpan);
  // As many as fit beside each other; where not even one does, it is cut the other way.
  const step = Math.max(1, Math.floor((most - 1 - across) / stride) + 1);
  if (byRows) {
    for (let row = 0; row < rows; row += step) {
      const piece = { row: block.row + row, rows: Math.min(step, rows - row) };
      yield* cut(matrix, { ...block, ...piece }, most);
    }
  } else {
    for (let column = 0; column < columns; column += step) {
      const piece = { column: block.column + column, columns: Math.min(step, columns - column) };
      yield* cut(matrix, { ...block, ...piece }, most);
    }
  }
}
