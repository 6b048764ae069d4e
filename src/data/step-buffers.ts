/**
 * The device memory one step of a layer works in, for batches of up to `capacity`
 * tokens: everything between the hidden states and the output. Allocated once and
 * used by every step that fits, so that captured graphs stay valid.
 *
 * T tokens, E experts, k = top_k, S = capacity * k slots, H hidden size, I intermediate
 * size. "rows" are activations as the device lays them out (`Device.rowLayout`).
 */

import {
  type AllocateOptions,
  BYTES_PER_PACKED_WEIGHT,
  type Device,
  type DeviceBuffer,
  type Packing,
  type RowLayout,
  rowBytes,
} from "../execution/device.ts";
import type { BucketBuffers } from "../execution/operators.ts";
import { BYTES_PER_ELEMENT, type DType } from "../tensor.ts";
import type { AggregationSpec, ExpertsSpec, LayerSpec, SharedExpertSpec } from "./spec.ts";

/** The sizes that decide how much memory a step needs. */
export interface StepShape {
  readonly hiddenSize: number;
  readonly experts: number;
  readonly topK: number;
  readonly expertForm: ExpertsSpec;
  readonly shared?: SharedExpertSpec;
  readonly aggregation: AggregationSpec["mode"];
  /** What rows are laid out for: that of the `Experts` that will work on them. */
  readonly rowWeights: DType;
  /** How those are kept. Default: as they are. */
  readonly packed?: Packing;
}

/** How the rows of a step lie in memory. */
export interface StepLayouts {
  /** Of width H: what experts read and what they put out. */
  readonly hidden: RowLayout;
  /** Of width I: between the products of the routed experts, and of the shared one. */
  readonly inner: RowLayout;
  readonly sharedInner?: RowLayout;
}

export class StepBuffers implements Disposable {
  /** Tokens there is room for. */
  readonly capacity: number;
  /** int32 [1]: tokens of this batch. */
  readonly tokens: DeviceBuffer;
  readonly layouts: StepLayouts;
  /** `capacity` rows of width H: the layer's input. */
  readonly hidden: DeviceBuffer;
  /** float32 [capacity, E]. */
  readonly logits: DeviceBuffer;
  /** int32 [capacity, k]. */
  readonly ids: DeviceBuffer;
  /** float32 [capacity, k]. */
  readonly weights: DeviceBuffer;
  /** int32 [E]. */
  readonly counts: DeviceBuffer;
  /** int32 [E]: time spent on each expert, in units of 100 ns. Absent where the device cannot tell. */
  readonly busy?: DeviceBuffer;
  readonly buckets: BucketBuffers;
  /** S rows of width I: between the products of the routed experts. */
  readonly inner: readonly DeviceBuffer[];
  /** S rows of width H: what the routed experts put out, by expert. */
  readonly rows: DeviceBuffer;
  /** Present if the layer has a shared expert: between its products, its output, its scale, float32 [capacity, 1]. */
  readonly shared?: {
    readonly inner: readonly DeviceBuffer[];
    readonly rows: DeviceBuffer;
    readonly scale?: DeviceBuffer;
  };
  /** [capacity, H] or [capacity, k * H], in float32 or a narrower type. */
  readonly output: DeviceBuffer;
  readonly #owned: DeviceBuffer[] = [];

  /**
   * The buffers for steps of a whole layer.
   *
   * @param packed how its experts' weights are kept
   * @throws OutOfDeviceMemoryError; nothing stays allocated then
   */
  static ofLayer(device: Device, spec: LayerSpec, capacity: number, packed: Packing): StepBuffers {
    const { hiddenSize, router, experts, shared, aggregation } = spec;
    const shape: StepShape = {
      hiddenSize,
      experts: router.experts,
      topK: router.topK,
      expertForm: experts,
      ...(shared && { shared }),
      aggregation: aggregation.mode,
      rowWeights: rowWeightsOf(spec),
      packed,
    };
    return new StepBuffers(device, shape, capacity);
  }

  /** @throws OutOfDeviceMemoryError; nothing stays allocated then */
  constructor(device: Device, shape: StepShape, capacity: number) {
    const { hiddenSize, experts, topK, expertForm, shared } = shape;
    const slots = capacity * topK;
    const allocate = (bytes: number, what: string, options?: AllocateOptions) => {
      const label = `${what} of ${capacity} tokens`;
      const buffer = device.allocate(Math.max(4, bytes), label, options);
      this.#owned.push(buffer);
      return buffer;
    };
    // What has elements of 32 bits.
    const make = (elements: number, what: string) => allocate(elements * 4, what);
    const rows = (layout: RowLayout, count: number, what: string) =>
      allocate(rowBytes(layout, count), what);
    const between = (spec: ExpertsSpec, layout: RowLayout, count: number, what: string) =>
      Array.from({ length: productCount(spec) - 1 }, () => rows(layout, count, what));
    const layout = (width: number) => device.rowLayout(width, shape.rowWeights);
    const hidden = layout(hiddenSize);
    const inner = layout(expertForm.intermediateSize);
    const sharedInner = shared && layout(shared.experts.intermediateSize);
    this.capacity = capacity;
    this.layouts = { hidden, inner, ...(sharedInner && { sharedInner }) };
    try {
      this.tokens = make(1, "token count");
      this.hidden = rows(hidden, capacity, "hidden states");
      this.logits = make(capacity * experts, "router logits");
      this.ids = make(slots, "expert ids");
      this.weights = make(slots, "routing weights");
      // Read after every step.
      this.counts = allocate(experts * 4, "expert counts", { mirrored: true });
      if (device.properties.timesExperts.available) this.busy = make(experts, "expert times");
      this.buckets = {
        offsets: make(experts + 1, "bucket offsets"),
        order: make(slots, "bucket order"),
        inverse: make(slots, "inverse bucket order"),
        laneOf: make(experts, "lane table"),
        weightBytes: experts * weightBytesOf(expertForm, shape.packed === true),
        packedBeside: shape.packed === "beside",
      };
      this.inner = between(expertForm, inner, slots, "expert intermediates");
      this.rows = rows(hidden, slots, "expert outputs");
      if (shared !== undefined && sharedInner !== undefined) {
        this.shared = {
          inner: between(shared.experts, sharedInner, capacity, "shared expert intermediates"),
          rows: rows(hidden, capacity, "shared expert output"),
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

  /** Element type of all rows. */
  get rowType(): DType {
    return this.layouts.hidden.dtype;
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

/** Bytes that products read of the weights of one expert, biases left out. */
export function weightBytesOf(spec: ExpertsSpec, packed = false): number {
  const { form, hiddenSize, intermediateSize, dtype, depth = 2 } = spec;
  const outer = (form === "gated" ? 3 : 2) * hiddenSize * intermediateSize;
  const between = form === "gated" ? 0 : (depth - 2) * intermediateSize ** 2;
  return (outer + between) * (packed ? BYTES_PER_PACKED_WEIGHT : BYTES_PER_ELEMENT[dtype]);
}

/**
 * The element type of weights that a layer's rows are laid out for: that of its experts. Rows
 * belong to routed and shared experts alike, so where the two differ it is float32, which
 * holds the values of either.
 */
export function rowWeightsOf({ experts, shared }: Pick<LayerSpec, "experts" | "shared">): DType {
  return shared === undefined || shared.experts.dtype === experts.dtype ? experts.dtype : "float32";
}

/** Values the layer puts out for each token. */
export function outputWidth(
  aggregation: AggregationSpec["mode"],
  hiddenSize: number,
  topK: number,
): number {
  return aggregation === "concat" ? topK * hiddenSize : hiddenSize;
}
