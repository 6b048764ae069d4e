/**
 * What the layer is compared with: eager execution, expert by expert. Tokens are
 * routed and bucketed, the counts come back to the host, and every expert that
 * has tokens is enqueued after the one before, all on one stream. Same kernels,
 * same weights, same device with all its compute units; no slices, no streams
 * beside each other, no captured graph. It is how an MoE layer runs when it is
 * written down as a loop over its experts.
 */

import { tokenBucket } from "../../control/graph-manager.ts";
import { recordAggregation } from "../../data/aggregation.ts";
import { StepBuffers } from "../../data/step-buffers.ts";
import type { Stream } from "../../execution/device.ts";
import { DeviceTensor } from "../../execution/device-tensor.ts";
import type { Tensor } from "../../tensor.ts";
import { type LoadedLayer, writeBatch } from "./bare-step.ts";

export class SequentialLayer implements Disposable {
  readonly #layer: LoadedLayer;
  readonly #buffers: StepBuffers;
  readonly #stream: Stream;
  #tokens = 0;

  /**
   * @param layer its weights stay the caller's
   * @param capacity most tokens of a batch
   * @throws OutOfDeviceMemoryError
   */
  constructor(layer: LoadedLayer, capacity: number) {
    const { device, spec } = layer;
    this.#layer = layer;
    const { packed } = layer.modules.parts.experts;
    this.#buffers = StepBuffers.ofLayer(device, spec, tokenBucket(capacity), packed);
    this.#stream = device.createStream({ group: 0, priority: 0 });
    // Every expert is a lane of its own, so that it can be enqueued by itself.
    device.write(
      this.#buffers.buckets.laneOf,
      Int32Array.from({ length: spec.router.experts }, (_, expert) => expert),
    );
  }

  /** A whole call: for hidden states in host memory it brings the output there too. */
  async forward(hidden: Tensor | DeviceTensor): Promise<void> {
    await this.write(hidden);
    await this.run();
    if (!(hidden instanceof DeviceTensor)) await this.output();
  }

  /** @param hidden float [T, H] */
  write(hidden: Tensor | DeviceTensor): Promise<void> {
    this.#tokens = hidden.shape[0] as number;
    return writeBatch(this.#layer, this.#buffers, hidden);
  }

  /** Routes what was written, waits for the counts, and runs expert after expert. */
  async run(): Promise<void> {
    const { device, spec, modules } = this.#layer;
    const { router, aggregation } = spec;
    const { experts: lanes, topK } = router;
    const buffers = this.#buffers;
    const { routing, experts } = modules.parts;
    const mostTokens = tokenBucket(this.#tokens);
    const { computeUnits } = device.properties;
    device.setComputeBudgets({ realisation: "shared", units: [computeUnits] });
    routing.record(this.#stream, buffers, { mostTokens, lanes });
    await device.synchronize();

    const counts = new Int32Array(lanes);
    await device.read(buffers.counts, counts);
    counts.forEach((count, lane) => {
      if (count === 0) return;
      experts.record(this.#stream, buffers.hidden, buffers.inner, buffers.rows, {
        from: "bucket",
        buckets: buffers.buckets,
        lane,
        lanes,
        topK,
        mostTokens,
      });
    });
    const scope = { mostTokens, outputType: "float32" } as const;
    recordAggregation(this.#stream, aggregation, { experts, topK }, buffers, scope);
    await device.synchronize();
  }

  /** float32 [T, H]: what the last run put out. */
  async output(): Promise<Float32Array> {
    const { device, spec } = this.#layer;
    const output = new Float32Array(this.#tokens * spec.hiddenSize);
    await device.read(this.#buffers.output, output);
    return output;
  }

  [Symbol.dispose](): void {
    this.#stream[Symbol.dispose]();
    this.#buffers[Symbol.dispose]();
  }
}
