/**
 * An MoE layer that routes, runs, measures and re-plans itself.
 *
 * Every forward pass is one step: the hidden states are written to the device,
 * the step runs (eagerly at first, from a captured graph afterwards), the output
 * is read. The control loop takes in what each step showed, and now and then, while the
 * next one runs, moves experts to other slices and lanes or resizes the slices for those
 * after it; outputs do not depend on any of that, to the bit.
 */

import { readLayer } from "../checkpoint/index.ts";
import type { Plan } from "../control/plan.ts";
import { copyOf } from "../data/copied-spec.ts";
import { hostLayerWeights, type LayerTensors } from "../data/host-weights.ts";
import type { LayerSpec } from "../data/spec.ts";
import { validateLayerSpec } from "../data/validate.ts";
import type { LayerWeights } from "../data/weights.ts";
import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError, ShapeError } from "../errors.ts";
import { requireObject } from "../execution/checks.ts";
import { DeviceTensor } from "../execution/device-tensor.ts";
import { sizeOf, type Tensor, type TensorLike, toTensor } from "../tensor.ts";
import type { ControlLoop } from "./control-loop.ts";
import type { ForwardOptions, ForwardResult, LayerOptions, LayerStatistics } from "./forward.ts";
import {
  checkForwardOptions,
  checkLayerOptions,
  checkLoadOptions,
  checkSource,
} from "./layer-arguments.ts";
import { LayerEngine } from "./layer-engine.ts";
import type { LayerModules } from "./layer-modules.ts";

/** Of a step without options, which then costs no check of them. */
const NO_OPTIONS: ForwardOptions = {};

/** A whole MoE layer: routes, runs, measures, and plans anew while it is used. Close it when it is no longer needed. */
export class MoELayer implements AsyncDisposable {
  readonly spec: LayerSpec;
  readonly #source: LayerWeights;
  readonly #options: LayerOptions;
  #engine: Promise<LayerEngine> | undefined;
  /** Of the calls that came so far. */
  #tail: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | undefined;

  /**
   * A layer from a spec and its weights. The weights are copied to the device by
   * `ready()` or the first `forward()`.
   *
   * @param weights host tensors, or a source that gives one matrix at a time. Without a gate every
   *   step must be given its logits
   * @throws InvalidArgumentError, ShapeError if spec and tensors do not fit together, or an option is
   *   unknown, out of range or not for such a spec
   * @throws DeviceUnavailableError if the device that is given cannot realise slices as asked, or cannot pack weights
   */
  constructor(spec: LayerSpec, weights: LayerTensors | LayerWeights, options: LayerOptions = {}) {
    validateLayerSpec(spec);
    requireObject(weights, "weights", "tensors by name, or a weight source");
    checkLayerOptions(options, spec);
    // Copies, as both are looked at again when the weights are copied, and by every step that is not a replay.
    this.spec = copyOf(spec);
    this.#options = { ...options };
    this.#source = isSource(weights) ? weights : hostLayerWeights(this.spec, weights);
    checkSource(this.#source);
  }

  /**
   * A layer from a hub-format checkpoint; only the tensors of that layer are read.
   *
   * @param directory holds config.json and model.safetensors, or shards with their index
   * @param options.layer index of the decoder layer
   * @throws CheckpointError naming file and tensor; OutOfDeviceMemoryError; UnpackableWeightsError
   * @throws InvalidArgumentError if the directory or an option is of the wrong type
   */
  static async load(
    directory: string,
    options: LayerOptions & { readonly layer: number },
  ): Promise<MoELayer> {
    if (typeof directory !== "string") {
      throw new InvalidArgumentError(
        `directory is ${shown(directory)}; it must be the path of a checkpoint's folder.`,
      );
    }
    checkLoadOptions(options);
    const { layer, ...rest } = options;
    if (!Number.isInteger(layer) || layer < 0) {
      throw new InvalidArgumentError(
        `options.layer is ${shown(layer)}; it must be the index of a decoder layer, 0 or more.`,
      );
    }
    const { spec, weights } = await readLayer(directory, { layer });
    try {
      return await new MoELayer(spec, weights, rest).ready();
    } finally {
      await weights[Symbol.asyncDispose]();
    }
  }

  /** Copies the weights to the device; what failed can be tried again. @throws OutOfDeviceMemoryError, CheckpointError, ShapeError, UnpackableWeightsError */
  async ready(): Promise<this> {
    await this.#start();
    return this;
  }

  /**
   * Runs the layer on a batch. Calls need not be awaited: they run one after the other, in order.
   *
   * NaN and infinities are not looked for: in hidden states or weights they go through the products
   * into the outputs of their tokens, as in any other arithmetic. Only the logits are checked, as
   * routing cannot work with such: those of the gate show most bad hidden states, and those that are
   * given (`options.logits`) show none.
   *
   * @param hidden float [T, H], or with any leading axes. A host tensor gives float32 back, a
   *   DeviceTensor a DeviceTensor of its own element type. Hidden states and logits are read
   *   when the step's turn comes: leave them unchanged until the promise resolves.
   * @throws InvalidLogitsError naming the token whose logits are not finite; the layer stays usable
   * @throws InvalidArgumentError, also without logits for a layer without a gate
   * @throws ShapeError, OutOfDeviceMemoryError, DisposedError
   * @throws what a slice policy of your own throws; the step's output is lost then
   */
  forward(hidden: TensorLike, options?: ForwardOptions): Promise<ForwardResult>;
  forward(hidden: DeviceTensor, options?: ForwardOptions): Promise<ForwardResult<DeviceTensor>>;
  async forward(
    hidden: TensorLike | DeviceTensor,
    options: ForwardOptions = NO_OPTIONS,
  ): Promise<ForwardResult<Tensor<Float32Array> | DeviceTensor>> {
    if (options !== NO_OPTIONS) checkForwardOptions(options);
    const input = hidden instanceof DeviceTensor ? hidden : toTensor(hidden, "hidden");
    this.#checkInput(input);
    const { logits: given } = options;
    const onDevice = given === undefined || given instanceof DeviceTensor;
    const logits = onDevice ? given : toTensor(given, "options.logits");
    if (logits !== undefined) this.#checkLogits(logits, input);
    else if (this.#source.gate === undefined) {
      throw new InvalidArgumentError(
        "The layer has no gate to compute logits with. Pass options.logits, or give the layer's weights a gate.",
      );
    }
    if (this.#closing !== undefined) throw new DisposedError("The MoE layer");
    const started = this.#start();
    const request = { input, logits, routing: options.routing ?? false };
    // One step at a time: steps share the buffers. From here on the call will be waited for.
    const step = this.#tail.then(async () => (await started).step(request));
    this.#tail = step.catch(() => {});
    return step;
  }

  /** The plan the next step will run under. */
  get plan(): Promise<Plan> {
    return this.#start().then((engine) => engine.control.plan);
  }

  /** The control loop, for those who want to steer it: reserve, resize, migrate, snapshot. */
  get control(): Promise<ControlLoop> {
    return this.#start().then((engine) => engine.control);
  }

  /** @internal The modules with their weights on the device, for benchmarks that enqueue them in a way of their own; the layer frees them. */
  get modules(): Promise<LayerModules> {
    return this.#start().then((engine) => engine.modules);
  }

  /** Graphs captured, replayed and evicted so far; bytes of weights and of step buffers. */
  async statistics(): Promise<LayerStatistics> {
    return (await this.#start()).statistics();
  }

  /** Waits for all calls made before it and frees all device memory; harmless when repeated. */
  close(): Promise<void> {
    this.#closing ??= this.#tail.then(async () => {
      const engine = this.#engine;
      this.#engine = undefined;
      await engine?.then((each) => each[Symbol.dispose]()).catch(() => {});
    });
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #start(): Promise<LayerEngine> {
    if (this.#closing !== undefined) return Promise.reject(new DisposedError("The MoE layer"));
    this.#engine ??= LayerEngine.open(this.spec, this.#source, this.#options).catch((error) => {
      this.#engine = undefined;
      throw error;
    });
    return this.#engine;
  }

  #checkInput(input: Tensor | DeviceTensor): void {
    const { shape } = input;
    if (shape.at(-1) !== this.spec.hiddenSize) {
      throw new ShapeError(
        `hidden has shape [${shape.join(", ")}]; its last extent must be the layer's hidden size, ${this.spec.hiddenSize}.`,
      );
    }
    if (!(input instanceof DeviceTensor) && input.dtype === "int32") {
      throw new ShapeError("hidden is int32; it must be float32, bfloat16 or float16.");
    }
  }

  #checkLogits({ shape, dtype }: Tensor | DeviceTensor, input: Tensor | DeviceTensor): void {
    const { hiddenSize, router } = this.spec;
    const tokens = sizeOf(input.shape) / hiddenSize;
    if (shape.at(-1) !== router.experts || sizeOf(shape) !== tokens * router.experts) {
      throw new ShapeError(
        `options.logits has shape [${shape.join(", ")}]; ${tokens} tokens and ${router.experts} experts need [${tokens}, ${router.experts}].`,
      );
    }
    if (dtype === "int32") {
      throw new ShapeError("options.logits is int32; it must be float32, bfloat16 or float16.");
    }
  }
}

function isSource(weights: LayerTensors | LayerWeights): weights is LayerWeights {
  return typeof (weights as LayerWeights).expert === "function";
}
