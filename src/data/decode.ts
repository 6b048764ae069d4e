/**
 * A handful of tokens through their experts and back in one operator, where the
 * device has one for it: sorting so few rows by expert takes longer than it saves.
 * What is computed is what buckets, products and aggregation compute; which of the
 * two ways a step goes depends on how many tokens it is for, and on nothing else
 * that changes from step to step.
 */

import type { DeviceBuffer, DeviceProperties, Projection, Stream } from "../execution/device.ts";
import { FAST_MEMORY } from "../execution/fast-memory.ts";
import type { RouteOperator } from "../execution/operators.ts";
import { type OutputScope, summands } from "./aggregation.ts";
import type { Experts } from "./experts.ts";
import type { AggregationSpec, LayerSpec } from "./spec.ts";
import { productCount, type StepBuffers, weightBytesOf } from "./step-buffers.ts";

/**
 * The operator reads a plain expert once for every token that chose it. An expert that takes no more
 * than this share of the device's cache is found there the second time.
 */
const CACHED_SHARE = 1 / 2;
/**
 * Larger experts are read from memory again where tokens that share one do not meet. Measured on an
 * H100: with half as many choices as experts a step still takes less time than through buckets (462 us and
 * 475, Mixtral-8x7B, 2 tokens; 220 and 241, 32 experts of 48 MiB, top 4, 4 tokens), with as many it takes
 * more (642 and 608, Mixtral-8x7B, 4 tokens).
 */
const CHOICES_SHARE = 1 / 2;
/**
 * Most tokens that take this operator where memory is fast: what tokens that share an expert read again costs as much as the first
 * time, and buckets, which read an expert once, serve them better. Measured on an H200, 4 tokens, uniform and Zipf 1.5: 167 and
 * 142 us became 173 and 125 for 32 experts of 48 MiB, 591 and 440 became 625 and 406 for 256 of 84 MiB; on an H100 buckets lost
 * everywhere.
 */
const FAST_MEMORY_TOKENS = 2;
/**
 * That is if the choices of one more have so many bytes of weights, beside which what buckets take is little: 24 of 9 MiB are too
 * few (62 us became 65 with Zipf 1.5), 12 of 48 MiB enough.
 */
const WORTH_BUCKETS = 400e6;

type DecodingDevice = Pick<
  DeviceProperties,
  "decodeTokens" | "cacheBytes" | "memoryBytesPerSecond"
>;

/**
 * Most tokens that the layer's experts can and should take in a single operator on this
 * device; 0 if none. It knows experts of two products and weighted sums, and drops no tokens.
 *
 * @param packed whether experts are there packed: an expert that tokens share the operator can read once for all of them then, and does where
 *   many do (execution/cuda/operators/decode-joint.ts). That it takes less time than buckets was measured on an H200, with 4 tokens of six shapes
 */
export function decodeTokensOf(
  { decodeTokens, cacheBytes, memoryBytesPerSecond }: DecodingDevice,
  { experts, aggregation, router }: LayerSpec,
  packed = false,
): number {
  const known =
    productCount(experts) === 2 &&
    aggregation.mode === "sum" &&
    router.capacityFactor === undefined;
  if (!known) return 0;
  if (cacheBytes === null || packed) return decodeTokens;
  const expertBytes = weightBytesOf(experts);
  const { topK } = router;
  const fast =
    (memoryBytesPerSecond ?? 0) >= FAST_MEMORY &&
    (FAST_MEMORY_TOKENS + 1) * topK * expertBytes >= WORTH_BUCKETS;
  const most = fast ? Math.min(decodeTokens, FAST_MEMORY_TOKENS) : decodeTokens;
  if (expertBytes <= CACHED_SHARE * cacheBytes) return most;
  const choices = Math.floor((CHOICES_SHARE * router.experts) / topK);
  // One token's experts are distinct: nothing is read twice.
  return Math.min(most, Math.max(1, choices));
}

/**
 * Enqueues experts and aggregation: `buffers.hidden` and `buffers.ids` to `buffers.output`.
 *
 * @param routing what fills `buffers.ids`, if nothing in front of it does
 */
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
  routing?: RouteOperator,
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
    ...(routing && { routing }),
    ...(aggregation.weightsApplyTo === "input" && { inputScale: buffers.weights }),
    inner: inner as DeviceBuffer,
    ...summands(aggregation, buffers, scope),
  });
}
