/** What `combine` and `decode` add a token's rows up with: weights, shared output, residual. */

import type { CombineOperator } from "../../operators.ts";
import type { KernelValues } from "../launch/launch.ts";
import { padded, type RowType } from "../rows.ts";
import type { OperatorEncoder } from "./encoder.ts";

/** The arguments of both operators that say so. */
export type Aggregation = Pick<CombineOperator, "weights" | "shared" | "sharedScale" | "residual">;

export interface AggregationSizes {
  readonly mostTokens: number;
  readonly slots: number;
  readonly width: number;
  readonly rowType: RowType;
}

/**
 * Checks them and returns `weights`, `shared`, `shared_scale`, `residual`, `row_pitch` and `options`.
 *
 * @param kernel whose option bits count
 */
export function aggregationValues(
  operator: Aggregation,
  { mostTokens, slots, width, rowType }: AggregationSizes,
  kernel: "combine" | "decode_second",
  to: OperatorEncoder,
): KernelValues & { readonly options: number } {
  const { manifest } = to.context.kernels;
  if (operator.sharedScale !== undefined && operator.shared === undefined) {
    to.fail("sharedScale is set without shared", "Set both, or neither.");
  }
  const pitch = padded(width);
  const rowElements = mostTokens * pitch;
  const given = {
    weights: to.optional("weights", operator.weights, slots),
    shared: to.optional("shared", operator.shared, rowElements, rowType),
    shared_scale: to.optional("sharedScale", operator.sharedScale, mostTokens),
    residual: to.optional("residual", operator.residual, rowElements, rowType),
  };
  const bits = manifest.options[kernel] ?? {};
  let options = 0;
  for (const [name, address] of Object.entries(given)) {
    if (address !== null) options |= bits[name] ?? 0;
  }
  return { ...given, row_pitch: pitch, options };
}

/** The element type that an aggregation puts out: that of the rows, or float32. */
export function outputTypeOf(
  operator: Pick<CombineOperator, "outputType">,
  rowType: RowType,
  to: OperatorEncoder,
): RowType {
  const known = rowType === "float32" ? [rowType] : [rowType, "float32" as const];
  return to.oneOf("outputType", operator.outputType, known);
}
