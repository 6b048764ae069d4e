/** Which device the flags ask for, and flags that contradict each other. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { openFromFlags, summaryOf } from "../../src/cli/device.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { openDevice } from "../../src/execution/open.ts";

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

test("float32 asks for no kind of device, as in openDevice", async () => {
  await using byFlag = await openFromFlags({ device: "auto", float32: "tf32" });
  await using byOption = await openDevice({ float32: "tf32" });
  assert.equal(byFlag.properties.kind, byOption.properties.kind);
});

test("packed weights are refused where the device that there is has none", async () => {
  await using found = await openFromFlags({ device: "auto" });
  const asked = openFromFlags({ device: "auto", packWeights: true });
  if (found.properties.packsWeights.available) return (await asked).close();
  await assert.rejects(asked, {
    name: "DeviceUnavailableError",
    message: /^Weights cannot be packed here: .* Drop --pack-weights\.$/,
  });
});

test("flags of one kind of device with the other are refused by name", async () => {
  const refused = [
    [{ device: "cpu", gpu: 0 }, /Drop --gpu, or drop --device cpu\.$/],
    [{ device: "cpu", float32: "tf32" }, /Drop --float32, or drop --device cpu\.$/],
    [{ device: "cpu", packWeights: true }, /Drop --pack-weights, or drop --device cpu\.$/],
    [{ device: "auto", threads: 2, packWeights: true }, /--threads.*--pack-weights/],
    [{ device: "cuda", threads: 2 }, /Drop --threads, or drop --device cuda\.$/],
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
