/** Weights and rows on their way to an emulated GPU: what is refused, or closed meanwhile, touches no other memory. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceFailedError, ShapeError } from "../../../src/errors.ts";
import type { ProjectionSpec } from "../../../src/execution/device.ts";
import type { DType, MatrixView, Tensor, TensorData } from "../../../src/tensor.ts";
import { withEmulated } from "./emulator/harness.ts";

const SIZE = 64;
const SPEC: ProjectionSpec = {
  count: 1,
  inputs: SIZE,
  outputs: SIZE,
  dtype: "float32",
  input: "float32",
  output: "rows",
  gated: false,
  bias: false,
};

function sevens(): MatrixView {
  return {
    dtype: "float32",
    data: new Float32Array(SIZE * SIZE).fill(7),
    offset: 0,
    rows: SIZE,
    columns: SIZE,
    rowStride: SIZE,
    columnStride: 1,
  };
}

describe("weights", () => {
  it("that still wait for room when their projection is closed are not written", () =>
    withEmulated(async (device) => {
      const others = [0, 1, 2, 3].map((i) => device.createProjection(SPEC, `other ${i}`));
      const closed = device.createProjection(SPEC, "closed");
      // More than can be staged at once, so that the last ones wait.
      const writes = [...others, closed].map((projection) =>
        projection.write(0, "value", sevens()),
      );
      const refused = assert.rejects(writes.at(-1) as Promise<void>, {
        name: "DisposedError",
        message: /Projection "closed" is closed/,
      });
      closed[Symbol.dispose]();
      await writes[1];
      const heir = device.allocate(SIZE * SIZE * 4, "heir");
      device.write(heir, new Float32Array(SIZE * SIZE).fill(1));
      await refused;
      await Promise.all(writes.slice(0, -1));
      const found = new Float32Array(SIZE * SIZE);
      await device.read(heir, found);
      assert.ok(
        found.every((value) => value === 1),
        "its memory was written by a projection that is closed",
      );
      heir[Symbol.dispose]();
      for (const projection of others) projection[Symbol.dispose]();
    }));

  it("that are filled at random leave no launch behind", () =>
    withEmulated(async (device, driver) => {
      using projection = device.createProjection(SPEC, "random");
      await device.fillUniform(projection, 1, 1);
      const { pinned } = driver.live;
      for (let i = 0; i < 1000; i++) await device.fillUniform(projection, i, 1);
      // Launches are written down in pinned memory.
      assert.equal(driver.live["pinned"], pinned);
    }));
});

describe("rows", () => {
  it("whose data is not what their shape says are refused, with nothing written", () =>
    withEmulated(async (device) => {
      const rows = device.allocate(SIZE * 4, "rows");
      const next = device.allocate(SIZE * 4, "next to it");
      const refused = (dtype: DType, data: TensorData) => {
        const source: Tensor = { dtype, shape: [1, SIZE], data };
        const layout = device.rowLayout(SIZE, "float32");
        assert.throws(
          () => device.writeRows(rows, layout, source),
          (error) =>
            error instanceof ShapeError &&
            /shape \[1, 64\] has 64 elements, but its data now has \d+\. Leave/.test(error.message),
        );
      };
      refused("float32", new Float32Array(16 * SIZE).fill(9));
      refused("float32", new Float32Array(SIZE - 1).fill(9));
      refused("bfloat16", new Uint16Array(2 * SIZE).fill(9));
      refused("bfloat16", new Uint16Array(SIZE / 2).fill(9));
      const found = new Float32Array(SIZE);
      for (const buffer of [rows, next]) {
        await device.read(buffer, found);
        assert.ok(found.every((value) => value === 0));
        buffer[Symbol.dispose]();
      }
    }));

  it("that the driver does not take leave no launch behind", () =>
    withEmulated(async (device, driver) => {
      const layout = device.rowLayout(SIZE, "bfloat16");
      const rows = device.allocate(SIZE * 2, "rows");
      const source = { dtype: "float32", shape: [1, SIZE], data: new Float32Array(SIZE) } as const;
      device.writeRows(rows, layout, source);
      await device.synchronize();
      const { pinned } = driver.live;
      for (let i = 0; i < 2000; i++) {
        driver.fail("copyToDevice");
        assert.throws(() => device.writeRows(rows, layout, source), DeviceFailedError);
      }
      // Launches are written down in pinned memory.
      assert.equal(driver.live["pinned"], pinned);
      rows[Symbol.dispose]();
    }));
});
