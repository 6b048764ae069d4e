/**
 * The memory that launches are written down in: native, so that its addresses hold
 * still, and page-locked where the driver gives it.
 *
 * A slot is a run of bytes of a chunk. Slots of a size are handed out again once
 * they are freed; chunks stay as long as the arena does. What is in a slot is
 * launch.ts's business.
 */

import type { Kernel } from "../bundle/kernel-set.ts";
import type { Extent } from "../driver/driver.ts";
import { type KernelValues, Launch } from "./launch.ts";

/** Memory that does not move: what `Driver.allocatePinned` gives. */
export interface NativeMemory {
  readonly address: bigint;
  readonly bytes: ArrayBuffer;
}

/** A CUtensorMap asks for 64 bytes; a whole pair of cache lines keeps slots apart as well. */
const ALIGNMENT = 128;

/** About a hundred launches. */
const CHUNK_BYTES = 64 * 1024;

/** A run of native bytes, the caller's until it is disposed of; a second time does nothing. */
export class Slot implements Disposable {
  readonly address: bigint;
  readonly view: DataView;
  readonly #free: (slot: Slot) => void;
  #freed = false;

  constructor(address: bigint, view: DataView, free: (slot: Slot) => void) {
    this.address = address;
    this.view = view;
    this.#free = free;
  }

  [Symbol.dispose](): void {
    if (this.#freed) return;
    this.#freed = true;
    this.#free(this);
  }
}

export class LaunchArena {
  readonly #grow: (bytes: number) => NativeMemory;
  /** Freed slots by size. */
  readonly #free = new Map<number, Slot[]>();
  /** The chunk that new slots are cut from, and where its rest begins. */
  #chunk: NativeMemory | undefined;
  #used = 0;

  /** @param grow gives a chunk of memory, aligned to 128 bytes; whoever gives it takes it back after the arena's last use */
  constructor(grow: (bytes: number) => NativeMemory) {
    this.#grow = grow;
  }

  /**
   * Writes a launch down: configuration, parameters in ABI order, their addresses.
   *
   * @throws InvalidArgumentError if a value is missing, does not fit its type, or is
   *   no multiple of what the kernel was compiled for
   */
  prepare(kernel: Kernel, values: KernelValues, grid: Extent): Launch {
    return Launch.write((bytes) => this.allocate(bytes), kernel, values, grid);
  }

  /** A slot of at least so many bytes, 128-byte aligned; what it holds is left over from its last use. */
  allocate(bytes: number): Slot {
    const size = Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
    const old = this.#free.get(size)?.pop();
    if (old !== undefined) return this.#slot(old.address, old.view);
    if (this.#chunk === undefined || this.#used + size > this.#chunk.bytes.byteLength) {
      this.#chunk = this.#grow(Math.max(size, CHUNK_BYTES));
      this.#used = 0;
    }
    const view = new DataView(this.#chunk.bytes, this.#used, size);
    const address = this.#chunk.address + BigInt(this.#used);
    this.#used += size;
    return this.#slot(address, view);
  }

  #slot(address: bigint, view: DataView): Slot {
    return new Slot(address, view, (slot) => this.#take(slot));
  }

  #take(slot: Slot): void {
    const size = slot.view.byteLength;
    const free = this.#free.get(size);
    if (free === undefined) this.#free.set(size, [slot]);
    else free.push(slot);
  }
}
