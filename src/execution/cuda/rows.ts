/** How rows of activations lie in device memory: their element type, and their width rounded up. */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import type { DType } from "../../tensor.ts";
import type { RowLayout } from "../device.ts";
import { checkRowWidth } from "../memory-checks.ts";
import { PADDING } from "./bundle/manifest.ts";

/** Element types that rows can have. */
export const ROW_TYPES = ["bfloat16", "float16", "float32"] as const;
export type RowType = (typeof ROW_TYPES)[number];

/** Columns of a panel of weights (panels.ts). Widths are rounded up to whole panels. */
export const PANEL = PADDING;

export function isRowType(dtype: DType): dtype is RowType {
  return (ROW_TYPES as readonly DType[]).includes(dtype);
}

/** A width as weights and rows have it. */
export function padded(width: number): number {
  return Math.ceil(width / PADDING) * PADDING;
}

/**
 * Rows of `width` values that go through weights of this element type: of that type too.
 *
 * @throws InvalidArgumentError
 */
export function rowLayoutOf(width: number, weights: DType): RowLayout {
  checkRowWidth(width);
  requireRowType("Rows for weights", weights);
  return { dtype: weights, width, pitch: padded(width) };
}

/** @throws InvalidArgumentError */
export function requireRowType(what: string, dtype: DType): asserts dtype is RowType {
  if (isRowType(dtype)) return;
  throw new InvalidArgumentError(
    `${what} of ${shown(dtype)} are not supported. Use one of ${ROW_TYPES.join(", ")}.`,
  );
}
