/**
 * From expert rows back to tokens: the weighted sum in the order of each token's
 * choices (so that no plan can change a bit of it), or the rows side by side;
 * then the shared expert, then the residual.
 */

import type { Stream } from "../execution/device.ts";
import type { DecodeOperator } from "../execution/operators.ts";
import type { DType } from "../tensor.ts";
import type { AggregationSpec } from "./spec.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** What differs from step to step. */
export interface OutputScope {
  /** Most tokens the step is for. */
  readonly mostTokens: number;
  /** Element type of the output: float32, or that of the rows. */
  readonly outputType: DType;
}

/** Enqueues the aggregation of one step: `buffers.rows` (and `buffers.shared`) to `buffers.output`. */
export function recordAggregation(
  stream: Stream,
  spec: AggregationSpec,
  sizes: { readonly hiddenSize: number; readonly topK: number },
  buffers: StepBuffers,
  scope: OutputScope,
): void {
  stream.enqueue({
    kind: "combine",
    mode: spec.mode,
    topK: sizes.topK,
    width: sizes.hiddenSize,
    rowType: buffers.rowType,
    rows: buffers.rows,
    inverse: buffers.buckets.inverse,
    ...summands(spec, buffers, scope),
  });
}

/** What `combine` and `decode` have in common: everything but the experts' rows. */
export function summands(
  spec: AggregationSpec,
  buffers: StepBuffers,
  { mostTokens, outputType }: OutputScope,
): Pick<
  DecodeOperator,
  | "mostTokens"
  | "tokens"
  | "weights"
  | "shared"
  | "sharedScale"
  | "residual"
  | "outputType"
  | "output"
> {
  const { tokens, shared, output } = buffers;
  return {
    mostTokens,
    tokens,
    ...(spec.weightsApplyTo === "output" && { weights: buffers.weights }),
    ...(shared && { shared: shared.rows }),
    ...(shared?.scale && { sharedScale: shared.scale }),
    ...(spec.residual && { residual: buffers.hidden }),
    outputType,
    output,
  };
}
