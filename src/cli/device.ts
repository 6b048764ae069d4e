/** The device a command runs on: from flags to an open device, and to what reports say about it. */

import type { Device, DeviceProperties } from "../execution/device.ts";
import { openDevice } from "../execution/open.ts";

export interface DeviceFlags {
  readonly device: "auto" | "cpu" | "cuda";
  /** Worker threads of the CPU device. */
  readonly threads?: number;
}

export type DeviceSummary = Pick<
  DeviceProperties,
  "kind" | "name" | "computeUnits" | "memoryBytes" | "cacheBytes" | "features"
>;

/** @throws DeviceUnavailableError saying why, and what would change that */
export function openFromFlags({ device, threads }: DeviceFlags): Promise<Device> {
  return openDevice({ kind: device, ...(threads !== undefined && { threads }) });
}

export function summaryOf({ properties }: Device): DeviceSummary {
  const { kind, name, computeUnits, memoryBytes, cacheBytes, features } = properties;
  return { kind, name, computeUnits, memoryBytes, cacheBytes, features };
}
