/** Weights on the GPU: their types, biases, noise, refusals and lifetime. Where they lie: projection-layout.test.ts. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { rowsWork } from "../../../src/execution/cuda/operators/pack.ts";
import type { PlainProjection } from "../../../src/execution/cuda/plain-projection.ts";
import type { ProjectionSpec } from "../../../src/execution/device.ts";
import type { DType, MatrixView } from "../../../src/tensor.ts";
import { randomFor } from "../../support/seed.ts";
import { FakeDevice } from "./operators/harness.ts";
import { matrixOf } from "./packing.ts";

describe("a projection", () => {
  it("keeps weights in the type of its rows, gates in their own or float32", async () => {
    const device = await FakeDevice.open();
    const element = (dtype: DType, input: DType, output: "rows" | "float32" = "rows") =>
      device.projection({ count: 1, dtype, input, output }).element;
    assert.equal(element("bfloat16", "bfloat16"), "bfloat16");
    assert.equal(element("bfloat16", "float32"), "float32");
    assert.equal(element("float16", "float32"), "float32");
    assert.equal(element("bfloat16", "bfloat16", "float32"), "bfloat16");
    assert.equal(element("float32", "bfloat16", "float32"), "float32");
    assert.equal(element("float16", "bfloat16", "float32"), "float32");
  });

  it("interleaves biases, in float32, and uploads a matrix's at once", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 2, outputs: 3, gated: true, bias: true });
    assert.equal(projection.n, 128);
    assert.equal(projection.byteLength, 2 * 128 * 128 * 2 + 2 * 128 * 4);
    projection.writeBias(1, "gate", Float32Array.of(1, 2, 3));
    projection.writeBias(1, "value", Float32Array.of(10, 20, 30));
    assert.equal(device.uploads.length, 2);
    const address = projection.address + BigInt(2 * 128 * 128 * 2 + 128 * 4);
    const last = device.uploads.at(-1);
    assert.equal(last?.address, address);
    const row = new Float32Array(128);
    row.set([1, 10, 2, 20, 3, 30]);
    assert.deepEqual(last?.data, row);
    assert.equal(projection.bias(1), address);
    assert.equal(device.projection().bias(0), null);
  });

  it("fills its weights with noise by a kernel that leaves the padding alone", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 4, outputs: 72, inputs: 100, gated: true });
    const work = projection.fillWork(-5, 0.02);
    const [kernel] = device.kernels([work]);
    assert.equal(kernel?.name, "fill_uniform_bf16");
    const { destination, ...values } = kernel?.values ?? {};
    assert.equal(destination, projection.address);
    assert.deepEqual(values, {
      seed: -5,
      matrices: 4,
      n: 256,
      k: 128,
      valid_rows: 144,
      valid_columns: 100,
      scale: Math.fround(0.02),
      row_step: 64,
      panel_step: 64 * 256,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.equal(work.blocks(132), 4 * 144);
    const gate = device.projection({ count: 1, outputs: 72, inputs: 100, output: "float32" });
    const [other] = device.kernels([gate.fillWork(-5, 0.02)]);
    assert.deepEqual(
      ["k", "row_step", "panel_step"].map((field) => other?.values[field]),
      [128, 128, 64],
    );
    assert.throws(() => projection.fillWork(0.5, 1), /seed is 0\.5\. Use a whole number/);
    assert.throws(() => projection.fillWork(1, -1), /scale is -1\. Use a finite number, 0 or more/);
    projection[Symbol.dispose]();
    assert.throws(() => projection.fillWork(1, 1), { name: "DisposedError" });
  });

  it("gives launches and tensor maps back", async () => {
    const device = await FakeDevice.open();
    const random = randomFor("slots");
    const projection = device.projection();
    for (let i = 0; i < 200; i++) {
      await projection.write(0, "value", matrixOf(random, 72, 100, "bfloat16"));
      const other = device.projection();
      for (const block_size of [
        [128, 64],
        [1, 2, 64, 64],
      ]) {
        other.tensorMap({ block_size, swizzle: 3, l2_promotion: 2 });
      }
      other[Symbol.dispose]();
      other[Symbol.dispose]();
    }
    assert.equal(device.heap.chunks.length, 1);
  });

  it("stops in the middle when it is closed", async () => {
    const device = await FakeDevice.open();
    const spec = {
      count: 1,
      inputs: 3000,
      outputs: 3000,
      dtype: "float32",
      input: "float32",
    } as const;
    const projection = device.projection(spec);
    const data = new Float32Array(9_000_000);
    const matrix = { dtype: "float32", data, offset: 0, rows: 3000, columns: 3000 } as const;
    const written = projection.write(0, "value", { ...matrix, rowStride: 3000, columnStride: 1 });
    projection[Symbol.dispose]();
    await assert.rejects(written, {
      name: "DisposedError",
      message: /Projection "weights" is closed/,
    });
    assert.equal(device.staged.length, 1);
  });

  it("refuses specs that make no sense", async () => {
    const device = await FakeDevice.open();
    const refused = (spec: Partial<ProjectionSpec>, message: RegExp) => {
      assert.throws(() => device.projection(spec), { name: "InvalidArgumentError", message });
    };
    for (const name of ["count", "inputs", "outputs"] as const) {
      refused({ [name]: 0 }, new RegExp(`projection's ${name} is 0\\. Use a whole number`));
    }
    refused({ dtype: "int32" }, /Weights of "int32" are not supported/);
    refused({ input: "int32" }, /Input rows of "int32" are not supported/);
    refused({ dtype: "float32" }, /float32 weights would have to be rounded for rows of bfloat16/);
    refused({ dtype: "float16" }, /float16 weights would have to be rounded/);
    refused({ output: "columns" as "rows" }, /output is "columns"/);
    refused({ output: "float32", count: 2 }, /to float32 is of 2 matrices/);
    refused({ output: "float32", count: 1, gated: true }, /to float32 is gated/);
    refused({ count: 2 ** 24, outputs: 128 }, /has 4294967296 rows of 64 inputs/);
    assert.throws(() => device.packed({ count: 2 ** 24, outputs: 128 }), /4294967296 rows of 64/);
    assert.deepEqual(device.scratches, []);
  });

  it("refuses matrices and biases that are not its own", async () => {
    const device = await FakeDevice.open();
    const plain: PlainProjection = device.projection({ bias: true });
    const random = randomFor("bad matrices");
    const good = matrixOf(random, 72, 100, "bfloat16");
    const refused = (name: string, message: RegExp, changes: Partial<MatrixView>, index = 0) =>
      assert.rejects(plain.write(index, "value", { ...good, ...changes }), { name, message });
    await refused("InvalidArgumentError", /has 4 matrices; there is no number 4/, {}, 4);
    await refused("InvalidArgumentError", /there is no number 0\.5/, {}, 0.5);
    await refused("ShapeError", /takes \[72, 100\] matrices/, { rows: 71 });
    await refused("ShapeError", /holds bfloat16 weights, got "float16"/, { dtype: "float16" });
    await refused("ShapeError", /whole numbers of elements/, { rowStride: 0.5 });
    await refused("ShapeError", /reaches from element -\d+ to/, { offset: -100_000 });
    await refused("ShapeError", /but its data has \d+ elements/, { rowStride: 1000 });
    await refused("ShapeError", /elements of 2 bytes, but its data is a Float32Array/, {
      data: new Float32Array(100_000),
      offset: 50_000,
    });
    await assert.rejects(plain.write(0, "gate", good), /has no part "gate"\. Use "value"\./);
    assert.throws(() => plain.writeBias(0, "value", new Float32Array(71)), {
      name: "ShapeError",
      message: /Float32Array of 72 elements, got 71 elements/,
    });
    assert.throws(() => plain.writeBias(0, "value", [1] as unknown as Float32Array), /got object/);
    assert.throws(
      () => device.projection().writeBias(0, "value", new Float32Array(72)),
      /has no bias/,
    );
    plain[Symbol.dispose]();
    await refused("DisposedError", /Projection "weights" is closed/, {});
    assert.throws(() => plain.writeBias(0, "value", new Float32Array(72)), {
      name: "DisposedError",
    });
    assert.deepEqual(device.staged, []);
  });
});

describe("rows into a layout", () => {
  const layout = { dtype: "bfloat16", width: 100, pitch: 128 } as const;

  it("are packed, or copied where they lie that way already", async () => {
    const device = await FakeDevice.open();
    const target = device.buffer(7 * 128 * 2);
    const [kernel] = device.kernels(rowsWork(device.context, target, layout, 0x99n, "float32", 7));
    assert.equal(kernel?.name, "pack_fp32_bf16");
    const { source, destination, ...values } = kernel?.values ?? {};
    assert.deepEqual([source, destination], [0x99n, target.address]);
    assert.deepEqual(values, {
      rows: 7,
      columns: 100,
      row_stride: 100,
      column_stride: 1,
      row_step: 128,
      panel_step: 64,
      first_column: 0,
      pitch: 128,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.equal(kernel?.work.blocks(132), 7);
    const narrow = { dtype: "float16", width: 64, pitch: 64 } as const;
    assert.deepEqual(rowsWork(device.context, target, narrow, 0x80n, "float16", 5), [
      { kind: "copy", target: target.address, source: 0x80n, bytes: 5 * 64 * 2 },
    ]);
    assert.deepEqual(rowsWork(device.context, target, layout, 0n, "float16", 0), []);
  });

  it("are refused where they do not fit", async () => {
    const device = await FakeDevice.open();
    const target = device.buffer(7 * 128 * 2, "rows");
    const refused = (message: RegExp, changes: object, dtype: DType = "float32", rows = 7) =>
      assert.throws(
        () => rowsWork(device.context, target, { ...layout, ...changes }, 0n, dtype, rows),
        { name: "InvalidArgumentError", message },
      );
    refused(/Buffer "rows" has 1792 bytes; 8 rows of 128 bfloat16 need 2048/, {}, "float32", 8);
    refused(/100 values at a pitch of 100 are not this device's layout/, { pitch: 100 });
    refused(/Source rows of "int32" are not supported/, {}, "int32");
    refused(/Rows of "int32" are not supported/, { dtype: "int32" });
  });
});
