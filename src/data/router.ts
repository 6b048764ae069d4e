/**
 * The router: from hidden states, or from ready logits, to expert ids, weights,
 * per-expert counts and buckets.
 *
 * `route()` is for a batch of its own and brings the tables back to the host.
 * A layer uses LayerRouter (routing.ts) instead, which only enqueues operators, so
 * that nothing comes back before the output does.
 */

import { DisposedError, InvalidArgumentError, ShapeError } from "../errors.ts";
import { type Fields, requireOptions } from "../execution/checks.ts";
import { type Device, type DeviceBuffer, rowBytes } from "../execution/device.ts";
import { DeviceTensor } from "../execution/device-tensor.ts";
import { defaultDevice } from "../execution/open.ts";
import type { RoutingRule } from "../execution/operators.ts";
import { runEagerly } from "../execution/run-eagerly.ts";
import {
  type MatrixView,
  matrixView,
  type Tensor,
  type TensorLike,
  toFloat32,
  toTensor,
} from "../tensor.ts";
import { Buckets } from "./buckets.ts";
import { copyOf } from "./copied-spec.ts";
import {
  logitsTypeOf,
  type RouterWeights,
  type RoutingBuffers,
  recordGate,
  recordRoute,
  uploadRouter,
  writeLogits,
} from "./routing.ts";
import type { RouterSpec } from "./spec.ts";
import { validateChoice, validateRouterSpec } from "./validate.ts";

/** Softmax over all experts, the k best, renormalised: Mixtral's and Qwen3's rule. */
const DEFAULT_RULE: RoutingRule = {
  scoring: "softmax",
  renormalize: true,
  scale: 1,
};

/** How a router scores and chooses, and its gate. */
export interface RouterOptions {
  /** Experts per token, 1 to 32. */
  readonly topK: number;
  /** Default: softmax over all experts, then top-k, renormalised. */
  readonly rule?: RoutingRule;
  /** float [E, H]: with it, logits are computed from hidden states. */
  readonly gate?: TensorLike;
  /** float [E], added to the computed logits. */
  readonly gateBias?: TensorLike;
  /** float [E], added to the scores for selection only. */
  readonly selectionBias?: TensorLike;
  /** Most rows per expert as a multiple of the even share; later tokens are dropped and reported. */
  readonly capacityFactor?: number;
  /** Default: the device of `defaultDevice()`. */
  readonly device?: Device;
}

const OPTIONS: Fields<RouterOptions> = {
  topK: true,
  rule: true,
  gate: true,
  gateBias: true,
  selectionBias: true,
  capacityFactor: true,
  device: true,
};

/** Sends every token to its experts: from logits, or from hidden states through a gate. */
export class Router implements Disposable {
  readonly #options: RouterOptions;
  readonly #rule: RoutingRule;
  readonly #gate: MatrixView | undefined;
  readonly #gateBias: Float32Array | undefined;
  readonly #selectionBias: Float32Array | undefined;
  /** Where the weights are. */
  #device: Device | undefined;
  #uploading: Promise<RouterWeights> | undefined;
  #weights: RouterWeights | undefined;
  /** Batches being routed; the weights are theirs until they are done. */
  #inFlight = 0;
  #closed = false;

  /** @throws InvalidArgumentError, ShapeError naming the option that does not fit */
  constructor(options: RouterOptions) {
    requireOptions(options, OPTIONS);
    this.#options = { ...options };
    this.#gateBias = floats(options.gateBias, "gateBias");
    this.#selectionBias = floats(options.selectionBias, "selectionBias");
    if (options.gate !== undefined) {
      this.#gate = matrixView(matrixOf(options.gate, "gate"));
    } else if (options.gateBias !== undefined) {
      throw new InvalidArgumentError("gateBias is given without a gate. Add it to the logits.");
    }
    const experts = this.#gate?.rows ?? this.#selectionBias?.length;
    this.#rule = options.rule ?? DEFAULT_RULE;
    if (experts === undefined) validateChoice(this.#choice());
    else this.#spec(experts);
    // Not sooner: what is no rule may be anything.
    this.#rule = copyOf(this.#rule);
  }

  /**
   * Routes one batch.
   *
   * @param hidden float [T, H], on the host, as the buckets are
   * @param logits float [T, E]; may be left out if the router has a gate
   * @throws InvalidLogitsError naming the first row without finite weights
   * @throws ShapeError, InvalidArgumentError, OutOfDeviceMemoryError, DisposedError
   */
  async route(hidden: TensorLike, logits?: TensorLike): Promise<Buckets> {
    if (this.#closed) throw new DisposedError("The router");
    const tokens = matrixOf(hidden, "hidden");
    const given = logits === undefined ? undefined : matrixOf(logits, "logits");
    const count = tokens.shape[0] as number;
    if (given !== undefined && given.shape[0] !== count) {
      throw new ShapeError(`logits have ${given.shape[0]} rows, but there are ${count} tokens.`);
    }
    if (given === undefined && this.#gate === undefined) {
      throw new InvalidArgumentError(
        "The router has no gate to compute logits with. Pass logits, or give the router a gate.",
      );
    }
    if (given === undefined && this.#gate?.columns !== tokens.shape[1]) {
      throw new ShapeError(
        `hidden has ${tokens.shape[1]} columns, but the gate takes ${this.#gate?.columns}.`,
      );
    }
    const spec = this.#spec((given?.shape[1] ?? this.#gate?.rows) as number);
    this.#inFlight++;
    try {
      const device = this.#options.device ?? (await defaultDevice());
      const weights = await this.#upload(device, spec);
      return await routeOnce(device, spec, weights, tokens, given);
    } finally {
      this.#inFlight--;
      if (this.#closed) this.#free();
    }
  }

  /** Frees the device memory, once the batches in flight are done; harmless when repeated. */
  [Symbol.dispose](): void {
    this.#closed = true;
    this.#free();
  }

  #upload(device: Device, spec: RouterSpec): Promise<RouterWeights> {
    if (this.#device === undefined || this.#device.closed) {
      // A default device that was closed took the weights with it, and there is another now.
      this.#device = device;
      this.#uploading = undefined;
      this.#weights = undefined;
    }
    this.#uploading ??= uploadRouter(
      device,
      spec,
      {
        gate: this.#gate,
        gateBias: this.#gateBias,
        selectionBias: this.#selectionBias,
      },
      this.#gate?.dtype ?? "float32",
    ).then(
      (weights) => {
        if (this.#device === device) this.#weights = weights;
        return weights;
      },
      (error) => {
        // What failed for want of memory can be tried again.
        if (this.#device === device) this.#uploading = undefined;
        throw error;
      },
    );
    return this.#uploading;
  }

  #free(): void {
    if (this.#inFlight > 0) return;
    this.#weights?.[Symbol.dispose]();
    this.#weights = undefined;
  }

  #spec(experts: number): RouterSpec {
    const spec = { experts, ...this.#choice() };
    validateRouterSpec(spec);
    const [gateBias, selectionBias] = [this.#gateBias, this.#selectionBias];
    for (const [name, bias] of Object.entries({ gateBias, selectionBias })) {
      if (bias !== undefined && bias.length !== experts) {
        throw new ShapeError(`${name} has ${bias.length} values for ${experts} experts.`);
      }
    }
    return spec;
  }

  /** The part of the spec that is the same for any number of experts. */
  #choice(): Omit<RouterSpec, "experts"> {
    const { topK, capacityFactor } = this.#options;
    return {
      topK,
      rule: this.#rule,
      bias: this.#gateBias !== undefined,
      selectionBias: this.#selectionBias !== undefined,
      ...(capacityFactor !== undefined && { capacityFactor }),
    };
  }
}

/** One eager pass over buffers of its own. */
async function routeOnce(
  device: Device,
  spec: RouterSpec,
  weights: RouterWeights,
  hidden: Tensor,
  logits: Tensor | undefined,
): Promise<Buckets> {
  const { experts, topK } = spec;
  const [count, width] = hidden.shape as [number, number];
  const slots = count * topK;
  // Buffers of an empty batch have room for a token, as every operator wants.
  const mostTokens = Math.max(1, count);
  const layout = device.rowLayout(width, weights.gate?.spec.dtype ?? "float32");
  const owned: Disposable[] = [];
  const allocate = (bytes: number, what: string) => {
    const buffer = device.allocate(bytes, what);
    owned.push(buffer);
    return buffer;
  };
  const make = (elements: number, what: string) => allocate(elements * 4, what);
  try {
    const buffers: RoutingBuffers = {
      rowType: layout.dtype,
      tokens: make(1, "token count"),
      hidden: allocate(logits === undefined ? rowBytes(layout, mostTokens) : 4, "hidden states"),
      logits: make(mostTokens * experts, "router logits"),
      ids: make(mostTokens * topK, "expert ids"),
      weights: make(mostTokens * topK, "routing weights"),
      counts: make(experts, "expert counts"),
      buckets: {
        offsets: make(experts + 1, "bucket offsets"),
        order: make(mostTokens * topK, "bucket order"),
        inverse: make(mostTokens * topK, "inverse bucket order"),
        laneOf: make(experts, "lane table"),
      },
    };
    device.write(buffers.tokens, Int32Array.of(count));
    if (logits === undefined) device.writeRows(buffers.hidden, layout, hidden);
    const logitsType = logits && logitsTypeOf(device, logits);
    if (logits && logitsType) await writeLogits(device, buffers.logits, logits, logitsType);
    const stream = device.createStream({ group: 0, priority: 0 });
    owned.push(stream);
    const scope = { mostTokens, lanes: 1, ...(logitsType && { logitsType }) };
    await runEagerly(device, () => {
      if (logits === undefined) recordGate(stream, weights, buffers, scope);
      recordRoute(stream, spec, weights, buffers, scope);
    });

    const ints = async (buffer: DeviceBuffer, length: number) => {
      const out = new Int32Array(length);
      await device.read(buffer, out);
      return out;
    };
    const routed = new Float32Array(slots);
    await device.read(buffers.weights, routed);
    const offsets = await ints(buffers.buckets.offsets, experts + 1);
    return new Buckets({
      hidden,
      experts,
      topK,
      ids: await ints(buffers.ids, slots),
      weights: routed,
      counts: await ints(buffers.counts, experts),
      offsets,
      order: await ints(buffers.buckets.order, offsets[experts] as number),
      inverse: await ints(buffers.buckets.inverse, slots),
      ...(spec.capacityFactor !== undefined && {
        capacityFactor: spec.capacityFactor,
      }),
    });
  } finally {
    for (const each of owned) each[Symbol.dispose]();
  }
}

function matrixOf(like: TensorLike, name: string): Tensor {
  if (like instanceof DeviceTensor) {
    throw new InvalidArgumentError(
      `${name} is a device tensor, and the router takes host tensors. Copy it first: await ${name}.toHost().`,
    );
  }
  const tensor = toTensor(like, name);
  if (tensor.shape.length !== 2) {
    throw new ShapeError(`${name} has shape [${tensor.shape.join(", ")}]; it must have two axes.`);
  }
  if (tensor.dtype === "int32") {
    throw new ShapeError(`${name} is int32; it must be float32, bfloat16 or float16.`);
  }
  return tensor;
}

function floats(like: TensorLike | undefined, name: string): Float32Array | undefined {
  return like === undefined ? undefined : toFloat32(toTensor(like, name));
}
