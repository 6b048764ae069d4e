/**
 * Routing as operators: the router's weights on a device, and what one step
 * enqueues to get from hidden states to work lists. Router (router.ts) is the
 * public face for single batches; layers use LayerRouter.
 */

import { InvalidArgumentError } from "../errors.ts";
import type {
  Device,
  DeviceBuffer,
  Projection,
  ProjectionSpec,
  Stream,
} from "../execution/device.ts";
import { DeviceTensor } from "../execution/device-tensor.ts";
import type { RouteOperator } from "../execution/operators.ts";
import {
  BYTES_PER_ELEMENT,
  checkDataLength,
  type DType,
  type MatrixView,
  sizeOf,
  type Tensor,
  toFloat32,
} from "../tensor.ts";
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

function refuseNaN(bias: Float32Array | undefined, what: string): void {
  const expert = bias?.findIndex(Number.isNaN) ?? -1;
  if (expert < 0) return;
  throw new InvalidArgumentError(
    `The router's ${what} of expert ${expert} is NaN; it must be a number.`,
  );
}

/**
 * Copies the router's tensors to a device; on failure nothing stays allocated.
 *
 * @param rowWeights element type of weights that the hidden states are laid out for
 * @throws InvalidArgumentError if a bias is NaN, which would be found in every row of logits
 */
export async function uploadRouter(
  device: Device,
  spec: RouterSpec,
  tensors: RouterTensors,
  rowWeights: DType,
): Promise<RouterWeights> {
  refuseNaN(tensors.gateBias, "bias");
  refuseNaN(tensors.selectionBias, "selection bias");
  const owned: Disposable[] = [];
  const dispose = () => {
    for (const each of owned) each[Symbol.dispose]();
  };
  try {
    let gate: Projection | undefined;
    if (tensors.gate !== undefined) {
      const { rows: outputs, columns: inputs, dtype } = tensors.gate;
      const shape: ProjectionSpec = {
        count: 1,
        inputs,
        outputs,
        dtype,
        input: device.rowLayout(inputs, rowWeights).dtype,
        output: "float32",
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
  "tokens" | "hidden" | "logits" | "ids" | "weights" | "counts" | "buckets" | "rowType"
>;

/** What differs from step to step. */
export interface RoutingScope {
  /** Most tokens the step is for. */
  readonly mostTokens: number;
  /** Lanes that the work lists are for; absent: the step needs no buckets. */
  readonly lanes?: number;
  /** Element type of logits that are given; those of a gate are float32. */
  readonly logitsType?: DType;
}

/**
 * The element type in which logits [T, E] are routed: 16-bit floats stay as they are on devices that
 * route such logits, and become float32 on others.
 *
 * @throws InvalidArgumentError for a device tensor that the device cannot route, or of another device
 */
export function logitsTypeOf(device: Device, logits: Tensor | DeviceTensor): DType {
  const known = device.properties.logitsDTypes.includes(logits.dtype);
  if (!(logits instanceof DeviceTensor)) return known ? logits.dtype : "float32";
  if (logits.device !== device) {
    throw new InvalidArgumentError(
      "The logits are on another device than the layer. Copy them to the host first: await logits.toHost().",
    );
  }
  if (!known) {
    throw new InvalidArgumentError(
      `The logits are ${logits.dtype}, which the device does not route. Use ${device.properties.logitsDTypes.join(", ")}.`,
    );
  }
  return logits.dtype;
}

/**
 * Puts logits [T, E] where routing reads them.
 *
 * @param type what `logitsTypeOf` says
 * @throws ShapeError for a host tensor whose data has been transferred or resized since it was checked
 */
export async function writeLogits(
  device: Device,
  target: DeviceBuffer,
  logits: Tensor | DeviceTensor,
  type: DType,
): Promise<void> {
  if (logits instanceof DeviceTensor) {
    await device.copy(target, logits.buffer, sizeOf(logits.shape) * BYTES_PER_ELEMENT[type]);
    return;
  }
  checkDataLength(logits);
  device.write(target, type === logits.dtype ? logits.data : toFloat32(logits));
}

/** Enqueues the gate product, if there is a gate: hidden states to logits. */
export function recordGate(
  stream: Stream,
  weights: RouterWeights,
  buffers: RoutingBuffers,
  { mostTokens }: RoutingScope,
): void {
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
      mostTokens,
      matrix: 0,
    },
  });
}

/** Enqueues routing and bucketing: logits to ids, weights, counts and, if there are lanes, their work lists. */
export function recordRoute(
  stream: Stream,
  spec: RouterSpec,
  weights: RouterWeights,
  buffers: RoutingBuffers,
  scope: RoutingScope,
): void {
  stream.enqueue(routeOperator(spec, weights, buffers, scope));
  const { mostTokens, lanes } = scope;
  if (lanes !== undefined) {
    recordBuckets(stream, spec, buffers, { mostTokens, lanes, routed: true });
  }
}

function routeOperator(
  { experts, topK, rule }: RouterSpec,
  { selectionBias }: RouterWeights,
  { tokens, logits, ids, weights, counts }: RoutingBuffers,
  { mostTokens, lanes, logitsType }: RoutingScope,
): RouteOperator {
  return {
    kind: "route",
    rule,
    experts,
    topK,
    mostTokens,
    tokens,
    logits,
    ...(logitsType && { logitsType }),
    ...(selectionBias && { selectionBias }),
    ids,
    weights,
    counts,
    bucketed: lanes !== undefined,
  };
}

/** Enqueues bucketing: ids to the work lists of `lanes` lanes. @param scope.routed whether `route` comes before it */
function recordBuckets(
  stream: Stream,
  { experts, topK, capacityFactor }: Pick<RouterSpec, "experts" | "topK" | "capacityFactor">,
  { tokens, ids, buckets, rowType }: RoutingBuffers,
  scope: {
    readonly mostTokens: number;
    readonly lanes: number;
    readonly routed: boolean;
  },
): void {
  stream.enqueue({
    kind: "bucket",
    experts,
    topK,
    rowType,
    ...scope,
    tokens,
    ids,
    ...(capacityFactor !== undefined && { capacityFactor }),
    buckets,
  });
}

/** How the ids, weights and buckets of a step come about. */
export interface StepRouting {
  /** Enqueues what fills them. */
  record(stream: Stream, buffers: StepBuffers, scope: RoutingScope): void;
  /**
   * Enqueues what comes before the `route` operator and gives that one, for a `decode` operator that is to do it along
   * (`DecodeOperator.routing`). Undefined: ids and weights are there.
   */
  recordUpToRoute(
    stream: Stream,
    buffers: StepBuffers,
    scope: RoutingScope,
  ): RouteOperator | undefined;
}

/** Routing from logits that are in the buffers already. */
class LogitsRouting implements StepRouting {
  readonly #spec: RouterSpec;
  readonly #weights: RouterWeights;

  constructor(spec: RouterSpec, weights: RouterWeights) {
    this.#spec = spec;
    this.#weights = weights;
  }

  record(stream: Stream, buffers: StepBuffers, scope: RoutingScope): void {
    recordRoute(stream, this.#spec, this.#weights, buffers, scope);
  }

  recordUpToRoute(_stream: Stream, buffers: StepBuffers, scope: RoutingScope): RouteOperator {
    return routeOperator(this.#spec, this.#weights, buffers, scope);
  }
}

/** Routing that was done before: ids and weights are in the buffers, only the buckets are built. */
export class GivenRouting implements StepRouting {
  readonly #spec: Pick<RouterSpec, "experts" | "topK" | "capacityFactor">;

  constructor(spec: Pick<RouterSpec, "experts" | "topK" | "capacityFactor">) {
    this.#spec = spec;
  }

  record(stream: Stream, buffers: StepBuffers, { mostTokens, lanes }: RoutingScope): void {
    if (lanes === undefined) return;
    recordBuckets(stream, this.#spec, buffers, { mostTokens, lanes, routed: false });
  }

  recordUpToRoute(): undefined {
    return undefined;
  }
}

/** The router of a layer: its weights on a device, and the operators of one step. */
export class LayerRouter implements StepRouting, Disposable {
  /** The same router without its gate. */
  readonly fromLogits: LogitsRouting;
  readonly #weights: RouterWeights;

  private constructor(spec: RouterSpec, weights: RouterWeights) {
    this.fromLogits = new LogitsRouting(spec, weights);
    this.#weights = weights;
  }

  /**
   * On failure nothing stays allocated.
   *
   * @param rowWeights see `rowWeightsOf`
   * @throws ShapeError if the source's tensors do not fit the spec
   */
  static async load(
    device: Device,
    { hiddenSize, router }: Pick<LayerSpec, "hiddenSize" | "router">,
    source: LayerWeights,
    rowWeights: DType,
  ): Promise<LayerRouter> {
    const { experts } = router;
    const gate =
      source.gate && fittingMatrix(await source.gate(), "The router's gate", experts, hiddenSize);
    const tensors: RouterTensors = {
      gate,
      gateBias:
        gate && router.bias
          ? fittingVector(await source.gateBias?.(), "The router's bias", experts)
          : undefined,
      selectionBias: router.selectionBias
        ? fittingVector(await source.selectionBias?.(), "The router's selection bias", experts)
        : undefined,
    };
    return new LayerRouter(router, await uploadRouter(device, router, tensors, rowWeights));
  }

  /** Enqueues gate, routing and bucketing: from hidden states on. */
  record(stream: Stream, buffers: StepBuffers, scope: RoutingScope): void {
    recordGate(stream, this.#weights, buffers, scope);
    this.fromLogits.record(stream, buffers, scope);
  }

  recordUpToRoute(stream: Stream, buffers: StepBuffers, scope: RoutingScope): RouteOperator {
    recordGate(stream, this.#weights, buffers, scope);
    return this.fromLogits.recordUpToRoute(stream, buffers, scope);
  }

  [Symbol.dispose](): void {
    this.#weights[Symbol.dispose]();
  }
}
