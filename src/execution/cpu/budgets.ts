/**
 * Compute budgets on the CPU: from units per group to the shares and worker sets
 * that the scheduler reads.
 *
 * A unit is a worker thread, and units are time-sliced in sixteenths.
 *
 * - `shared`: every worker serves every group, and a group's share is a weight.
 * - `partitioned`: the whole units of a group are workers of its own. What is left
 *   of the groups' budgets, each less than a unit, goes to a pool of workers just
 *   large enough, which its groups share by weight. As the budgets add up to no
 *   more than the workers there are, the pool always fits. A worker beyond the
 *   budgets serves only groups without one.
 *
 * A group without a budget is served all the same, by any worker that finds
 * nothing else to do: nothing that is enqueued can hang.
 */

import { InvalidArgumentError } from "../../errors.ts";
import { requireObject } from "../checks.ts";
import { type ComputeBudgets, type DeviceProperties, MAX_GROUPS } from "../device.ts";

/** Shares of one worker: the granularity of a budget is one of them. */
export const SHARES_PER_UNIT = 16;

/** Budgets as the scheduler wants them. */
export interface WorkerShares {
  readonly bound: boolean;
  /** By group, in sixteenths of a worker. */
  readonly shares: Int32Array;
  /** By worker, a bit set of groups. */
  readonly serves: Int32Array;
}

const ALL_GROUPS = 2 ** MAX_GROUPS - 1;

/** Before any budget is set: every group the same share of all workers. */
export function equalShares(workers: number): WorkerShares {
  return {
    bound: false,
    shares: new Int32Array(MAX_GROUPS).fill(SHARES_PER_UNIT),
    serves: new Int32Array(workers).fill(ALL_GROUPS),
  };
}

/** @throws InvalidArgumentError if the device cannot give these budgets, saying why */
export function workerShares(budgets: ComputeBudgets, properties: DeviceProperties): WorkerShares {
  requireObject(budgets, "budgets", "an object such as { realisation, units }");
  const { realisation, units } = budgets;
  const availability = properties.realisations[realisation];
  if (availability === undefined) {
    throw new InvalidArgumentError(
      `Unknown realisation "${realisation}". Use "shared", "partitioned" or "mig".`,
    );
  }
  if (!availability.available) {
    throw new InvalidArgumentError(
      `This device cannot realise "${realisation}" budgets: ${availability.reason} Use "shared".`,
    );
  }
  checkUnits(units, properties.computeUnits);
  const shares = new Int32Array(MAX_GROUPS);
  for (const [group, count] of units.entries()) shares[group] = count * SHARES_PER_UNIT;
  return realisation === "partitioned"
    ? { bound: true, shares, serves: partition(shares, properties.computeUnits) }
    : { bound: false, shares, serves: equalShares(properties.computeUnits).serves };
}

function checkUnits(units: readonly number[], available: number): void {
  if (!Array.isArray(units) || units.length > MAX_GROUPS) {
    throw new InvalidArgumentError(
      `Compute budgets must be a list of at most ${MAX_GROUPS} groups, got ${Array.isArray(units) ? units.length : typeof units}.`,
    );
  }
  for (const [group, count] of units.entries()) {
    if (!(count >= 0) || !Number.isInteger(count * SHARES_PER_UNIT)) {
      throw new InvalidArgumentError(
        `Group ${group} asks for ${count} compute units. Use 0 or more, in steps of ${1 / SHARES_PER_UNIT}.`,
      );
    }
  }
  const total = units.reduce((sum, count) => sum + count, 0);
  if (total > available) {
    throw new InvalidArgumentError(
      `The groups ask for ${total} compute units together, and the device has ${available}. Lower the budgets.`,
    );
  }
}

/** Which groups each worker serves: first the groups' own workers, in order, then the pool. */
function partition(shares: Int32Array, workers: number): Int32Array {
  const serves = new Int32Array(workers);
  let next = 0;
  let pooled = 0;
  let poolShares = 0;
  let budgeted = 0;
  for (const [group, share] of shares.entries()) {
    if (share > 0) budgeted |= 1 << group;
    const own = Math.floor(share / SHARES_PER_UNIT);
    serves.fill(1 << group, next, next + own);
    next += own;
    const rest = share % SHARES_PER_UNIT;
    if (rest > 0) pooled |= 1 << group;
    poolShares += rest;
  }
  serves.fill(pooled, next, next + Math.ceil(poolShares / SHARES_PER_UNIT));
  return serves.map((groups) => groups | (ALL_GROUPS & ~budgeted));
}
