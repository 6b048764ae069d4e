/**
 * What the layer is compared with: eager execution, expert by expert. Tokens are
 * routed and bucketed, the counts come back to the host, and every expert that
 * has tokens is enqueued after the one before, all on one stream. Same kernels,
 * same weights, same device with all its compute units; no slices, no streams
 * beside each other, no captured graph. It is how an MoE layer runs when it is
 * written down as a loop over its experts.
 */

import { recordAggregation } from "../../data/aggregation.ts";
import type { LayerSpec } from "../../data/spec.ts";
import { StepBuffers } from "../../data/step-buffers.ts";
import type { Device, Stream } from "../../execution/device.ts";
import type { LayerModules } from "../../layer/layer-modules.ts";
import type { Tensor } from "../../tensor.ts";

export class SequentialLayer implements Disposable {
  readonly #device: Device;
  readonly #spec: LayerSpec;
  readonly #modules: LayerModules;
  readonly #buffers: StepBuffers;
  readonly #stream: Stream;

  /**
   * @param modules the weights; they stay the caller's
   * @param capacity most tokens of a batch
   * @throws OutOfDeviceMemoryError
   */
  constructor(device: Device, spec: LayerSpec, modules: LayerModules, capacity: number) {
    const { hiddenSize, router, experts, aggregation } = spec;
    this.#device = device;
    this.#spec = spec;
    this.#modules = modules;
    this.#buffers = new StepBuffers(
      device,
      {
        hiddenSize,
        experts: router.experts,
        topK: router.topK,
        expertForm: experts,
        aggregation: aggregation.mode,
      },
      capacity,
    );
    this.#stream = device.createStream({ group: 0, priority: 0 });
    // Every expert is a lane of its own, so that it can be enqueued by itself.
    device.write(
      this.#buffers.buckets.laneOf,
      Int32Array.from({ length: router.experts }, (_, expert) => expert),
    );
  }

  /** @param hidden float32 [T, H] @returns float32 [T, H] */
  async forward(hidden: Tensor<Float32Array>): Promise<Float32Array> {
    const { hiddenSize, router, aggregation } = this.#spec;
    const device = this.#device;
    const buffers = this.#buffers;
    const { routing, experts } = this.#modules.parts;
    const { computeUnits } = device.properties;
    device.setComputeBudgets({ realisation: "shared", units: [computeUnits] });
    device.write(buffers.hidden, hidden.data);
    device.write(buffers.tokens, Int32Array.of(hidden.shape[0] as number));
    routing.record(this.#stream, buffers, router.experts);
    await device.synchronize();

    const counts = new Int32Array(router.experts);
    await device.read(buffers.counts, counts);
    counts.forEach((count, expert) => {
      if (count === 0) return;
      experts.record(this.#stream, buffers.hidden, buffers.inner, buffers.rows, {
        from: "bucket",
        buckets: buffers.buckets,
        lane: expert,
        topK: router.topK,
      });
    });
    recordAggregation(this.#stream, aggregation, { hiddenSize, topK: router.topK }, buffers);
    await device.synchronize();
    const output = new Float32Array(hidden.data.length);
    await device.read(buffers.output, output);
    return output;
  }

  [Symbol.dispose](): void {
    this.#stream[Symbol.dispose]();
    this.#buffers[Symbol.dispose]();
  }
}
