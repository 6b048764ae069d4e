/**
 * Compute budgets on the GPU: from units per group to the multiprocessors that a
 * launch may fill. A unit is a streaming multiprocessor.
 *
 * - `shared`: the grid of a persistent kernel is cut to its stream's share of the
 *   group's units. All multiprocessors stay open to all, so budgets can change between
 *   launches of one graph.
 * - `partitioned`: a group's streams live in a partition of their own, which the
 *   hardware keeps to itself. A group without a budget has no partition and may run
 *   anywhere.
 *
 * Values, made once and never changed: a submission keeps those it was submitted with.
 */

import type { ComputeBudgets } from "../device.ts";
import type { Partition } from "./driver/driver.ts";
import type { PartitionSet } from "./partitions.ts";

export class CudaBudgets {
  /** The partitions that this division lives in; undefined where it is `shared`. */
  readonly partitions: PartitionSet | undefined;
  /** Bytes of L2 set aside for lines that persist. */
  readonly persistingBytes: number;
  readonly #multiprocessors: number;
  /** By group; 0: no budget. */
  readonly #units: readonly number[];
  /** By group, in bytes of L2. */
  readonly #cache: readonly number[];
  readonly #partitionOf = new Map<number, Partition>();

  /**
   * @param multiprocessors how many the device has
   * @param partitions one for each group with a budget, in order
   */
  constructor(
    multiprocessors: number,
    { units, cacheBytes = [] }: Pick<ComputeBudgets, "units" | "cacheBytes">,
    partitions?: PartitionSet,
  ) {
    this.#multiprocessors = multiprocessors;
    this.#units = [...units];
    this.#cache = [...cacheBytes];
    this.persistingBytes = Math.floor(cacheBytes.reduce((sum, bytes) => sum + bytes, 0));
    this.partitions = partitions;
    if (partitions === undefined) return;
    let next = 0;
    for (const [group, count] of units.entries()) {
      const partition = count > 0 ? partitions.partitions[next++] : undefined;
      if (partition !== undefined) this.#partitionOf.set(group, partition);
    }
  }

  partitionOf(group: number): Partition | undefined {
    return this.#partitionOf.get(group);
  }

  /** Bytes of L2 set aside for a group's weights; 0 where none are. */
  cacheOf(group: number): number {
    return this.#cache[group] ?? 0;
  }

  /** Multiprocessors for one of `streams` streams that share a group's budget: at least 1. */
  shareOf(group: number, streams: number): number {
    const units = this.partitionOf(group)?.multiprocessors ?? this.#units[group] ?? 0;
    if (units === 0) return this.#multiprocessors;
    return Math.max(1, Math.floor(units / Math.max(1, streams)));
  }

  /** Whether these ask for what it is, whatever object they are in. */
  meets({ realisation, units, cacheBytes = [] }: ComputeBudgets): boolean {
    const partitioned = realisation === "partitioned" && units.some((count) => count > 0);
    return (
      partitioned === (this.partitions !== undefined) &&
      sameNumbers(units, this.#units) &&
      sameNumbers(cacheBytes, this.#cache)
    );
  }
}

function sameNumbers(some: readonly number[], others: readonly number[]): boolean {
  return some.length === others.length && some.every((value, i) => value === others[i]);
}
