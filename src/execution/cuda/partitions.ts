/**
 * Partitions: disjoint sets of multiprocessors, each a green context of the driver's.
 * Making a set takes milliseconds, so sets are kept by the vector of sizes that asked
 * for them. Which group sits in which partition is for budgets.ts to say.
 */

import type { Driver, Partition } from "./driver/driver.ts";

/**
 * Sets that nobody uses and that are kept all the same. A controller moves between a
 * handful of divisions; each one kept costs the driver some megabytes.
 */
const IDLE_SETS = 8;

/** The partitions of one vector of sizes. */
export class PartitionSet {
  readonly partitions: readonly Partition[];
  /** The budgets in force and the graphs that were captured on it. */
  users = 0;

  constructor(partitions: readonly Partition[]) {
    this.partitions = partitions;
  }
}

export class PartitionPool {
  readonly #driver: Driver;
  readonly #ordinal: number;
  /** Destroys a set, once nothing in flight uses it. */
  readonly #retire: (set: PartitionSet) => void;
  /** Least recently acquired first. */
  readonly #sets = new Map<string, PartitionSet>();

  constructor(driver: Driver, ordinal: number, retire: (set: PartitionSet) => void) {
    this.#driver = driver;
    this.#ordinal = ordinal;
    this.#retire = retire;
  }

  /**
   * A set with partitions of at least these sizes or nearly so, in order; give it back with `release`.
   *
   * @throws InvalidArgumentError if the device cannot be divided like this
   * @throws DeviceUnavailableError, CudaError if the driver has no partitions, or refuses these
   */
  acquire(sizes: readonly number[]): PartitionSet {
    const key = sizes.join();
    const set =
      this.#sets.get(key) ?? new PartitionSet(this.#driver.createPartitions(this.#ordinal, sizes));
    this.#sets.delete(key);
    this.#sets.set(key, set);
    set.users += 1;
    return set;
  }

  release(set: PartitionSet): void {
    set.users -= 1;
    let idle = 0;
    for (const { users } of this.#sets.values()) if (users === 0) idle += 1;
    for (const [key, candidate] of this.#sets) {
      if (idle <= IDLE_SETS) break;
      if (candidate.users > 0) continue;
      this.#sets.delete(key);
      this.#retire(candidate);
      idle -= 1;
    }
  }

  /** Everything, for the device to destroy when it closes. */
  drain(): readonly PartitionSet[] {
    const sets = [...this.#sets.values()];
    this.#sets.clear();
    return sets;
  }
}
