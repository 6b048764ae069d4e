/**
 * What the tests of the CPU device share: buffers that come with their contents,
 * and one whole MoE step of random weights to run in different ways.
 */

import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import type { DeviceBuffer, Projection, Stream } from "../../../src/execution/device.ts";
import type { BucketBuffers, RoutingRule } from "../../../src/execution/operators.ts";
import type { DType } from "../../../src/tensor.ts";
import type { Random } from "../../../src/workload/random.ts";
import { normal } from "../../support/seed.ts";

/** Runs `body` with a device of its own, closed afterwards whatever happens. */
export async function withDevice<T>(
  threads: number,
  body: (device: CpuDevice) => Promise<T>,
): Promise<T> {
  const device = await openCpuDevice({ threads });
  try {
    return await body(device);
  } finally {
    await device.close();
  }
}

/** A buffer with these contents. */
export function upload(
  device: CpuDevice,
  data: Float32Array | Int32Array,
  label = "input",
): DeviceBuffer {
  const buffer = device.allocate(data.byteLength, label);
  device.write(buffer, data);
  return buffer;
}

export function ints(device: CpuDevice, ...values: number[]): DeviceBuffer {
  return upload(device, Int32Array.from(values));
}

/** Room for that many float32 or int32 elements. */
export function room(device: CpuDevice, elements: number, label = "output"): DeviceBuffer {
  return device.allocate(elements * 4, label);
}

export async function floats(device: CpuDevice, buffer: DeviceBuffer): Promise<Float32Array> {
  const out = new Float32Array(buffer.byteLength / 4);
  await device.read(buffer, out);
  return out;
}

export async function integers(device: CpuDevice, buffer: DeviceBuffer): Promise<Int32Array> {
  const out = new Int32Array(buffer.byteLength / 4);
  await device.read(buffer, out);
  return out;
}

export function bucketBuffers(
  device: CpuDevice,
  experts: number,
  slots: number,
  laneOf: ArrayLike<number> = new Int32Array(experts),
): BucketBuffers {
  return {
    offsets: room(device, experts + 1, "offsets"),
    order: room(device, slots, "order"),
    inverse: room(device, slots, "inverse"),
    laneOf: upload(device, Int32Array.from(laneOf), "laneOf"),
  };
}

/**
 * Norm of the difference, relative to the norm of what is wanted, which is of the
 * order of 1 an element; an element that cancels to almost nothing is no excuse for
 * the others, and needs none.
 */
export function errorOf(got: Float32Array, want: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < want.length; i++) {
    difference += ((got[i] as number) - (want[i] as number)) ** 2;
    norm += (want[i] as number) ** 2;
  }
  return Math.sqrt(difference) / (Math.sqrt(norm) + Math.sqrt(want.length));
}

export interface StepSizes {
  readonly experts: number;
  readonly topK: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly capacity: number;
  readonly dtype?: DType;
}

const RULE: RoutingRule = { scoring: "softmax", renormalize: true, scale: 1 };

/** One gated MoE layer with random weights and its buffers. Lanes go round the streams it is enqueued on. */
export class Step {
  readonly sizes: StepSizes;
  readonly tokens: DeviceBuffer;
  readonly input: DeviceBuffer;
  readonly output: DeviceBuffer;
  readonly busy: DeviceBuffer;
  readonly laneOf: DeviceBuffer;
  readonly #device: CpuDevice;
  readonly #gate: Projection;
  readonly #up: Projection;
  readonly #down: Projection;
  readonly #buckets: BucketBuffers;
  readonly #logits: DeviceBuffer;
  readonly #ids: DeviceBuffer;
  readonly #weights: DeviceBuffer;
  readonly #counts: DeviceBuffer;
  readonly #middle: DeviceBuffer;
  readonly #rows: DeviceBuffer;

  private constructor(device: CpuDevice, sizes: StepSizes) {
    const { experts, topK, hidden, intermediate, capacity, dtype = "float32" } = sizes;
    const slots = capacity * topK;
    this.#device = device;
    this.sizes = sizes;
    const matrices = (count: number, inputs: number, outputs: number, gated: boolean) => {
      const shape = { count, inputs, outputs, dtype, gated, bias: false };
      return device.createProjection({ ...shape, input: "float32", output: "rows" }, "weights");
    };
    this.#gate = matrices(1, hidden, experts, false);
    this.#up = matrices(experts, hidden, intermediate, true);
    this.#down = matrices(experts, intermediate, hidden, false);
    this.#buckets = bucketBuffers(device, experts, slots);
    this.laneOf = this.#buckets.laneOf;
    this.tokens = room(device, 1, "tokens");
    this.input = room(device, capacity * hidden, "input");
    this.output = room(device, capacity * hidden, "output");
    this.busy = room(device, experts, "busy");
    this.#logits = room(device, capacity * experts, "logits");
    this.#ids = room(device, slots, "ids");
    this.#weights = room(device, slots, "weights");
    this.#counts = room(device, experts, "counts");
    this.#middle = room(device, slots * intermediate, "middle");
    this.#rows = room(device, slots * hidden, "rows");
  }

  static async create(device: CpuDevice, sizes: StepSizes, seed = 1): Promise<Step> {
    const step = new Step(device, sizes);
    await device.fillUniform(step.#gate, seed, 1 / Math.sqrt(sizes.hidden));
    await device.fillUniform(step.#up, seed + 1, 1 / Math.sqrt(sizes.hidden));
    await device.fillUniform(step.#down, seed + 2, 1 / Math.sqrt(sizes.intermediate));
    return step;
  }

  /** Random hidden states for a batch of `tokens`. */
  fill(random: Random, tokens: number): void {
    this.#device.write(this.input, normal(random, tokens * this.sizes.hidden));
    this.#device.write(this.tokens, Int32Array.of(tokens));
  }

  /** Enqueues the step: routing and aggregation on the first stream, lane i on stream i. */
  enqueue(streams: readonly Stream[]): void {
    const [main, ...others] = streams as [Stream, ...Stream[]];
    const { experts, topK, hidden, capacity: mostTokens } = this.sizes;
    const lanes = streams.length;
    const { tokens, laneOf, busy } = this;
    const buckets = this.#buckets;
    this.#device.write(
      laneOf,
      Int32Array.from({ length: experts }, (_, e) => e % streams.length),
    );
    main.enqueue({
      kind: "project",
      projection: this.#gate,
      activation: { kind: "none" },
      input: this.input,
      output: this.#logits,
      rows: { from: "all", tokens, mostTokens, matrix: 0 },
    });
    main.enqueue({
      kind: "route",
      rule: RULE,
      experts,
      topK,
      mostTokens,
      bucketed: true,
      tokens,
      logits: this.#logits,
      ids: this.#ids,
      weights: this.#weights,
      counts: this.#counts,
    });
    main.enqueue({
      kind: "bucket",
      experts,
      topK,
      lanes,
      rowType: "float32",
      mostTokens,
      routed: true,
      tokens,
      ids: this.#ids,
      buckets,
    });
    using bucketed = this.#device.createEvent("bucketed");
    main.record(bucketed);
    for (const [lane, stream] of streams.entries()) {
      if (stream !== main) stream.wait(bucketed);
      stream.enqueue({
        kind: "project",
        projection: this.#up,
        activation: { kind: "silu" },
        input: this.input,
        output: this.#middle,
        rows: { from: "bucket", buckets, lane, lanes, topK, mostTokens, gather: true, busy },
      });
      stream.enqueue({
        kind: "project",
        projection: this.#down,
        activation: { kind: "none" },
        input: this.#middle,
        output: this.#rows,
        rows: { from: "bucket", buckets, lane, lanes, topK, mostTokens, gather: false, busy },
      });
    }
    for (const stream of others) {
      using done = this.#device.createEvent("lane done");
      stream.record(done);
      main.wait(done);
    }
    main.enqueue({
      kind: "combine",
      mode: "sum",
      topK,
      width: hidden,
      rowType: "float32",
      outputType: "float32",
      mostTokens,
      tokens,
      rows: this.#rows,
      inverse: buckets.inverse,
      weights: this.#weights,
      output: this.output,
    });
  }

  /** The output of the last batch of `tokens`. */
  async result(tokens: number): Promise<Float32Array> {
    const out = new Float32Array(tokens * this.sizes.hidden);
    await this.#device.read(this.output, out);
    return out;
  }
}
