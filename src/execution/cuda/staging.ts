/**
 * Page-locked memory for what passes between the host and the device: rings for
 * writes, which then cost the host a copy and one call, and a few large slots
 * for reads and weights, lent out one user at a time.
 */

import type { CachingAllocator, DeviceBlock } from "./driver/allocator.ts";
import type { Driver } from "./driver/driver.ts";
import type { EventPool } from "./driver/events.ts";
import { PIECE_ALIGNMENT, PinnedMemory, type PinnedPiece } from "./driver/pinned.ts";
import { STAGING_BYTES } from "./projection.ts";

/** One is filled by the host while the GPU takes the other. */
const STAGING_SLOTS = 2;

/** Half of the ring: written through, then left alone until the GPU has read all of it. */
interface Half {
  readonly piece: PinnedPiece;
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
  /** Bytes of the current half that are written. */
  #used = 0;

  /**
   * @param stream that the copies go to
   * @param halfBytes room of each of its halves
   */
  constructor(driver: Driver, events: EventPool, stream: bigint, halfBytes: number) {
    this.#driver = driver;
    this.#events = events;
    this.#stream = stream;
    this.#memory = new PinnedMemory(driver, 2 * halfBytes, "writes");
    this.#current = { piece: this.#memory.take(halfBytes), fence: undefined };
    this.#other = { piece: this.#memory.take(halfBytes), fence: undefined };
  }

  /**
   * Copies bytes to the device. They may change right afterwards.
   *
   * @param source at most half of the ring
   * @returns false, with nothing done, if the GPU is still to read what lies where they would go
   */
  write(target: bigint, source: Uint8Array): boolean {
    const { byteLength } = source;
    const room = this.#current.piece.bytes.byteLength;
    if (this.#used + byteLength > room && !this.#turn()) return false;
    const { address, bytes } = this.#current.piece;
    bytes.set(source, this.#used);
    this.#driver.copyToDevice(target, address + BigInt(this.#used), byteLength, this.#stream);
    this.#used += Math.ceil(byteLength / PIECE_ALIGNMENT) * PIECE_ALIGNMENT;
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
    this.#used = 0;
    return true;
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
    if (this.#memory.length < STAGING_SLOTS) {
      try {
        return this.#make();
      } catch (error) {
        // One will do: whoever has it gives it back.
        if (this.#memory.length === 0) throw error;
      }
    }
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  #make(): StagingSlot {
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
