/**
 * The device memory one step of a layer works in, for batches of up to `capacity`
 * tokens: everything between the hidden states and the output. Allocated once and
 * used by every step that fits, so that captured graphs stay valid.
 *
 * T tokens, E experts, k = top_k, S = capacity * k slots, H hidden size.
 */

import type { Device, DeviceBuffer } from "../execution/device.ts";
import type { BucketBuffers } from "../execution/operators.ts";
import type { AggregationSpec, ExpertsSpec, SharedExpertSpec } from "./spec.ts";

/** The sizes that decide how much memory a step needs. */
export interface StepShape {
  readonly hiddenSize: number;
  readonly experts: number;
  readonly topK: number;
  readonly expertForm: ExpertsSpec;
  readonly shared?: SharedExpertSpec;
  readonly aggregation: AggregationSpec["mode"];
}

export class StepBuffers implements Disposable {
  /** Tokens there is room for. */
  readonly capacity: number;
  /** int32 [1]: tokens of this batch. */
  readonly tokens: DeviceBuffer;
  /** float32 [capacity, H]. */
  readonly hidden: DeviceBuffer;
  /** float32 [capacity, E]. */
  readonly logits: DeviceBuffer;
  /** int32 [capacity, k]. */
  readonly ids: DeviceBuffer;
  /** float32 [capacity, k]. */
  readonly weights: DeviceBuffer;
  /** int32 [E]. */
  readonly counts: DeviceBuffer;
  /** int32 [E]: time spent on each expert, in units of 100 ns. */
  readonly busy: DeviceBuffer;
  readonly buckets: BucketBuffers;
  /** float32 [S, I]: between the products of the routed experts. */
  readonly inner: readonly DeviceBuffer[];
  /** float32 [S, H]: what the routed experts put out, in row order. */
  readonly rows: DeviceBuffer;
  /** Present if the layer has a shared expert: between its products, its output, its per-token scale. */
  readonly shared?: {
    readonly inner: readonly DeviceBuffer[];
    readonly rows: DeviceBuffer;
    readonly scale?: DeviceBuffer;
  };
  /** float32 [capacity, H] or [capacity, k * H]. */
  readonly output: DeviceBuffer;
  readonly #owned: DeviceBuffer[] = [];

  /** @throws OutOfDeviceMemoryError; nothing stays allocated then */
  constructor(device: Device, shape: StepShape, capacity: number) {
    const { hiddenSize, experts, topK, expertForm, shared } = shape;
    const slots = capacity * topK;
    const make = (elements: number, what: string) => {
      const buffer = device.allocate(Math.max(1, elements) * 4, `${what} of ${capacity} tokens`);
      this.#owned.push(buffer);
      return buffer;
    };
    const between = (spec: ExpertsSpec, rows: number, what: string) =>
      Array.from({ length: productCount(spec) - 1 }, () =>
        make(rows * spec.intermediateSize, what),
      );
    this.capacity = capacity;
    try {
      this.tokens = make(1, "token count");
      this.hidden = make(capacity * hiddenSize, "hidden states");
      this.logits = make(capacity * experts, "router logits");
      this.ids = make(slots, "expert ids");
      this.weights = make(slots, "routing weights");
      this.counts = make(experts, "expert counts");
      this.busy = make(experts, "expert times");
      this.buckets = {
        offsets: make(experts + 1, "bucket offsets"),
        order: make(slots, "bucket order"),
        inverse: make(slots, "inverse bucket order"),
        laneOf: make(experts, "lane table"),
      };
      this.inner = between(expertForm, slots, "expert intermediates");
      this.rows = make(slots * hiddenSize, "expert outputs");
      if (shared !== undefined) {
        this.shared = {
          inner: between(shared.experts, capacity, "shared expert intermediates"),
          rows: make(capacity * hiddenSize, "shared expert output"),
          ...(shared.gate && { scale: make(capacity, "shared expert gate") }),
        };
      }
      const width = outputWidth(shape.aggregation, hiddenSize, topK);
      this.output = make(capacity * width, "layer output");
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Frees the memory; harmless when repeated. */
  [Symbol.dispose](): void {
    for (const buffer of this.#owned) buffer[Symbol.dispose]();
    this.#owned.length = 0;
  }
}

/** Number of matrix products an expert of this form consists of. */
export function productCount(spec: ExpertsSpec): number {
  return spec.form === "gated" ? 2 : (spec.depth ?? 2);
}

/** Values the layer puts out for each token. */
export function outputWidth(
  aggregation: AggregationSpec["mode"],
  hiddenSize: number,
  topK: number,
): number {
  return aggregation === "concat" ? topK * hiddenSize : hiddenSize;
}
