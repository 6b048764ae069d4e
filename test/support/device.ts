/** CPU devices for tests, and what must be left of them when a test is over. */

import assert from "node:assert/strict";
import type { Device } from "../../src/execution/device.ts";
import { openDevice } from "../../src/execution/open.ts";

export type { Device };

/** A CPU device with `threads` workers. */
export function openCpu(threads = 2): Promise<Device> {
  return openDevice({ kind: "cpu", threads });
}

/** Runs `body` with a device of its own, closed afterwards whatever happens. */
export async function withCpu<T>(
  threads: number,
  body: (device: Device) => Promise<T>,
): Promise<T> {
  const device = await openCpu(threads);
  try {
    return await body(device);
  } finally {
    await device.close();
  }
}

/** What a device holds, to be found again when a test is over. */
export function holdings(device: Device): { usedBytes: number; allocations: number } {
  const { usedBytes, allocations } = device.memory();
  return { usedBytes, allocations };
}

/** Runs `body`, after which the device must hold what it held before. */
export async function leavesNothing(device: Device, body: () => Promise<void>): Promise<void> {
  const before = holdings(device);
  await body();
  assert.deepEqual(holdings(device), before);
}
