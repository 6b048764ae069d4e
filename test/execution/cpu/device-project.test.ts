/** `project` on the device against float64 sums: all rows, bucketed rows, activations, biases, input scales. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { DisposedError, InvalidArgumentError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import type { Projection, Stream } from "../../../src/execution/device.ts";
import type {
  Activation,
  BucketOperator,
  ProjectOperator,
} from "../../../src/execution/operators.ts";
import { activate, joinGate } from "../../../src/reference/expert.ts";
import type { DType, MatrixView } from "../../../src/tensor.ts";
import type { Random } from "../../../src/workload/random.ts";
import { between, chance, normal, pick, randomFor } from "../../support/seed.ts";
import { tensorOf, valuesOf } from "../../support/tensors.ts";
import { bucketBuffers, errorOf, floats, integers, ints, room, upload } from "./harness.ts";

let device: CpuDevice;
let stream: Stream;
before(async () => {
  device = await openCpuDevice({ threads: 2 });
  stream = device.createStream({ group: 0, priority: 0 });
});
after(() => device.close());

const UNGATED: Activation[] = ["none", "relu", "silu", "gelu", "gelu-tanh", "sigmoid"].map(
  (kind) => ({ kind }) as Activation,
);
const GATED: Activation[] = [...UNGATED, { kind: "swiglu-clamped", alpha: 1.702, limit: 1.5 }];

/** Enqueues what puts tokens whose ids are given into buckets, for rows in float32. */
function bucket(what: Omit<BucketOperator, "kind" | "rowType" | "routed">): void {
  stream.enqueue({ kind: "bucket", rowType: "float32", routed: false, ...what });
}

/** A projection of random weights, and the same in plain arrays. */
interface Weights {
  readonly projection: Projection;
  readonly values: readonly Float32Array[];
  readonly gates: readonly Float32Array[];
  readonly biases: readonly { readonly value: Float32Array; readonly gate: Float32Array }[];
}

async function randomWeights(
  random: Random,
  count: number,
  [inputs, outputs]: readonly [number, number],
  { gated, dtype = "float32", bias }: { gated: boolean; dtype?: DType; bias: boolean },
): Promise<Weights> {
  const spec = {
    count,
    inputs,
    outputs,
    dtype,
    gated,
    bias,
    ...({ input: "float32", output: "rows" } as const),
  };
  const projection = device.createProjection(spec, "weights");
  const values: Float32Array[] = [];
  const gates: Float32Array[] = [];
  const biases = [];
  const write = async (index: number, part: "value" | "gate", into: Float32Array[]) => {
    const tensor = tensorOf(
      normal(random, outputs * inputs, 1 / Math.sqrt(inputs)),
      [outputs, inputs],
      dtype,
    );
    const { data } = tensor;
    const view: MatrixView = {
      dtype,
      data,
      offset: 0,
      rows: outputs,
      columns: inputs,
      rowStride: inputs,
      columnStride: 1,
    };
    await projection.write(index, part, view);
    into.push(valuesOf(tensor));
  };
  for (let i = 0; i < count; i++) {
    await write(i, "value", values);
    if (gated) await write(i, "gate", gates);
    const value = bias ? normal(random, outputs) : new Float32Array(outputs);
    const gate = bias && gated ? normal(random, outputs) : new Float32Array(outputs);
    if (bias) projection.writeBias(i, "value", value);
    if (bias && gated) projection.writeBias(i, "gate", gate);
    biases.push({ value, gate });
  }
  return { projection, values, gates, biases };
}

/** One row through one matrix, in float64. */
function expectedRow(
  { projection, values, gates, biases }: Weights,
  matrix: number,
  row: Float32Array,
  scale: number,
  activation: Activation,
): number[] {
  const { inputs, outputs, gated } = projection.spec;
  const product = (weights: Float32Array, bias: Float32Array, o: number) => {
    let sum = 0;
    for (let i = 0; i < inputs; i++)
      sum += (row[i] as number) * (weights[o * inputs + i] as number);
    return scale * sum + (bias[o] as number);
  };
  const bias = biases[matrix] as Weights["biases"][number];
  return Array.from({ length: outputs }, (_, o) => {
    const value = product(values[matrix] as Float32Array, bias.value, o);
    if (!gated) return activate(activation, value);
    return joinGate(activation, product(gates[matrix] as Float32Array, bias.gate, o), value);
  });
}

describe("project", () => {
  it("multiplies all rows by one matrix", async () => {
    const random = randomFor("all rows");
    for (let round = 0; round < 60; round++) {
      const count = between(random, 1, 3);
      const [inputs, outputs] = [between(random, 1, 600), between(random, 1, 90)] as const;
      const gated = chance(random, 0.5);
      const dtype = pick(random, ["float32", "bfloat16", "float16"] as const);
      const bias = chance(random, 0.5);
      const weights = await randomWeights(random, count, [inputs, outputs], { gated, dtype, bias });
      const activation = pick(random, gated ? GATED : UNGATED);
      const capacity = between(random, 1, 40);
      const tokens = round === 0 ? 0 : between(random, 1, capacity);
      const rows = normal(random, capacity * inputs);
      const matrix = random.integer(count);
      const output = upload(device, new Float32Array(capacity * outputs).fill(123));
      stream.enqueue({
        kind: "project",
        projection: weights.projection,
        activation,
        input: upload(device, rows),
        output,
        rows: { from: "all", tokens: ints(device, tokens), mostTokens: capacity, matrix },
      });
      await device.synchronize();
      const got = await floats(device, output);
      const name = `[${tokens}, ${inputs}] x [${outputs}, ${inputs}] ${dtype} ${gated ? "gated" : ""} ${activation.kind}`;
      for (let t = 0; t < capacity; t++) {
        const row = got.subarray(t * outputs, (t + 1) * outputs);
        if (t >= tokens) {
          assert.ok(
            row.every((x) => x === 123),
            `${name}: row ${t} was touched`,
          );
          continue;
        }
        const input = rows.subarray(t * inputs, (t + 1) * inputs);
        const want = expectedRow(weights, matrix, input, 1, activation);
        const error = errorOf(row, want);
        assert.ok(error < 5e-6, `${name}: row ${t} is off by ${error}`);
      }
      weights.projection[Symbol.dispose]();
    }
  });

  it("takes each lane's experts through their own matrices, and times them", async () => {
    const random = randomFor("bucketed rows");
    for (let round = 0; round < 40; round++) {
      const experts = pick(random, [1, 2, 5, 12]);
      const topK = between(random, 1, Math.min(experts, 3));
      const tokens = pick(random, [0, 1, 3, 30, 400]);
      const mostTokens = Math.max(1, tokens);
      const slots = mostTokens * topK;
      const [inputs, outputs] = [between(random, 1, 100), between(random, 1, 40)] as const;
      const gated = chance(random, 0.5);
      const bias = chance(random, 0.5);
      const weights = await randomWeights(random, experts, [inputs, outputs], { gated, bias });
      const activation = pick(random, gated ? GATED : UNGATED);
      const gather = chance(random, 0.5);
      const lanes = between(random, 1, 4);
      const laneOf = Int32Array.from({ length: experts }, () => random.integer(lanes));
      const inUse = between(random, 1, experts);
      const ids = Int32Array.from({ length: slots }, () => random.integer(inUse));
      const tokensBuffer = ints(device, tokens);
      const buckets = bucketBuffers(device, experts, slots, laneOf);
      const scales = chance(random, 0.5) ? normal(random, slots) : undefined;
      const rows = normal(random, (gather ? slots / topK : slots) * inputs);
      const output = upload(device, new Float32Array(slots * outputs).fill(123));
      const busy = room(device, experts);
      const lane = random.integer(lanes);
      bucket({
        experts,
        topK,
        lanes,
        tokens: tokensBuffer,
        buckets,
        mostTokens,
        ids: upload(device, ids),
      });
      const operator: ProjectOperator = {
        kind: "project",
        projection: weights.projection,
        activation,
        input: upload(device, rows),
        output,
        rows: {
          from: "bucket",
          buckets,
          lane,
          lanes,
          topK,
          mostTokens,
          gather,
          busy,
          ...(scales && { inputScale: upload(device, scales) }),
        },
      };
      stream.enqueue(operator);
      await device.synchronize();
      const [got, order, offsets, time] = [
        await floats(device, output),
        await integers(device, buckets.order),
        await integers(device, buckets.offsets),
        await integers(device, busy),
      ];
      for (let e = 0; e < experts; e++) {
        const [first, end] = [offsets[e] as number, offsets[e + 1] as number];
        if (laneOf[e] !== lane || first === end) assert.equal(time[e], 0);
        for (let row = first; row < end; row++) {
          const out = got.subarray(row * outputs, (row + 1) * outputs);
          if (laneOf[e] !== lane) {
            assert.ok(out.every((x) => x === 123));
            continue;
          }
          const slot = order[row] as number;
          const from = gather ? Math.floor(slot / topK) : row;
          const input = rows.subarray(from * inputs, (from + 1) * inputs);
          const want = expectedRow(weights, e, input, scales?.[slot] ?? 1, activation);
          const error = errorOf(out, want);
          assert.ok(error < 5e-6, `expert ${e}, row ${row}: off by ${error}`);
        }
      }
      weights.projection[Symbol.dispose]();
    }
  });

  it("counts time on the experts that it spends it on", async () => {
    const random = randomFor("busy");
    const shape = [512, 512] as const;
    const weights = await randomWeights(random, 2, shape, { gated: false, bias: false });
    const buckets = bucketBuffers(device, 2, 64);
    const busy = room(device, 2);
    const tokens = ints(device, 64);
    // 60 rows for expert 0, 4 for expert 1.
    const ids = upload(
      device,
      Int32Array.from({ length: 64 }, (_, i) => (i < 60 ? 0 : 1)),
    );
    bucket({ experts: 2, topK: 1, lanes: 1, tokens, ids, buckets, mostTokens: 64 });
    const laid = { from: "bucket", buckets, lane: 0, lanes: 1, topK: 1, mostTokens: 64 } as const;
    for (let round = 0; round < 20; round++) {
      stream.enqueue({
        kind: "project",
        projection: weights.projection,
        activation: { kind: "none" },
        input: upload(device, normal(random, 64 * 512)),
        output: room(device, 64 * 512),
        rows: { ...laid, gather: true, busy },
      });
    }
    const started = performance.now();
    await device.synchronize();
    const elapsed = (performance.now() - started) * 1e4;
    const [first, second] = (await integers(device, busy)) as unknown as [number, number];
    assert.ok(first > second && second > 0, `${first} and ${second}`);
    assert.ok(first + second <= 2 * elapsed, `${first + second} of 2 x ${elapsed}`);
  });

  it("follows no slot that is none", async () => {
    const random = randomFor("slots");
    const { projection } = await randomWeights(random, 1, [4, 4], { gated: false, bias: false });
    const buckets = bucketBuffers(device, 1, 2);
    const tokens = ints(device, 2);
    const ids = ints(device, 0, 0);
    bucket({ experts: 1, topK: 1, lanes: 1, tokens, ids, buckets, mostTokens: 2 });
    await device.synchronize();
    device.write(buckets.order, Int32Array.of(0, 2));
    stream.enqueue({
      kind: "project",
      projection,
      activation: { kind: "none" },
      input: room(device, 8),
      output: room(device, 8),
      rows: { from: "bucket", buckets, lane: 0, lanes: 1, topK: 1, mostTokens: 2, gather: true },
    });
    await assert.rejects(device.synchronize(), /project: order\[1\] is 2, which is not a slot/);
  });

  it("refuses what does not fit, naming it", async () => {
    const random = randomFor("refusals");
    const shape = [8, 4] as const;
    const { projection } = await randomWeights(random, 2, shape, { gated: false, bias: false });
    const tokens = ints(device, 1);
    const buckets = bucketBuffers(device, 2, 4);
    const input = room(device, 32);
    const good: ProjectOperator = {
      kind: "project",
      projection,
      activation: { kind: "none" },
      input,
      output: room(device, 16),
      rows: { from: "all", tokens, mostTokens: 4, matrix: 0 },
    };
    const refused = (change: object, pattern: RegExp, type: unknown = InvalidArgumentError) =>
      assert.throws(
        () => stream.enqueue({ ...good, ...change }),
        (error) => error instanceof (type as typeof Error) && pattern.test(error.message),
        String(pattern),
      );
    const fromBucket = {
      from: "bucket",
      buckets,
      lane: 0,
      lanes: 3,
      topK: 1,
      mostTokens: 4,
      gather: true,
    };
    refused({ rows: { ...good.rows, matrix: 2 } }, /project: rows\.matrix is 2/);
    refused(
      { rows: { ...good.rows, mostTokens: 5 } },
      /input \("output"\) has 128 bytes and needs 160/,
    );
    refused({ rows: { ...good.rows, mostTokens: 0 } }, /rows\.mostTokens is 0/);
    refused({ output: room(device, 15) }, /output .* has 60 bytes and needs 64/);
    refused({ output: input }, /output \("output"\) is also another argument/);
    refused({ activation: { kind: "tanh" } }, /activation\.kind is "tanh"/);
    refused({ activation: { kind: "swiglu-clamped", alpha: 1, limit: 1 } }, /gated projection/);
    refused({ rows: { ...good.rows, from: "some" } }, /rows\.from is "some"/);
    refused({ rows: fromBucket }, /no work lists yet/);
    refused({ projection: {} }, /projection is not a projection of this device/);
    refused({ input: {} }, /input is not a buffer of this device/);
    refused({ kind: "transpose" }, /Unknown operator "transpose"/);
    refused({ kind: "decode" }, /decode: the CPU device has no such operator.*decodeTokens is 0/);
    const ids = ints(device, 0, 1, 0, 1);
    bucket({ experts: 2, topK: 1, lanes: 3, tokens, ids, buckets, mostTokens: 4 });
    refused({ rows: { ...fromBucket, lane: 3 } }, /rows\.lane is 3/);
    refused({ rows: { ...fromBucket, topK: 0 } }, /rows\.topK is 0/);
    refused({ rows: { ...fromBucket, lanes: 2 } }, /rows\.lanes is 2 and was 3/);
    refused({ rows: { ...fromBucket, mostTokens: 2 } }, /rows\.mostTokens is 2 and was 4/);
    refused({ rows: { ...fromBucket, mostTokens: 5 } }, /order .* has 16 bytes and needs 20/);
    const { projection: three } = await randomWeights(random, 3, shape, {
      gated: false,
      bias: false,
    });
    const larger = bucketBuffers(device, 3, 4);
    refused({ projection: three, rows: fromBucket }, /offsets .* has 12 bytes and needs 16/);
    refused({ projection, rows: { ...fromBucket, buckets: larger } }, /no work lists yet/);
    three[Symbol.dispose]();
    refused({ projection: three }, /projection \("weights"\) is closed/, DisposedError);
    const gone = room(device, 32);
    gone[Symbol.dispose]();
    refused({ input: gone }, /input \("output"\) is closed/, DisposedError);
    // None of the refusals left anything behind that could run.
    stream.enqueue(good);
    await device.synchronize();
  });
});
