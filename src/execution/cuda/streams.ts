/**
 * Native streams, lent to recordings by priority and partition. A recording gets one
 * for each of its streams and gives all of them back when it is issued: recordings run
 * one after the other, so the next may have the same.
 *
 * All of them fork from the launch stream and are joined to it again, which is what
 * keeps everything the device does in order.
 */

import type { Driver, Partition } from "./driver/driver.ts";

interface Shelf {
  readonly streams: bigint[];
  lent: number;
}

export class NativeStreams {
  /** Copies, fills and graphs go here; recordings begin and end here. */
  readonly launch: bigint;
  readonly #driver: Driver;
  readonly #lowest: number;
  readonly #highest: number;
  readonly #shelves = new Map<Partition | undefined, Map<number, Shelf>>();

  constructor(driver: Driver) {
    this.#driver = driver;
    [this.#lowest, this.#highest] = driver.priorityRange();
    this.launch = driver.createStream(this.native(0));
  }

  /**
   * The driver's number for a stream's priority. There the smaller goes first and few
   * are told apart: 0 is its lowest, and priorities beyond the range count as its ends.
   */
  native(priority: number): number {
    return Math.min(Math.max(-priority, this.#highest), this.#lowest);
  }

  /** A stream that nobody has been lent since the last `returnAll`. */
  lend(priority: number, partition: Partition | undefined): bigint {
    let shelves = this.#shelves.get(partition);
    if (shelves === undefined) {
      shelves = new Map();
      this.#shelves.set(partition, shelves);
    }
    const native = this.native(priority);
    let shelf = shelves.get(native);
    if (shelf === undefined) {
      shelf = { streams: [], lent: 0 };
      shelves.set(native, shelf);
    }
    let stream = shelf.streams[shelf.lent];
    if (stream === undefined) {
      stream =
        partition === undefined
          ? this.#driver.createStream(native)
          : this.#driver.createPartitionStream(partition, native);
      shelf.streams.push(stream);
    }
    shelf.lent += 1;
    return stream;
  }

  returnAll(): void {
    for (const shelves of this.#shelves.values()) {
      for (const shelf of shelves.values()) shelf.lent = 0;
    }
  }

  /** Streams of a partition that is about to be destroyed; the caller destroys them. */
  takeOff(partition: Partition | undefined): readonly bigint[] {
    const shelves = this.#shelves.get(partition);
    this.#shelves.delete(partition);
    return shelves === undefined ? [] : [...shelves.values()].flatMap(({ streams }) => streams);
  }

  /** Every stream there is, for the device to destroy when it closes. */
  drain(): readonly bigint[] {
    const streams = [...this.#shelves.keys()].flatMap((partition) => this.takeOff(partition));
    return [...streams, this.launch];
  }
}
