/** Memory that reads are staged in. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceFailedError } from "../../../src/errors.ts";
import { STAGING_BYTES } from "../../../src/execution/cuda/projection.ts";
import { operand, readValue, withFake } from "./harness.ts";

describe("reads", () => {
  it("stop where a buffer is closed before all of it was read", async () => {
    await withFake(async ({ device }) => {
      const long = device.allocate(2 * STAGING_BYTES + 1, "long");
      const target = new Uint8Array(2 * STAGING_BYTES + 1);
      const refused = assert.rejects(device.read(long, target), {
        name: "DisposedError",
        message: /Buffer "long"/,
      });
      long[Symbol.dispose]();
      await refused;
    });
  });

  it("keep no memory when there is none to stage in", async () => {
    await withFake(async ({ device, driver }) => {
      const buffer = operand(device, 6);
      const { usedBytes } = device.memory();
      driver.fail("allocatePinned");
      await assert.rejects(device.read(buffer, new Uint8Array(4)), DeviceFailedError);
      assert.equal(device.memory().usedBytes, usedBytes);
      assert.equal(await readValue(device, buffer), 6);
    });
  });
});
