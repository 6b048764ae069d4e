/** Which device the flags ask for, and flags that contradict each other. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { openFromFlags, summaryOf } from "../../src/cli/device.ts";
import { InvalidArgumentError } from "../../src/errors.ts";

test("a number of threads asks for the CPU, whatever else there is", async () => {
  for (const device of ["auto", "cpu"] as const) {
    await using opened = await openFromFlags({ device, threads: 1 });
    const { kind, computeUnits, driver } = await summaryOf(opened);
    assert.deepEqual(
      { kind, computeUnits, driver },
      { kind: "cpu", computeUnits: 1, driver: undefined },
    );
  }
});

test("flags of one kind of device with the other are refused by name", async () => {
  const refused = [
    [{ device: "cpu", gpu: 0 }, /--gpu/],
    [{ device: "cpu", float32: "tf32" }, /--float32/],
    [{ device: "cuda", threads: 2 }, /--threads/],
    [{ device: "auto", threads: 2, gpu: 1 }, /--threads.*--gpu/],
  ] as const;
  for (const [flags, message] of refused) {
    await assert.rejects(openFromFlags(flags), (error) => {
      assert.ok(error instanceof InvalidArgumentError);
      assert.match(error.message, message);
      return true;
    });
  }
});
