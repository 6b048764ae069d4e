/**
 * Routing as operators: the router's weights on a device, and what one step
 * enqueues to get from hidden states to work lists. Router (router.ts) is the
 * public face for single batches; layers use LayerRouter.
 */

import type { Device, DeviceBuffer, Projection, Stream } from "../execution/device.ts";
import type { MatrixView } from "../tensor.ts";
import { fittingMatrix, fittingVector } from "./fit.ts";
import type { LayerSpec, RouterSpec } from "./spec.ts";
import type { StepBuffers } from "./step-buffers.ts";
import type { LayerWeights } from "./weights.ts";

/** The router's tensors on a device. */
export interface RouterWeights extends Disposable {
  readonly gate?: Projection;
  readonly selectionBias?: DeviceBuffer;
}

export interface RouterTensors {
  readonly gate: MatrixView | undefined;
  readonly gateBias: Float32Array | undefined;
  readonly selectionBias: Float32Array | undefined;
}

/** Copies the router's tensors to a device; on failure nothing stays allocated. */
export async function uploadRouter(
  device: Device,
  spec: RouterSpec,
  tensors: RouterTensors,
): Promise<RouterWeights> {
  const owned: Disposable[] = [];
  const dispose = () => {
    for (const each of owned) each[Symbol.dispose]();
  };
  try {
    let gate: Projection | undefined;
    if (tensors.gate !== undefined) {
      const { rows: outputs, columns: inputs, dtype } = tensors.gate;
      const shape = {
        count: 1,
        inputs,
        outputs,
        dtype,
        gated: false,
        bias: spec.bias ?? false,
      };
      gate = device.createProjection(shape, "router gate");
      owned.push(gate);
      await gate.write(0, "value", tensors.gate);
      if (tensors.gateBias !== undefined) gate.writeBias(0, "value", tensors.gateBias);
    }
    let selectionBias: DeviceBuffer | undefined;
    if (tensors.selectionBias !== undefined) {
      selectionBias = device.allocate(spec.experts * 4, "selection bias");
      owned.push(selectionBias);
      device.write(selectionBias, tensors.selectionBias);
    }
    return {
      ...(gate && { gate }),
      ...(selectionBias && { selectionBias }),
      [Symbol.dispose]: dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** The buffers that routing reads and writes. */
export type RoutingBuffers = Pick<
  StepBuffers,
  "capacity" | "tokens" | "hidden" | "logits" | "ids" | "weights" | "counts" | "buckets"
>;

/** Enqueues the gate product, if there is a gate: hidden states to logits. */
export function recordGate(stream: Stream, weights: RouterWeights, buffers: RoutingBuffers): void {
  if (weights.gate === undefined) return;
  stream.enqueue({
    kind: "project",
    projection: weights.gate,
    activation: { kind: "none" },
    input: buffers.hidden,
    output: buffers.logits,
    rows: {
      from: "all",
      tokens: buffers.tokens,
      capacity: buffers.capacity,
      matrix: 0,
    },
  });
}

/** Enqueues routing and bucketing: logits to ids, weights, counts and the work lists of `lanes` lanes. */
export function recordRoute(
  stream: Stream,
  spec: RouterSpec,
  routerWeights: RouterWeights,
  buffers: RoutingBuffers,
  lanes: number,
): void {
  const { experts, topK, rule, capacityFactor } = spec;
  const { tokens, logits, ids, weights, counts, buckets } = buffers;
  const { selectionBias } = routerWeights;
  stream.enqueue({
    kind: "route",
    rule,
    experts,
    topK,
    tokens,
    logits,
    ...(selectionBias && { selectionBias }),
    ids,
    weights,
    counts,
  });
  stream.enqueue({
    kind: "bucket",
    experts,
    topK,
    lanes,
    tokens,
    ids,
    ...(capacityFactor !== undefined && { capacityFactor }),
    buckets,
  });
}

/** The router of a layer: its weights on a device, and the operators of one step. */
export class LayerRouter implements Disposable {
  readonly #spec: RouterSpec;
  readonly #weights: RouterWeights;

  private constructor(spec: RouterSpec, weights: RouterWeights) {
    this.#spec = spec;
    this.#weights = weights;
  }

  /** On failure nothing stays allocated. @throws ShapeError if the source's tensors do not fit the spec */
  static async load(
    device: Device,
    { hiddenSize, router }: Pick<LayerSpec, "hiddenSize" | "router">,
    source: LayerWeights,
  ): Promise<LayerRouter> {
    const { experts } = router;
    const tensors: RouterTensors = {
      gate: fittingMatrix(await source.gate(), "The router's gate", experts, hiddenSize),
      gateBias: router.bias
        ? fittingVector(await source.gateBias?.(), "The router's bias", experts)
        : undefined,
      selectionBias: router.selectionBias
        ? fittingVector(await source.selectionBias?.(), "The router's selection bias", experts)
        : undefined,
    };
    return new LayerRouter(router, await uploadRouter(device, router, tensors));
  }

  /** Enqueues gate, routing and bucketing: hidden states to work lists of `lanes` lanes. */
  record(stream: Stream, buffers: StepBuffers, lanes: number): void {
    recordGate(stream, this.#weights, buffers);
    recordRoute(stream, this.#spec, this.#weights, buffers, lanes);
  }

  [Symbol.dispose](): void {
    this.#weights[Symbol.dispose]();
  }
}
