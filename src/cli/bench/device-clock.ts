/**
 * The device's own clock, where it has one: how long graphs take on the device,
 * without the host's part in launching them and noticing that they are done.
 */

import { CudaDevice } from "../../execution/cuda/device.ts";
import type { Device, Graph } from "../../execution/device.ts";

/** Whether `deviceSeconds` can tell anything. */
export function hasDeviceClock(device: Device): boolean {
  return device instanceof CudaDevice;
}

/**
 * Times replays of graphs that take turns.
 *
 * @param repeats replays in all
 * @returns seconds of each, or undefined where the device has no clock
 */
export async function deviceSeconds(
  device: Device,
  graphs: readonly Graph[],
  repeats: number,
): Promise<number[] | undefined> {
  if (!(device instanceof CudaDevice)) return undefined;
  return Array.from(await device.time(graphs, repeats), (microseconds) => microseconds / 1e6);
}
