/** Writing weights: any strides, any chunking, and what is refused. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { DisposedError, InvalidArgumentError, ShapeError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import { STAGING_BYTES } from "../../../src/execution/cpu/projection.ts";
import type { Projection, ProjectionSpec } from "../../../src/execution/device.ts";
import { type MatrixView, matrixView, type TensorData } from "../../../src/tensor.ts";
import { between, normal, pick, randomFor } from "../../support/seed.ts";
import { floats, ints, room, upload, withDevice } from "./harness.ts";

let device: CpuDevice;
before(async () => {
  device = await openCpuDevice({ threads: 2 });
});
after(() => device.close());

const SPEC: ProjectionSpec = {
  count: 2,
  inputs: 5,
  outputs: 7,
  dtype: "float32",
  gated: false,
  bias: false,
  input: "float32",
  output: "rows",
};

function view(data: TensorData, rows: number, columns: number, change: object = {}): MatrixView {
  const dtype = data instanceof Float32Array ? "float32" : "bfloat16";
  return { ...matrixView({ dtype, shape: [rows, columns], data }), ...change };
}

/** What unit vectors come out as is the matrix itself, as far as the device has it. */
async function readBack(projection: Projection, matrix: number): Promise<Float32Array> {
  const { inputs, outputs } = projection.spec;
  const unit = new Float32Array(inputs * inputs);
  for (let i = 0; i < inputs; i++) unit[i * inputs + i] = 1;
  const output = room(device, inputs * outputs);
  const stream = device.createStream({ group: 0, priority: 0 });
  stream.enqueue({
    kind: "project",
    projection,
    activation: { kind: "none" },
    input: upload(device, unit),
    output,
    rows: { from: "all", tokens: ints(device, inputs), mostTokens: inputs, matrix },
  });
  await device.synchronize();
  // [inputs, outputs]: the matrix, transposed.
  return floats(device, output);
}

describe("Projection.write", () => {
  it("writes nothing for a projection that is closed while it waits for room", () =>
    withDevice(2, async (own) => {
      const projections = [0, 1, 2].map((i) => own.createProjection(SPEC, `projection ${i}`));
      // More than can be staged at once, so that the last one waits.
      const sevens = () => view(new Float32Array(7 * 5).fill(7), 7, 5);
      const writes = projections.map((each) => each.write(0, "value", sevens()));
      const refused = assert.rejects(writes.at(-1) as Promise<void>, {
        name: "DisposedError",
        message: /Projection "projection 2" is closed/,
      });
      projections[2]?.[Symbol.dispose]();
      await refused;
      await Promise.all(writes.slice(0, -1));
    }));

  it("honours any strides", async () => {
    const random = randomFor("strides");
    for (let round = 0; round < 80; round++) {
      const [inputs, outputs] = [between(random, 1, 40), between(random, 1, 50)];
      const inner = pick(random, [1, 1, 2, 3, 7, -1, -2]);
      const transposed = random.integer(2) === 1;
      const [innerCount, outerCount] = transposed ? [outputs, inputs] : [inputs, outputs];
      const span = (innerCount - 1) * Math.abs(inner) + 1;
      const outer = (span + random.integer(4)) * pick(random, [1, -1]);
      const data = normal(random, span * outerCount + 200);
      const least = Math.min(0, (innerCount - 1) * inner) + Math.min(0, (outerCount - 1) * outer);
      const length = 1 + (innerCount - 1) * Math.abs(inner) + (outerCount - 1) * Math.abs(outer);
      const source = length <= data.length ? data : normal(random, length);
      const offset = -least + random.integer(source.length - length + 1);
      const [rowStride, columnStride] = transposed ? [inner, outer] : [outer, inner];
      using projection = device.createProjection({ ...SPEC, inputs, outputs }, "weights");
      await projection.write(
        1,
        "value",
        view(source, outputs, inputs, { offset, rowStride, columnStride }),
      );
      const got = await readBack(projection, 1);
      for (let o = 0; o < outputs; o++) {
        for (let i = 0; i < inputs; i++) {
          const want = source[offset + o * rowStride + i * columnStride];
          const name = `[${outputs}, ${inputs}] with strides ${rowStride}, ${columnStride}`;
          assert.equal(got[i * outputs + o], want, name);
        }
      }
      assert.ok((await readBack(projection, 0)).every((x) => x === 0));
    }
  });

  it("takes one row or one column with any stride, and repeats elements with stride 0", async () => {
    using column = device.createProjection({ ...SPEC, inputs: 1, outputs: 3 }, "column");
    const data = Float32Array.of(0, 1, 2, 3, 4, 5, 6);
    await column.write(0, "value", view(data, 3, 1, { rowStride: 3, columnStride: 99 }));
    assert.deepEqual([...(await readBack(column, 0))], [0, 3, 6]);
    using same = device.createProjection({ ...SPEC, inputs: 2, outputs: 2 }, "same");
    await same.write(0, "value", view(data, 2, 2, { offset: 5, rowStride: 0, columnStride: 0 }));
    assert.deepEqual([...(await readBack(same, 0))], [5, 5, 5, 5]);
  });

  it("stages large matrices in parts, several writers at a time, within bounds", async () => {
    const random = randomFor("staging");
    const [inputs, outputs] = [128, 20001];
    const spec = { ...SPEC, inputs, outputs, count: 3, dtype: "bfloat16" } as const;
    using projection = device.createProjection(spec, "large");
    const before = device.memory();
    assert.ok(inputs * outputs * 2 > STAGING_BYTES);
    // bfloat16 numbers from 1 to 2, in no order.
    const sources = [0, 1, 2].map((salt) => {
      const data = new Uint16Array(inputs * outputs);
      for (let n = 0; n < data.length; n++)
        data[n] = 0x3f80 + (Math.imul(n + salt, 0x9e3779b1) >>> 25);
      return data;
    });
    await Promise.all(
      sources.map((data, i) =>
        projection.write(
          i,
          "value",
          // The last one transposed, as gpt-oss has it.
          i === 2
            ? view(data, outputs, inputs, { rowStride: 1, columnStride: outputs })
            : view(data, outputs, inputs),
        ),
      ),
    );
    const after = device.memory();
    assert.equal(after.usedBytes, before.usedBytes);
    assert.ok(after.peakBytes - before.usedBytes <= 2 * STAGING_BYTES);
    const float = new Float32Array(1);
    const bits = new Uint32Array(float.buffer);
    for (const [i, data] of sources.entries()) {
      const got = await readBack(projection, i);
      for (let n = 0; n < 5000; n++) {
        const [o, k] = [random.integer(outputs), random.integer(inputs)];
        bits[0] = (data[i === 2 ? k * outputs + o : o * inputs + k] as number) << 16;
        assert.equal(got[k * outputs + o], float[0], `matrix ${i}, output ${o}, input ${k}`);
      }
    }
  });

  it("refuses what does not fit, and writes nothing of it", async () => {
    using projection = device.createProjection({ ...SPEC, bias: true }, "fc1");
    const data = new Float32Array(35).fill(1);
    const refused = (
      body: Promise<void>,
      pattern: RegExp,
      type: typeof ShapeError | typeof InvalidArgumentError = ShapeError,
    ) => assert.rejects(body, (e) => e instanceof type && pattern.test((e as Error).message));
    const write = (matrix: MatrixView, index = 0, part: "value" | "gate" = "value") =>
      projection.write(index, part, matrix);
    await refused(write(view(data, 5, 7)), /"fc1" takes \[7, 5\] matrices .* got \[5, 7\]/);
    await refused(write(view(new Uint16Array(35), 7, 5)), /holds float32 weights, got "bfloat16"/);
    await refused(write(view(data, 7, 5, { rowStride: 6 })), /from element 0 to 40/);
    await refused(write(view(data, 7, 5, { rowStride: -5 })), /from element -30/);
    await refused(write(view(data, 7, 5, { rowStride: 0.5 })), /whole numbers/);
    await refused(write(view(new Uint16Array(35), 7, 5, { dtype: "float32" })), /Uint16Array/);
    await refused(
      write(view(data, 7, 5), 2),
      /2 matrices; there is no number 2/,
      InvalidArgumentError,
    );
    await refused(write(view(data, 7, 5), 0, "gate"), /no part "gate"/, InvalidArgumentError);
    assert.ok((await readBack(projection, 0)).every((x) => x === 0));

    assert.throws(() => projection.writeBias(0, "value", new Float32Array(6)), ShapeError);
    assert.throws(() => projection.writeBias(0, "gate", new Float32Array(7)), InvalidArgumentError);
    using plain = device.createProjection(SPEC, "plain");
    assert.throws(() => plain.writeBias(0, "value", new Float32Array(7)), /has no bias/);

    const writing = projection.write(0, "value", view(data, 7, 5));
    projection[Symbol.dispose]();
    projection[Symbol.dispose]();
    await writing.catch((error) => assert.ok(error instanceof DisposedError));
    await assert.rejects(write(view(data, 7, 5)), DisposedError);
    assert.throws(() => projection.writeBias(0, "value", new Float32Array(7)), DisposedError);
  });

  it("refuses projections that make no sense", () => {
    const changes = [
      { count: 0 },
      { inputs: 1.5 },
      { outputs: -1 },
      { dtype: "int32" },
      { input: "bfloat16" },
      { output: "int32" },
      { output: "float32" },
      { count: 1, gated: true, output: "float32" },
    ];
    for (const change of changes) {
      assert.throws(
        () => device.createProjection({ ...SPEC, ...change } as ProjectionSpec, "x"),
        InvalidArgumentError,
        JSON.stringify(change),
      );
    }
  });
});

describe("CpuDevice.fillUniform", () => {
  it("gives the same noise for the same seed on any number of workers", async () => {
    const spec = { ...SPEC, inputs: 300, outputs: 260, dtype: "bfloat16" } as const;
    const noise = async (on: CpuDevice, seed: number) => {
      const projection = on.createProjection(spec, "noise");
      await on.fillUniform(projection, seed, 0.25);
      return projection;
    };
    const [a, b, c] = [await noise(device, 7), await noise(device, 7), await noise(device, 8)];
    const [x, y, z] = [await readBack(a, 1), await readBack(b, 1), await readBack(c, 1)];
    assert.deepEqual(x, y);
    assert.notDeepEqual(x, z);
    assert.ok(x.every((value) => Math.abs(value) <= 0.25));
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    assert.ok(Math.abs(mean) < 0.005, `${mean}`);
    await assert.rejects(device.fillUniform(a, 0.5, 1), InvalidArgumentError);
    await assert.rejects(device.fillUniform(a, 1, Number.NaN), InvalidArgumentError);
    await withDevice(1, async (other) => {
      await assert.rejects(other.fillUniform(a, 1, 1), InvalidArgumentError);
    });
    a[Symbol.dispose]();
    await assert.rejects(device.fillUniform(a, 1, 1), DisposedError);
  });
});
