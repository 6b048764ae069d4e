/** Rows on the CPU device: float32 without gaps, written from any float type, copied as they are. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { DisposedError, InvalidArgumentError, ShapeError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import { rowBytes } from "../../../src/execution/device.ts";
import { type DType, toTensor } from "../../../src/tensor.ts";
import { tensorOf } from "../../support/tensors.ts";
import { floats, room, upload } from "./harness.ts";

let device: CpuDevice;
before(async () => {
  device = await openCpuDevice({ threads: 1 });
});
after(() => device.close());

const VALUES = Float32Array.of(1, -2.5, 0, 0.375, 1024, -0.0625);

describe("rows of the CPU device", () => {
  it("are float32 without gaps whatever the weights are", () => {
    for (const weights of ["float32", "bfloat16", "float16"] as const) {
      const layout = device.rowLayout(3, weights);
      assert.deepEqual(layout, { dtype: "float32", width: 3, pitch: 3 });
      assert.equal(rowBytes(layout, 5), 60);
    }
  });

  it("count the bytes of other devices' layouts too", () => {
    assert.equal(rowBytes({ dtype: "bfloat16", width: 3, pitch: 64 }, 5), 640);
    assert.equal(rowBytes({ dtype: "float32", width: 3, pitch: 64 }, 0), 0);
  });

  it("are written from tensors of any float type", async () => {
    for (const dtype of ["float32", "bfloat16", "float16"] as const) {
      const target = room(device, 6);
      const source = toTensor(tensorOf(VALUES, [2, 3], dtype), "source");
      device.writeRows(target, device.rowLayout(3, dtype), source);
      assert.deepEqual(await floats(device, target), VALUES);
    }
  });

  it("are copied between buffers", async () => {
    const target = room(device, 6);
    const layout = device.rowLayout(3, "bfloat16");
    await device.copyRows(target, layout, upload(device, VALUES), "float32", 1);
    assert.deepEqual(await floats(device, target), Float32Array.of(1, -2.5, 0, 0, 0, 0));
    const other: DType = "bfloat16";
    await assert.rejects(
      device.copyRows(target, layout, upload(device, VALUES), other, 1),
      (error) => error instanceof InvalidArgumentError && /"bfloat16" rows/.test(error.message),
    );
    await assert.rejects(
      device.copyRows(target, layout, upload(device, VALUES), "float32", 3),
      InvalidArgumentError,
    );
  });

  it("are refused in layouts that are not the device's, and where they do not fit", async () => {
    const target = room(device, 6);
    const layout = device.rowLayout(3, "float32");
    const source = toTensor(tensorOf(VALUES, [2, 3]), "source");
    for (const change of [{ dtype: "bfloat16" }, { pitch: 64 }] as const) {
      const foreign = { ...layout, ...change };
      assert.throws(() => device.writeRows(target, foreign, source), InvalidArgumentError);
      const copied = device.copyRows(target, foreign, upload(device, VALUES), "float32", 1);
      await assert.rejects(copied, /rowLayout\(\)/);
    }
    assert.throws(
      () => device.writeRows(target, device.rowLayout(2, "float32"), source),
      ShapeError,
    );
    const integers = toTensor({ data: new Int32Array(6), shape: [2, 3] }, "source");
    assert.throws(() => device.writeRows(target, layout, integers), /int32/);
    assert.throws(() => device.writeRows(room(device, 5), layout, source), InvalidArgumentError);
    target[Symbol.dispose]();
    assert.throws(() => device.writeRows(target, layout, source), DisposedError);
  });

  it("make a buffer that is mirrored one like any other", async () => {
    const buffer = device.allocate(8, "counts", { mirrored: true });
    device.write(buffer, Int32Array.of(1, 2));
    const out = new Int32Array(2);
    await device.read(buffer, out);
    assert.deepEqual([...out], [1, 2]);
  });
});
