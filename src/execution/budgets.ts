/**
 * The checks of compute budgets that every device makes, against what its properties
 * say. What budgets become is each device's own affair.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { isAmount, requireObject } from "./checks.ts";
import { type ComputeBudgets, type DeviceProperties, MAX_GROUPS } from "./device.ts";

/** @throws InvalidArgumentError if the device cannot give these budgets, saying why */
export function checkBudgets(budgets: ComputeBudgets, properties: DeviceProperties): void {
  requireObject(budgets, "budgets", "an object such as { realisation, units }");
  const { realisation, units, cacheBytes = [] } = budgets;
  const availability = properties.realisations[realisation];
  if (availability === undefined) {
    throw new InvalidArgumentError(
      `Unknown realisation ${shown(realisation)}. Use "shared", "partitioned" or "mig".`,
    );
  }
  if (!availability.available) {
    throw new InvalidArgumentError(
      `This device cannot realise "${realisation}" budgets: ${availability.reason} Use "shared".`,
    );
  }
  const { computeUnits, computeUnitGranularity: step } = properties;
  if (!Array.isArray(units) || units.length > MAX_GROUPS) {
    throw new InvalidArgumentError(
      `Compute budgets must be a list of at most ${MAX_GROUPS} groups, got ${Array.isArray(units) ? units.length : typeof units}.`,
    );
  }
  for (const [group, count] of units.entries()) {
    if (!isAmount(count) || !Number.isInteger(count / step)) {
      throw new InvalidArgumentError(
        `Group ${group} asks for ${shown(count)} compute units. Use 0 or more, in steps of ${step}.`,
      );
    }
  }
  if (!Array.isArray(cacheBytes)) {
    throw new InvalidArgumentError(
      `cacheBytes is ${shown(cacheBytes)}; it must be a list of bytes by group, or left out.`,
    );
  }
  for (const [group, bytes] of cacheBytes.entries()) {
    if (!isAmount(bytes)) {
      throw new InvalidArgumentError(
        `Group ${group} asks for ${shown(bytes)} bytes of cache. Use 0 or more.`,
      );
    }
  }
  const total = units.reduce((sum, count) => sum + count, 0);
  if (total > computeUnits) {
    throw new InvalidArgumentError(
      `The groups ask for ${total} compute units together, and the device has ${computeUnits}. Lower the budgets.`,
    );
  }
}
