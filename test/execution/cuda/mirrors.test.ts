/** Page-locked memory that mirrored buffers have, and when it does not hold what they do. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceFailedError } from "../../../src/errors.ts";
import { enqueue, OPERAND_BYTES, operand, readValue, withFake } from "./harness.ts";

describe("mirrored buffers", () => {
  it("are read from the device once rows were written or copied there", async () => {
    await withFake(async ({ device }) => {
      const layout = device.rowLayout(64, "float32");
      const counts = device.allocate(64 * 4, "counts", { mirrored: true });
      const first = async () => {
        const values = new Float32Array(64);
        await device.read(counts, values);
        return values[0];
      };
      const rows = (value: number) =>
        ({ dtype: "float32", shape: [1, 64], data: new Float32Array(64).fill(value) }) as const;
      device.writeRows(counts, layout, rows(3));
      assert.equal(await first(), 3);
      const other = device.allocate(64 * 4, "other", { mirrored: true });
      device.writeRows(other, layout, rows(4));
      const fresh = device.allocate(64 * 4, "fresh", { mirrored: true });
      await device.copyRows(fresh, layout, other, "float32", 1);
      const copied = new Float32Array(64);
      await device.read(fresh, copied);
      assert.equal(copied[0], 4);
    });
  });

  it("take no memory where none can be locked, and give it back once", async () => {
    await withFake(async ({ device, driver }) => {
      const allocate = () => device.allocate(OPERAND_BYTES, "counts", { mirrored: true });
      using _large = device.allocate(100_000, "large", { mirrored: true });
      const { usedBytes } = device.memory();
      driver.fail("allocatePinned");
      const tooLarge = () => device.allocate(200_000, "larger", { mirrored: true });
      assert.throws(tooLarge, DeviceFailedError);
      assert.equal(device.memory().usedBytes, usedBytes);

      const twice = allocate();
      twice[Symbol.dispose]();
      twice[Symbol.dispose]();
      const [one, other] = [allocate(), allocate()];
      const stream = device.createStream({ group: 0, priority: 0 });
      for (const [output, value] of [
        [one, 4],
        [other, 6],
      ] as const) {
        const a = operand(device, value);
        enqueue(stream, { a, b: a, output });
      }
      await device.synchronize();
      assert.equal(await readValue(device, one), 5);
      assert.equal(await readValue(device, other), 7);
    });
  });
});
