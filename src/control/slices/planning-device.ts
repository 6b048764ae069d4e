/**
 * What planning needs to know of a device, and the machine at hand where no
 * device is given. Budgets are counted in quanta, whole multiples of the
 * device's granularity, so that they add up exactly.
 */

import os from "node:os";
import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import { isAmount, requireObject } from "../../execution/checks.ts";
import type { DeviceProperties } from "../../execution/device.ts";
import { BUDGETED_SLICE_IDS } from "../plan.ts";

/** The part of a device's properties that plans depend on. */
export type PlanningDevice = Pick<
  DeviceProperties,
  | "name"
  | "computeUnits"
  | "computeUnitGranularity"
  | "cacheBytes"
  | "realisations"
  | "migInstances"
  | "enforces"
>;

/**
 * Granularities are multiples of this (2^-20), so that sums of budgets are exact
 * in float64 and can be compared with `===`.
 */
const FINEST_GRANULARITY = 2 ** -20;

/** A sixteenth of a thread: the finest share for which time-slicing still evens out within one step. */
const HOST_GRANULARITY = 1 / 16;

/** This machine's processors, for plans that are made without a device. */
export function thisMachine(): PlanningDevice {
  const computeUnits = os.availableParallelism();
  const without = (what: string) =>
    ({ available: false, reason: `No device was given to plan for, and ${what}.` }) as const;
  return {
    name: `this machine (${computeUnits} threads)`,
    computeUnits,
    computeUnitGranularity: HOST_GRANULARITY,
    cacheBytes: null,
    realisations: {
      shared: { available: true },
      partitioned: without("threads of one pool are not partitioned"),
      mig: without("processors have no MIG"),
    },
    migInstances: [],
    enforces: {
      bandwidth: without("processors do not limit bandwidth"),
      cache: without("processors do not limit cache use"),
    },
  };
}

/** @throws InvalidArgumentError unless a device's properties are all there; a device itself is not its properties */
export function requirePlanningDevice(device: PlanningDevice): void {
  const rule = "the properties of a device (device.properties), or left out for this machine";
  requireObject(device, "options.device", rule);
  const needed: readonly (keyof PlanningDevice)[] = [
    ...(["name", "computeUnits", "computeUnitGranularity", "cacheBytes"] as const),
    ...(["realisations", "migInstances", "enforces"] as const),
  ];
  const missing = needed.filter((field) => device[field] === undefined);
  if (missing.length === 0) return;
  throw new InvalidArgumentError(
    `options.device is ${shown(device)}, without ${missing.join(", ")}; it must be ${rule}.`,
  );
}

/**
 * Number of quanta in a device.
 *
 * @throws InvalidArgumentError for a granularity that does not add up exactly, or
 *   too coarse for every slice to get a quantum
 */
export function quantaOf({ name, computeUnits, computeUnitGranularity }: PlanningDevice): number {
  const granularity = computeUnitGranularity;
  if (
    !isAmount(granularity) ||
    granularity === 0 ||
    !Number.isInteger(granularity / FINEST_GRANULARITY)
  ) {
    throw new InvalidArgumentError(
      `${name} has a compute granularity of ${shown(granularity)}; it must be a positive multiple of 2^-20, such as 1 or 1/16.`,
    );
  }
  const quanta = isAmount(computeUnits) ? Math.floor(computeUnits / granularity) : Number.NaN;
  const least = BUDGETED_SLICE_IDS.length;
  if (!(quanta >= least) || !Number.isSafeInteger(quanta)) {
    throw new InvalidArgumentError(
      `${name} has ${shown(computeUnits)} compute units in steps of ${granularity}; slices ${BUDGETED_SLICE_IDS.join(", ")} need ${least} steps at least. Use a finer granularity.`,
    );
  }
  return quanta;
}
