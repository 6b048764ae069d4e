/**
 * What a layer holds on a device once its weights are there, and one step of it:
 * write the hidden states, run, read the output, feed the control loop. Steps
 * must not overlap, since they share the buffers; MoELayer sees to that.
 */

import { createHash } from "node:crypto";
import { EnergyMonitor, type EnergyReading } from "../control/energy-monitor.ts";
import { GraphManager, graphKey, type RunMode, tokenBucket } from "../control/graph-manager.ts";
import { computeBudgetsOf, type Plan } from "../control/plan.ts";
import { type DroppedSlot, droppedSlots } from "../data/buckets.ts";
import type { LayerSpec } from "../data/spec.ts";
import { outputWidth, StepBuffers } from "../data/step-buffers.ts";
import type { LayerWeights } from "../data/weights.ts";
import { InvalidArgumentError } from "../errors.ts";
import type { Device } from "../execution/device.ts";
import { DeviceTensor } from "../execution/device-tensor.ts";
import { defaultDevice } from "../execution/open.ts";
import { sizeOf, type Tensor, toFloat32 } from "../tensor.ts";
import { ControlLoop } from "./control-loop.ts";
import type {
  ForwardOptions,
  ForwardResult,
  ForwardStats,
  LayerOptions,
  LayerStatistics,
  Routing,
} from "./forward.ts";
import { LayerModules } from "./layer-modules.ts";
import { recordStep } from "./step.ts";
import { StreamPool } from "./stream-pool.ts";

/** Units of `StepBuffers.busy`, in seconds. */
const BUSY_UNIT_SECONDS = 1e-7;

/** What a layer holds on a device once its weights are there. */
export class LayerEngine implements Disposable {
  readonly control: ControlLoop;
  readonly modules: LayerModules;
  readonly #device: Device;
  readonly #spec: LayerSpec;
  readonly #specKey: string;
  readonly #graphs: GraphManager;
  readonly #energy: EnergyMonitor;
  readonly #streams: StreamPool;
  #buffers: StepBuffers | undefined;
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
    // A digest, because every step's graph is looked up by it: the whole spec took 1.6 us longer.
    this.#specKey = createHash("sha256").update(JSON.stringify(spec)).digest("base64");
    this.modules = modules;
    const { experts } = spec.router;
    const expertBytes = modules.parts.experts.byteLength / experts;
    this.control = new ControlLoop(experts, expertBytes, device.properties, options);
    this.#graphs = new GraphManager({ device, ...options.graphs });
    this.#energy = new EnergyMonitor(device.energy);
    this.#streams = new StreamPool(device);
  }

  static async open(
    spec: LayerSpec,
    source: LayerWeights,
    options: LayerOptions,
  ): Promise<LayerEngine> {
    const device = options.device ?? (await defaultDevice());
    const modules = await LayerModules.load(device, spec, source);
    try {
      return new LayerEngine(device, spec, modules, options);
    } catch (error) {
      modules[Symbol.dispose]();
      throw error;
    }
  }

  async step(
    input: Tensor | DeviceTensor,
    options: ForwardOptions,
  ): Promise<ForwardResult | ForwardResult<DeviceTensor>> {
    const device = this.#device;
    const { hiddenSize, router } = this.#spec;
    const tokens = sizeOf(input.shape) / hiddenSize;
    const buffers = this.#buffersFor(tokens);
    await this.#writeInput(input, buffers);
    device.write(buffers.tokens, Int32Array.of(tokens));
    device.write(buffers.busy, new Int32Array(router.experts));
    const { plan, assignment } = this.control;
    if (this.#laneOf !== assignment.laneOf) {
      device.write(buffers.buckets.laneOf, assignment.laneOf);
      this.#laneOf = assignment.laneOf;
    }
    device.setComputeBudgets(computeBudgetsOf(plan));

    const streams = this.#streams.get(assignment);
    const key = graphKey({
      spec: this.#specKey,
      bucket: tokenBucket(tokens),
      budgets: plan.budgetKey,
      lanes: assignment.laneKey,
    });
    const started = performance.now();
    const mode = await this.#graphs.run(key, {
      origin: streams.main,
      record: () => recordStep(streams, this.modules.parts, buffers),
    });
    const seconds = (performance.now() - started) / 1000;
    this.#steps++;
    return this.#finish(input, options, buffers, {
      mode,
      seconds,
      tokens,
      plan,
      assignment,
    });
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

  /** Buffers with room for the batch; larger batches than ever before replace them, and the graphs that used them. */
  #buffersFor(tokens: number): StepBuffers {
    if (this.#buffers !== undefined && this.#buffers.capacity >= tokens) return this.#buffers;
    this.#graphs.invalidate(() => true);
    this.#buffers?.[Symbol.dispose]();
    this.#buffers = undefined;
    this.#laneOf = undefined;
    const { hiddenSize, router, experts, shared, aggregation } = this.#spec;
    this.#buffers = new StepBuffers(
      this.#device,
      {
        hiddenSize,
        experts: router.experts,
        topK: router.topK,
        expertForm: experts,
        ...(shared && { shared }),
        aggregation: aggregation.mode,
      },
      tokenBucket(tokens),
    );
    return this.#buffers;
  }

  async #writeInput(input: Tensor | DeviceTensor, buffers: StepBuffers): Promise<void> {
    if (!(input instanceof DeviceTensor)) {
      this.#device.write(buffers.hidden, toFloat32(input));
      return;
    }
    if (input.device !== this.#device) {
      throw new InvalidArgumentError(
        "hidden is on another device than the layer. Copy it to the host first: await hidden.toHost().",
      );
    }
    await this.#device.copy(buffers.hidden, input.buffer, sizeOf(input.shape) * 4);
  }

  async #finish(
    input: Tensor | DeviceTensor,
    options: ForwardOptions,
    buffers: StepBuffers,
    run: {
      readonly mode: RunMode;
      readonly seconds: number;
      readonly tokens: number;
      readonly plan: Plan;
      readonly assignment: { readonly streams: number };
    },
  ): Promise<ForwardResult | ForwardResult<DeviceTensor>> {
    const device = this.#device;
    const { router, hiddenSize, aggregation } = this.#spec;
    const { tokens } = run;
    const slots = tokens * router.topK;
    const width = outputWidth(aggregation.mode, hiddenSize, router.topK);
    const shape = [...input.shape.slice(0, -1), width];
    const counts = new Int32Array(router.experts);
    await device.read(buffers.counts, counts);

    let routing: Routing | undefined;
    let dropped: readonly DroppedSlot[] = [];
    if (options.routing || router.capacityFactor !== undefined) {
      const ids = new Int32Array(slots);
      await device.read(buffers.ids, ids);
      if (options.routing) {
        const weights = new Float32Array(slots);
        await device.read(buffers.weights, weights);
        routing = { ids, weights };
      }
      if (router.capacityFactor !== undefined) {
        const inverse = new Int32Array(slots);
        await device.read(buffers.buckets.inverse, inverse);
        dropped = droppedSlots(inverse, ids, router.topK);
      }
    }

    const energy = await this.#observe(buffers, counts, run);
    const stats: ForwardStats = {
      step: this.#steps,
      tokens,
      mode: run.mode,
      seconds: run.seconds,
      counts,
      dropped,
      planVersion: run.plan.version,
      streams: run.assignment.streams,
      energy,
    };
    const rest = { stats, ...(routing && { routing }) };
    if (!(input instanceof DeviceTensor)) {
      const data = new Float32Array(tokens * width);
      await device.read(buffers.output, data);
      return { output: { dtype: "float32", shape, data }, ...rest };
    }
    const target = device.allocate(Math.max(4, tokens * width * 4), "layer output");
    await device.copy(target, buffers.output, tokens * width * 4);
    return { output: new DeviceTensor(device, target, shape), ...rest };
  }

  async #observe(
    buffers: StepBuffers,
    counts: Int32Array,
    run: { readonly plan: Plan; readonly tokens: number; readonly seconds: number },
  ): Promise<EnergyReading> {
    let busySeconds: Float64Array | undefined;
    if (this.#device.properties.timesExperts.available) {
      const busy = new Int32Array(counts.length);
      await this.#device.read(buffers.busy, busy);
      busySeconds = Float64Array.from(busy, (units) => units * BUSY_UNIT_SECONDS);
    }
    const energy = this.#energy.sample(run.tokens, run.seconds);
    this.control.observe({
      plan: run.plan,
      tokens: run.tokens,
      counts,
      ...(busySeconds && { busySeconds }),
      seconds: run.seconds,
      joules: energy.available ? energy.joules : energy.pending ? null : "lost",
    });
    return energy;
  }
}
