/** Emulated devices for tests: closed at the end, with nothing left behind and nothing done wrong. */

import assert from "node:assert/strict";
import type { CudaDevice } from "../../../../src/execution/cuda/device.ts";
import type { DeviceFacts } from "../../../../src/execution/cuda/driver/driver.ts";
import { type EmulatedDriver, openEmulated } from "./driver.ts";

export interface EmulatedOptions {
  readonly facts?: Partial<DeviceFacts>;
  readonly float32?: "ieee" | "tf32";
}

/** Runs `body` with a device of its own. */
export async function withEmulated<T>(
  body: (device: CudaDevice, driver: EmulatedDriver) => Promise<T>,
  { facts, float32 }: EmulatedOptions = {},
): Promise<T> {
  const { driver, device } = await openEmulated(facts, float32 && { float32 });
  let result: T;
  try {
    result = await body(device, driver);
  } catch (error) {
    await device.close();
    assert.deepEqual(driver.violations, [], "on the emulated GPU");
    throw error;
  }
  const { allocations } = device.memory();
  await device.close();
  assert.deepEqual(driver.violations, [], "on the emulated GPU");
  assert.deepEqual(driver.live, {}, "left behind");
  // The fault word and what is kept for staging; everything else was given back.
  assert.ok(allocations <= 3, `${allocations} blocks of device memory were not given back`);
  return result;
}
