/**
 * From expert rows back to tokens: the weighted sum in the order of each token's
 * choices (so that no plan can change a bit of it), or the rows side by side;
 * then the shared expert, then the residual.
 */

import type { Stream } from "../execution/device.ts";
import type { AggregationSpec } from "./spec.ts";
import type { StepBuffers } from "./step-buffers.ts";

/** Enqueues the aggregation of one step: `buffers.rows` (and `buffers.shared`) to `buffers.output`. */
export function recordAggregation(
  stream: Stream,
  spec: AggregationSpec,
  sizes: { readonly hiddenSize: number; readonly topK: number },
  buffers: StepBuffers,
): void {
  const { shared } = buffers;
  stream.enqueue({
    kind: "combine",
    mode: spec.mode,
    topK: sizes.topK,
    width: sizes.hiddenSize,
    tokens: buffers.tokens,
    rows: buffers.rows,
    inverse: buffers.buckets.inverse,
    ...(spec.weightsApplyTo === "output" && { weights: buffers.weights }),
    ...(shared && { shared: shared.rows }),
    ...(shared?.scale && { sharedScale: shared.scale }),
    ...(spec.residual && { residual: buffers.hidden }),
    output: buffers.output,
  });
}
