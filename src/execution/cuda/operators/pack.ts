/**
 * Matrices into the kernels' layouts: converted, at a pitch or in panels of columns, padded with zeros. For
 * weights, and for rows that come in another type or width. No operator: the
 * device runs this work of its own accord.
 */

import { InvalidArgumentError } from "../../../errors.ts";
import type { DType } from "../../../tensor.ts";
import { type RowLayout, rowBytes } from "../../device.ts";
import type { CudaBuffer } from "../buffer.ts";
import { PANEL, padded, type RowType, requireRowType } from "../rows.ts";
import type { Work } from "../work.ts";
import { persistentGrid } from "./grids.ts";
import { kernelWork, type LaunchContext, type OwnKernelWork } from "./kernel-work.ts";

/** A matrix in device memory and where it goes; strides and steps in elements. */
export interface Packing {
  /** Address of element (0, 0). */
  readonly source: bigint;
  readonly sourceType: RowType;
  readonly rows: number;
  readonly columns: number;
  readonly rowStride: number;
  readonly columnStride: number;
  /** Address of the target's first column in the first row. */
  readonly target: bigint;
  readonly targetType: RowType;
  /** The column of the target that column 0 goes to. */
  readonly firstColumn: number;
  /** From one row of the target to the next. */
  readonly rowStep: number;
  /** From `PANEL` columns of the target to the next: `PANEL` itself where rows are in one piece. */
  readonly panelStep: number;
  /** Elements written of each target row: the columns, then zeros. */
  readonly pitch: number;
}

/** The kernel that does it; its launch is the caller's to dispose of. */
export function packWork(context: LaunchContext, packing: Packing): OwnKernelWork {
  const { source, sourceType, target, targetType, rows, columns, pitch } = packing;
  const kernel = context.kernels.find({
    operator: "pack",
    source: sourceType,
    element: targetType,
  });
  return kernelWork(
    context,
    kernel,
    {
      source,
      destination: target,
      rows,
      columns,
      row_stride: packing.rowStride,
      column_stride: packing.columnStride,
      row_step: packing.rowStep,
      panel_step: packing.panelStep,
      first_column: packing.firstColumn,
      pitch,
    },
    persistentGrid(kernel.entry, rows, pitch),
  );
}

/** A layout of this device. */
type GpuRowLayout = RowLayout & { readonly dtype: RowType };

/**
 * @param target checked to be open and of this device
 * @param layout checked to be one of some device
 * @param rows checked to be a number of rows
 * @throws InvalidArgumentError if they or the sizes do not fit
 */
export function checkRows(
  target: CudaBuffer,
  layout: RowLayout,
  rows: number,
): asserts layout is GpuRowLayout {
  const { width, pitch } = layout;
  requireRowType("Rows", layout.dtype);
  if (pitch !== padded(width)) {
    throw new InvalidArgumentError(
      `Rows of ${width} values at a pitch of ${pitch} are not this device's layout. Use what rowLayout() gives.`,
    );
  }
  const bytes = rowBytes(layout, rows);
  if (target.byteLength >= bytes) return;
  throw new InvalidArgumentError(
    `Buffer "${target.label}" has ${target.byteLength} bytes; ${rows} rows of ${pitch} ${layout.dtype} need ${bytes}. Allocate it larger, or write fewer rows.`,
  );
}

/**
 * Dense rows [rows, width] in device memory into a layout: a copy where they lie that way already.
 *
 * @param target, layout and rows as for `checkRows`
 * @returns nothing for no rows
 * @throws InvalidArgumentError if they, the type or the sizes do not fit
 */
export function rowsWork(
  context: LaunchContext,
  target: CudaBuffer,
  layout: RowLayout,
  source: bigint,
  dtype: DType,
  rows: number,
): (Work | OwnKernelWork)[] {
  checkRows(target, layout, rows);
  requireRowType("Source rows", dtype);
  const { width, pitch } = layout;
  if (rows === 0) return [];
  if (dtype === layout.dtype && width === pitch) {
    return [{ kind: "copy", target: target.address, source, bytes: rowBytes(layout, rows) }];
  }
  return [
    packWork(context, {
      source,
      sourceType: dtype,
      rows,
      columns: width,
      rowStride: width,
      columnStride: 1,
      target: target.address,
      targetType: layout.dtype,
      firstColumn: 0,
      rowStep: pitch,
      panelStep: PANEL,
      pitch,
    }),
  ];
}
