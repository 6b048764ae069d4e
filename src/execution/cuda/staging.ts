/**
 * Page-locked memory for what passes between the host and the device: a ring for
 * small writes, which then cost the host a copy and one call, and a few large slots
 * for reads and weights, lent out one user at a time.
 */

import type { CachingAllocator, DeviceBlock } from "./driver/allocator.ts";
import type { Driver } from "./driver/driver.ts";
import type { EventPool } from "./driver/events.ts";
import { PinnedMemory, type PinnedPiece } from "./driver/pinned.ts";
import { STAGING_BYTES } from "./projection.ts";

/** A batch of hidden states of a decode step fits. */
export const RING_PIECE_BYTES = 16 * 1024;
/** In each half of the ring. A step writes a handful of times. */
const HALF_PIECES = 32;

/** One is filled by the host while the GPU takes the other. */
const STAGING_SLOTS = 2;

/** Half of the ring: written through, then left alone until the GPU has read all of it. */
interface Half {
  readonly pieces: readonly PinnedPiece[];
  /** Recorded behind the last copy out of it; undefined while the GPU has nothing to read there. */
  fence: bigint | undefined;
}

export class WriteRing {
  readonly #driver: Driver;
  readonly #events: EventPool;
  readonly #stream: bigint;
  readonly #memory: PinnedMemory;
  /** The half that is written to, and the one that comes next. */
  #current: Half;
  #other: Half;
  #next = 0;

  /** @param stream that the copies go to */
  constructor(driver: Driver, events: EventPool, stream: bigint) {
    this.#driver = driver;
    this.#events = events;
    this.#stream = stream;
    this.#memory = new PinnedMemory(driver, 2 * HALF_PIECES * RING_PIECE_BYTES, "small writes");
    this.#current = this.#half();
    this.#other = this.#half();
  }

  /**
   * Copies a few bytes to the device. They may change right afterwards.
   *
   * @param source at most RING_PIECE_BYTES
   * @returns false, with nothing done, if the GPU is still to read all of the ring
   */
  write(target: bigint, source: Uint8Array): boolean {
    if (this.#next === HALF_PIECES && !this.#turn()) return false;
    const piece = this.#current.pieces[this.#next] as PinnedPiece;
    piece.bytes.set(source);
    this.#driver.copyToDevice(target, piece.address, source.byteLength, this.#stream);
    this.#next += 1;
    return true;
  }

  close(): void {
    this.#memory.close();
  }

  /** Goes on with the other half, if the GPU has read it. */
  #turn(): boolean {
    const { fence } = this.#other;
    if (fence !== undefined) {
      if (!this.#driver.eventDone(fence)) return false;
      this.#events.give(fence);
      this.#other.fence = undefined;
    }
    const full = this.#current;
    full.fence = this.#events.take();
    this.#driver.recordEvent(full.fence, this.#stream);
    this.#current = this.#other;
    this.#other = full;
    this.#next = 0;
    return true;
  }

  #half(): Half {
    const pieces = Array.from({ length: HALF_PIECES }, () => this.#memory.take(RING_PIECE_BYTES));
    return { pieces, fence: undefined };
  }
}

/** A slot: as many bytes of page-locked memory as of device memory. */
export interface StagingSlot {
  readonly host: PinnedPiece;
  readonly device: DeviceBlock;
}

/** Lends slots of STAGING_BYTES, each to one user at a time. */
export class StagingSlots {
  readonly #driver: Driver;
  readonly #allocator: CachingAllocator;
  readonly #free: StagingSlot[] = [];
  readonly #memory: PinnedMemory[] = [];
  readonly #waiters: ((slot: StagingSlot) => void)[] = [];

  constructor(driver: Driver, allocator: CachingAllocator) {
    this.#driver = driver;
    this.#allocator = allocator;
  }

  /** Runs `work` with a slot, which it must not touch once its promise is settled. */
  async with<T>(work: (slot: StagingSlot) => Promise<T>): Promise<T> {
    // Without a turn of the event loop where there is one: what is asked for now is done now.
    const taken = this.#take();
    const slot = taken instanceof Promise ? await taken : taken;
    try {
      return await work(slot);
    } finally {
      const next = this.#waiters.shift();
      if (next === undefined) this.#free.push(slot);
      else next(slot);
    }
  }

  /** The device memory goes with its allocator. */
  close(): void {
    for (const memory of this.#memory) memory.close();
  }

  /** Slots are made when first needed and stay. */
  #take(): StagingSlot | Promise<StagingSlot> {
    const slot = this.#free.pop();
    if (slot !== undefined) return slot;
    if (this.#memory.length === STAGING_SLOTS) {
      return new Promise((resolve) => this.#waiters.push(resolve));
    }
    const device = this.#allocator.allocate(STAGING_BYTES, "staging");
    try {
      const memory = new PinnedMemory(this.#driver, STAGING_BYTES, "staging");
      this.#memory.push(memory);
      return { device, host: memory.take(STAGING_BYTES) };
    } catch (error) {
      device.close();
      throw error;
    }
  }
}
