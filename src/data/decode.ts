/**
 * A handful of tokens through their experts and back in one operator, where the
 * device has one for it: sorting so few rows by expert takes longer than it saves.
 * What is computed is what buckets, products and aggregation compute; which of the
 * two ways a step goes depends on how many tokens it is for, and on nothing else
 * that changes from step to step.
 */

import type { DeviceBuffer, DeviceProperties, Projection, Stream } from "../execution/device.ts";
import { type OutputScope, summands } from "./aggregation.ts";
import type { Experts } from "./experts.ts";
import type { AggregationSpec, LayerSpec } from "./spec.ts";
import { productCount, type StepBuffers } from "./step-buffers.ts";

/**
 * Most tokens that the layer's experts can take in a single operator on this device; 0 if
 * none. It knows experts of two products and weighted sums, and drops no tokens.
 */
export function decodeTokensOf(
  device: Pick<DeviceProperties, "decodeTokens">,
  { experts, aggregation, router }: LayerSpec,
): number {
  const known =
    productCount(experts) === 2 &&
    aggregation.mode === "sum" &&
    router.capacityFactor === undefined;
  return known ? device.decodeTokens : 0;
}

/** Enqueues experts and aggregation: `buffers.hidden` and `buffers.ids` to `buffers.output`. */
export function recordDecode(
  stream: Stream,
  {
    experts,
    aggregation,
    topK,
  }: {
    readonly experts: Experts;
    readonly aggregation: AggregationSpec;
    readonly topK: number;
  },
  buffers: StepBuffers,
  scope: OutputScope,
): void {
  const [first, second] = experts.products as readonly [Projection, Projection];
  const [inner] = buffers.inner;
  stream.enqueue({
    kind: "decode",
    first,
    second,
    activation: experts.spec.activation,
    topK,
    input: buffers.hidden,
    ids: buffers.ids,
    ...(aggregation.weightsApplyTo === "input" && { inputScale: buffers.weights }),
    inner: inner as DeviceBuffer,
    ...summands(aggregation, buffers, scope),
  });
}
