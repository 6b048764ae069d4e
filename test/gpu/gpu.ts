/**
 * The GPU of the tests in this folder: opened once for a file, closed at its end.
 * Where there is none the tests are skipped with the reason; NEXUS_REQUIRE_GPU=1 makes
 * that a failure, for machines that are known to have one.
 */

import assert from "node:assert/strict";
import { after, type TestContext, test } from "node:test";
import { DeviceUnavailableError } from "../../src/errors.ts";
import type { Device } from "../../src/execution/device.ts";
import { openDevice } from "../../src/execution/open.ts";

/** More than what goes through small page-locked pieces. */
const LARGE_READ = 4 << 20;

/** A CUDA device of its own; whoever opens it closes it. */
export function openGpu(): Promise<Device> {
  return openDevice({ kind: "cuda" });
}

/**
 * Has the device make what it makes at first use and keeps: memory through which large reads go,
 * several at a time.
 */
async function warmUp(device: Device): Promise<Device> {
  const buffers = [0, 1, 2].map((i) => device.allocate(LARGE_READ, `warm-up ${i}`));
  await Promise.all(buffers.map((buffer) => device.read(buffer, new Uint8Array(LARGE_READ))));
  for (const buffer of buffers) buffer[Symbol.dispose]();
  return device;
}

const opened = await openGpu()
  .then(warmUp)
  .catch((error: unknown) => {
    const isRequired = process.env["NEXUS_REQUIRE_GPU"] === "1";
    if (isRequired || !(error instanceof DeviceUnavailableError)) throw error;
    // What users may do instead is nothing to these tests.
    return error.message.replace(/^There is no CUDA device/, "no CUDA").replace(/\. Use .*$/, "");
  });
after(() => (typeof opened === "string" ? undefined : opened.close()));

/** A test that needs the GPU. It gets the file's device, and must leave on it what it found there. */
export function gpuTest(
  name: string,
  body: (device: Device, t: TestContext) => Promise<void>,
): void {
  test(name, { skip: typeof opened === "string" && opened }, async (t) => {
    if (typeof opened === "string") return;
    const { usedBytes, allocations } = opened.memory();
    await body(opened, t);
    const left = opened.memory();
    assert.deepEqual(
      { usedBytes: left.usedBytes, allocations: left.allocations },
      { usedBytes, allocations },
      "device memory is left behind",
    );
  });
}
