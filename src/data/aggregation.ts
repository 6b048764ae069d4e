/**
 * From expert rows back to tokens: the weighted sum in the order of each token's
 * choices (so that no plan can change a bit of it), or the rows side by side;
 * then the shared expert, then the residual.
 */

import type { Stream } from "../execution/device.ts";
import type { DecodeOperator } from "../execution/operators.ts";
import type { DType } from "../tensor.ts";
import type { Experts } from "./experts.ts";
import type { AggregationSpec } from "./spec.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** What differs from step to step. */
export interface OutputScope {
  /** Most tokens the step is for. */
  readonly mostTokens: number;
  /** Element type of the output: float32, or that of the rows. */
  readonly outputType: DType;
}

/**
 * Enqueues the aggregation of one step: `buffers.rows` (and `buffers.shared`) to `buffers.output`. What the rows and `buffers.inner`
 * hold is lost.
 */
export function recordAggregation(
  stream: Stream,
  spec: AggregationSpec,
  { experts, topK }: { readonly experts: Pick<Experts, "spec" | "count">; readonly topK: number },
  buffers: StepBuffers,
  scope: OutputScope,
): void {
  const { hiddenSize, intermediateSize } = experts.spec;
  const [inner] = buffers.inner;
  const { inverse, weightBytes } = buffers.buckets;
  stream.enqueue({
    kind: "combine",
    mode: spec.mode,
    topK,
    width: hiddenSize,
    rowType: buffers.rowType,
    rows: buffers.rows,
    inverse,
    ...summands(spec, buffers, scope),
    spent: {
      ...(inner && { inner }),
      innerWidth: intermediateSize,
      experts: experts.count,
      ...(weightBytes !== undefined && { weightBytes }),
    },
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
