/**
 * What a layer holds on a device once its weights are there, and one step of it:
 * write the hidden states, run, read the output, feed the control loop. Steps
 * must not overlap, since they share the buffers; MoELayer sees to that.
 *
 * For a few tokens on a GPU the host's part of a step is longer than the device's.
 * So nothing is written that is there already, nothing is made anew that the last
 * step made, and all that comes back is asked for at once.
 */

import { createHash } from "node:crypto";
import { EnergyMonitor, type EnergyReading } from "../control/energy-monitor.ts";
import { GraphManager, type RunMode, tokenBucket } from "../control/graph-manager.ts";
import type { Plan } from "../control/plan.ts";
import { logitsTypeOf, writeLogits } from "../data/routing.ts";
import type { LayerSpec } from "../data/spec.ts";
import { outputWidth, StepBuffers } from "../data/step-buffers.ts";
import type { LayerWeights } from "../data/weights.ts";
import { DeviceFailedError, InvalidArgumentError } from "../errors.ts";
import {
  type ComputeBudgets,
  type Device,
  type DeviceBuffer,
  rowBytes,
  type Substitute,
} from "../execution/device.ts";
import { DeviceTensor } from "../execution/device-tensor.ts";
import { defaultDevice } from "../execution/open.ts";
import { BYTES_PER_ELEMENT, type DType, sizeOf, type Tensor } from "../tensor.ts";
import { ControlLoop } from "./control-loop.ts";
import { type Fetched, fetchStep } from "./fetched.ts";
import type { ForwardResult, ForwardStats, LayerOptions, LayerStatistics } from "./forward.ts";
import { LayerModules } from "./layer-modules.ts";
import { recordStep, type StepParts, type StepScope } from "./step.ts";
import { StepKeys } from "./step-keys.ts";
import { StreamPool } from "./stream-pool.ts";

/** Units of `StepBuffers.busy`, in seconds. */
const BUSY_UNIT_SECONDS = 1e-7;

/** What one step is given. */
export interface StepRequest {
  /** float [..., H]. */
  readonly input: Tensor | DeviceTensor;
  /** float [T, E]; absent: the layer's gate computes them. */
  readonly logits: Tensor | DeviceTensor | undefined;
  /** Whether expert ids and weights are wanted back. */
  readonly routing: boolean;
}

/** One step that has run. */
interface StepRun {
  readonly buffers: StepBuffers;
  readonly tokens: number;
  readonly mode: RunMode;
  readonly seconds: number;
  readonly plan: Plan;
  readonly streams: number;
  /** Whether the experts ran in lanes. */
  readonly inLanes: boolean;
}

/** What a layer holds on a device once its weights are there. */
export class LayerEngine implements Disposable {
  readonly control: ControlLoop;
  readonly modules: LayerModules;
  readonly #device: Device;
  readonly #spec: LayerSpec;
  /** Values of one token's output. */
  readonly #outputWidth: number;
  /** Element type of rows. */
  readonly #rowType: DType;
  /** The parts of a step whose logits are given. */
  readonly #ungated: StepParts;
  readonly #keys: StepKeys;
  readonly #graphs: GraphManager;
  readonly #energy: EnergyMonitor;
  readonly #streams: StreamPool;
  readonly #idle: Int32Array;
  #buffers: StepBuffers | undefined;
  /** What the buffers hold: the token count, and the lane table or undefined. */
  readonly #tokens = Int32Array.of(-1);
  #laneOf: Int32Array | undefined;
  #steps = 0;

  private constructor(
    device: Device,
    spec: LayerSpec,
    modules: LayerModules,
    options: LayerOptions,
  ) {
    this.#device = device;
    this.#spec = spec;
    this.modules = modules;
    const { parts } = modules;
    const { experts, topK } = spec.router;
    this.#outputWidth = outputWidth(spec.aggregation.mode, spec.hiddenSize, topK);
    this.#rowType = device.rowLayout(spec.hiddenSize, parts.experts.rowWeights).dtype;
    this.#ungated = { ...parts, routing: parts.routing.fromLogits };
    // A digest, because every step's graph is looked up by it: the whole spec took 1.6 us longer.
    const specKey = createHash("sha256").update(JSON.stringify(spec)).digest("base64");
    this.#keys = new StepKeys(specKey, parts.decodeTokens);
    this.control = new ControlLoop(experts, parts.experts.expertBytes, device.properties, options);
    this.#graphs = new GraphManager({ device, ...options.graphs });
    this.#energy = new EnergyMonitor(device.energy);
    this.#streams = new StreamPool(device);
    this.#idle = new Int32Array(experts);
  }

  static async open(
    spec: LayerSpec,
    source: LayerWeights,
    options: LayerOptions,
  ): Promise<LayerEngine> {
    const device = options.device ?? (await defaultDevice());
    const modules = await LayerModules.load(device, spec, source, options.packWeights);
    try {
      return new LayerEngine(device, spec, modules, options);
    } catch (error) {
      modules[Symbol.dispose]();
      throw error;
    }
  }

  async step(request: StepRequest): Promise<ForwardResult<Tensor<Float32Array> | DeviceTensor>> {
    const { input } = request;
    const outputType = this.#outputTypeFor(input);
    const shape = [...input.shape.slice(0, -1), this.#outputWidth];
    if (!(input instanceof DeviceTensor)) return this.#step(request, outputType, shape, undefined);
    const output = this.#newOutput(outputType, shape);
    try {
      return await this.#step(request, outputType, shape, output);
    } catch (error) {
      // Nobody else has it: the step failed, or a transfer, or a policy of the caller's own that was asked for a plan.
      output[Symbol.dispose]();
      throw error;
    }
  }

  /** @param output where the output goes, if it stays on the device */
  async #step(
    request: StepRequest,
    outputType: DType,
    shape: readonly number[],
    output: DeviceTensor | undefined,
  ): Promise<ForwardResult<Tensor<Float32Array> | DeviceTensor>> {
    const { input, logits } = request;
    const device = this.#device;
    const tokens = sizeOf(input.shape) / this.#spec.hiddenSize;
    const mostTokens = tokenBucket(tokens);
    const buffers = this.#buffersFor(mostTokens);
    const { plan, assignment, budgets } = this.control;
    const logitsType = logits && logitsTypeOf(device, logits);
    const scope = { mostTokens, outputType, ...(logitsType && { logitsType }) };
    const key = this.#keys.get(plan, assignment.laneKey, scope);
    // Only what is launched as a graph can read and write the caller's own tensors.
    const replays = output !== undefined && this.#graphs.has(key);
    const substitutes: Substitute[] = [];
    if (replays) {
      const { byteLength } = output.buffer;
      substitutes.push({ buffer: buffers.output, by: output.buffer, byteLength, access: "write" });
      substitutes.push(...this.#readInPlace(request, buffers, scope));
    }
    await this.#bring(request, buffers, substitutes, logitsType);
    if (this.#tokens[0] !== tokens) {
      device.write(buffers.tokens, Int32Array.of(tokens));
      this.#tokens[0] = tokens;
    }
    const inLanes = mostTokens > this.modules.parts.decodeTokens;
    if (inLanes && this.#laneOf !== assignment.laneOf) {
      device.write(buffers.buckets.laneOf, assignment.laneOf);
      this.#laneOf = assignment.laneOf;
    }
    const timed = inLanes && buffers.busy !== undefined;
    if (timed) device.write(buffers.busy as DeviceBuffer, this.#idle);

    const streams = this.#streams.get(assignment);
    const parts = logitsType ? this.#ungated : this.modules.parts;
    // With every step, as a device may serve several layers; right before the launch, which takes them.
    this.#setBudgets(budgets, plan);
    // Looked up before the launch: one that fails may close the device, and all of its tensors.
    const kept = replays ? undefined : output?.buffer;
    const started = performance.now();
    const running = this.#graphs.run(key, {
      origin: streams.main,
      record: () => recordStep(streams, parts, buffers, scope),
      substitutes,
    });
    // The step is on its way. While the device is busy with it there is time to ask for what it puts out, and to plan.
    const ending = running.then((mode) => ({
      mode,
      seconds: (performance.now() - started) / 1000,
    }));
    const wanted = { tokens, shape, onDevice: output, routing: request.routing, timed };
    const [ended, fetched, copied, planned] = await Promise.allSettled([
      ending,
      fetchStep(device, this.#spec.router, buffers, wanted),
      kept && device.copy(kept, buffers.output, kept.byteLength),
      this.#planAhead(),
    ]);
    if (ended.status === "rejected") throw ended.reason;
    if (fetched.status === "rejected") throw fetched.reason;
    for (const each of [copied, planned]) if (each.status === "rejected") throw each.reason;
    this.#steps++;
    const { streams: lanes } = assignment;
    const run = { buffers, tokens, plan, inLanes, streams: lanes, ...ended.value };
    return this.#finish(fetched.value, run);
  }

  /** The tensors of a request that lie as the step's buffers do and have room for as much: operators may read rows past the last token. */
  #readInPlace(
    { input, logits }: StepRequest,
    buffers: StepBuffers,
    { mostTokens, logitsType }: StepScope,
  ): readonly Substitute[] {
    const found: Substitute[] = [];
    const offer = (buffer: DeviceBuffer, tensor: Tensor | DeviceTensor, byteLength: number) => {
      if (!(tensor instanceof DeviceTensor) || tensor.buffer.byteLength < byteLength) return;
      found.push({ buffer, by: tensor.buffer, byteLength, access: "read" });
    };
    const { hidden } = buffers.layouts;
    if (input.dtype === hidden.dtype && hidden.width === hidden.pitch) {
      offer(buffers.hidden, input, rowBytes(hidden, mostTokens));
    }
    if (logits && logitsType) {
      const values = mostTokens * this.#spec.router.experts;
      offer(buffers.logits, logits, values * BYTES_PER_ELEMENT[logitsType]);
    }
    return found;
  }

  /** Brings hidden states and logits to the step's buffers, but for those that have substitutes. */
  async #bring(
    { input, logits }: StepRequest,
    buffers: StepBuffers,
    substitutes: readonly Substitute[],
    logitsType: DType | undefined,
  ): Promise<void> {
    const device = this.#device;
    const { layouts, hidden, logits: scores } = buffers;
    const has = (buffer: DeviceBuffer) => substitutes.some((each) => each.buffer === buffer);
    if (!(input instanceof DeviceTensor)) {
      device.writeRows(hidden, layouts.hidden, input);
    } else if (!has(hidden)) {
      const tokens = sizeOf(input.shape) / this.#spec.hiddenSize;
      await device.copyRows(hidden, layouts.hidden, input.buffer, input.dtype, tokens);
    }
    if (logits && logitsType && !has(scores)) {
      await writeLogits(device, scores, logits, logitsType);
    }
  }

  statistics(): LayerStatistics {
    return {
      steps: this.#steps,
      graphs: this.#graphs.stats(),
      weightBytes: this.modules.byteLength,
      tokenCapacity: this.#buffers?.capacity ?? 0,
    };
  }

  [Symbol.dispose](): void {
    this.#graphs[Symbol.dispose]();
    this.#streams[Symbol.dispose]();
    this.#buffers?.[Symbol.dispose]();
    this.modules[Symbol.dispose]();
  }

  /**
   * A policy that tries realisations out asks for one that the device refuses with every step, as nothing is measured of steps that
   * fail. So the plan after this has another, if there is one.
   */
  #setBudgets(budgets: ComputeBudgets, plan: Plan): void {
    try {
      this.#device.setComputeBudgets(budgets);
    } catch (error) {
      const refused = error instanceof DeviceFailedError && plan.realisation === "partitioned";
      if (refused && this.control.slices.refused(plan.realisation, error.message)) {
        this.control.replan(plan.load.counts);
      }
      throw error;
    }
  }

  /** The element type of the output: that of a device tensor, float32 for one of the host. */
  #outputTypeFor(input: Tensor | DeviceTensor): DType {
    if (!(input instanceof DeviceTensor)) return "float32";
    if (input.device !== this.#device) {
      throw new InvalidArgumentError(
        "hidden is on another device than the layer. Copy it to the host first: await hidden.toHost().",
      );
    }
    if (input.dtype !== "float32" && input.dtype !== this.#rowType) {
      throw new InvalidArgumentError(
        `hidden is ${input.dtype}, and the layer computes in ${this.#rowType} on this device. Use that, or float32.`,
      );
    }
    return input.dtype;
  }

  /** Buffers with room for the batch; larger batches than ever before replace them, and the graphs that used them. */
  #buffersFor(mostTokens: number): StepBuffers {
    if (this.#buffers !== undefined && this.#buffers.capacity >= mostTokens) return this.#buffers;
    this.#graphs.invalidate(() => true);
    this.#buffers?.[Symbol.dispose]();
    this.#buffers = undefined;
    this.#laneOf = undefined;
    this.#tokens[0] = -1;
    const { packed } = this.modules.parts.experts;
    this.#buffers = StepBuffers.ofLayer(this.#device, this.#spec, mostTokens, packed);
    return this.#buffers;
  }

  /**
   * Makes the plan of later steps, if one is due; rejects with what a policy throws. The end of a step that is
   * shorter is noticed only then, and its time is that of the plan: of one step in every plan's turn, whichever it is.
   */
  async #planAhead(): Promise<void> {
    this.control.catchUp();
  }

  /** Where the output of a step goes that stays on the device. */
  #newOutput(dtype: DType, shape: readonly number[]): DeviceTensor {
    const bytes = Math.max(4, sizeOf(shape) * BYTES_PER_ELEMENT[dtype]);
    const buffer = this.#device.allocate(bytes, "layer output", { zeroed: false });
    try {
      return new DeviceTensor(this.#device, buffer, shape, dtype);
    } catch (error) {
      buffer[Symbol.dispose]();
      throw error;
    }
  }

  /** Reads what the host sees of every step, and shows it the control loop. */
  async #finish(
    { output, routing, dropped, busy }: Fetched,
    run: StepRun,
  ): Promise<ForwardResult<Tensor<Float32Array> | DeviceTensor>> {
    const { buffers, tokens } = run;
    const counts = new Int32Array(this.#spec.router.experts);
    await this.#device.read(buffers.counts, counts);
    const stats: ForwardStats = {
      step: this.#steps,
      tokens,
      mode: run.mode,
      seconds: run.seconds,
      counts,
      dropped,
      planVersion: run.plan.version,
      streams: run.streams,
      energy: this.#observe(counts, busy, run),
    };
    return { output, stats, ...(routing && { routing }) };
  }

  #observe(counts: Int32Array, busy: Int32Array | undefined, run: StepRun): EnergyReading {
    const busySeconds = busy && new Float64Array(busy);
    for (let e = 0; busySeconds && e < busySeconds.length; e++) {
      busySeconds[e] = (busySeconds[e] as number) * BUSY_UNIT_SECONDS;
    }
    const { plan, tokens, seconds, inLanes, mode } = run;
    const energy = this.#energy.sample(tokens, seconds);
    this.control.observe({
      plan,
      tokens,
      counts,
      ...(busySeconds && { busySeconds }),
      seconds,
      joules: energy.available ? energy.joules : energy.pending ? null : "lost",
      comparable: inLanes && mode === "replayed",
    });
    return energy;
  }
}
