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
 * A group without a budget has the whole device: all workers serve it, and its share
 * is that of all of them. What is enqueued there, such as routing, is what the budgeted
 * groups wait for or what runs after them.
 */

import { checkBudgets } from "../budgets.ts";
import { type ComputeBudgets, type DeviceProperties, MAX_GROUPS } from "../device.ts";

/** Shares of one worker: the granularity of a budget is one of them. */
export const SHARES_PER_UNIT = 16;

/** Budgets as the scheduler wants them. */
export interface WorkerShares {
  readonly bound: boolean;
  /** By group, in sixteenths of a worker; never 0. */
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
  checkBudgets(budgets, properties);
  const { realisation, units } = budgets;
  const { computeUnits } = properties;
  const budgeted = new Int32Array(MAX_GROUPS);
  for (const [group, count] of units.entries()) budgeted[group] = count * SHARES_PER_UNIT;
  const shares = budgeted.map((share) => share || computeUnits * SHARES_PER_UNIT);
  return realisation === "partitioned"
    ? { bound: true, shares, serves: partition(budgeted, computeUnits) }
    : { bound: false, shares, serves: equalShares(computeUnits).serves };
}

/** Which groups each worker serves: first the groups' own workers, in order, then the pool. */
function partition(budgets: Int32Array, workers: number): Int32Array {
  const serves = new Int32Array(workers);
  let next = 0;
  let pooled = 0;
  let poolShares = 0;
  let budgeted = 0;
  for (const [group, share] of budgets.entries()) {
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
