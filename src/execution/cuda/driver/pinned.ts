/**
 * Page-locked host memory, cut into pieces.
 *
 * The GPU reads and writes it at the address the host uses, copies to and from it are
 * asynchronous, and it does not move: kernel arguments, counts on their way to the
 * host, staging. Locking pages is slow and rounds up to them, so one block serves
 * many uses. Pieces are not given back one by one; the block goes as a whole.
 *
 * The arrays are views of native memory. After `close` they must not be touched:
 * there is nothing behind them any more.
 */

import { freemem } from "node:os";
import { DisposedError, InvalidArgumentError, OutOfDeviceMemoryError } from "../../../errors.ts";
import type { Driver } from "./driver.ts";
import { isOutOfMemory, release } from "./errors.ts";

type PinnedDriver = Pick<Driver, "allocatePinned" | "freePinned">;

/** A cache line, so that what the GPU writes and what the host writes do not meet in one. */
export const PIECE_ALIGNMENT = 64;

export interface PinnedPiece {
  readonly address: bigint;
  /** Its first byte in `buffer`. */
  readonly offset: number;
  readonly buffer: ArrayBuffer;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/**
 * Page-locked memory of the driver's.
 *
 * @param label for messages: what it is for
 * @throws OutOfDeviceMemoryError if the system cannot lock so much, CudaError
 */
export function lockMemory(
  driver: Pick<Driver, "allocatePinned">,
  byteLength: number,
  label: string,
): ReturnType<Driver["allocatePinned"]> {
  try {
    return driver.allocatePinned(byteLength);
  } catch (error) {
    if (!isOutOfMemory(error)) throw error;
    throw new OutOfDeviceMemoryError(
      `${label} in page-locked host memory`,
      byteLength,
      freemem(),
      "That is what the host has free, of which it may let the driver lock less; the GPU's memory is another matter. " +
        "Raise the limit (`ulimit -l`, the container's memory), or end other processes that hold host memory.",
    );
  }
}

export class PinnedMemory {
  readonly label: string;
  readonly byteLength: number;
  readonly #driver: PinnedDriver;
  readonly #address: bigint;
  readonly #buffer: ArrayBuffer;
  #used = 0;
  #closed = false;

  /** @throws OutOfDeviceMemoryError if the system cannot lock so much, CudaError */
  constructor(driver: PinnedDriver, byteLength: number, label: string) {
    this.label = label;
    this.byteLength = byteLength;
    this.#driver = driver;
    const { address, bytes } = lockMemory(driver, byteLength, label);
    this.#address = address;
    this.#buffer = bytes;
    new Uint8Array(bytes).fill(0);
  }

  get closed(): boolean {
    return this.#closed;
  }

  get usedBytes(): number {
    return this.#used;
  }

  /**
   * The next piece, zeroed.
   *
   * @param alignment a power of two, at most a page
   * @throws OutOfDeviceMemoryError if the block has no room for it
   */
  take(byteLength: number, alignment = PIECE_ALIGNMENT): PinnedPiece {
    if (this.#closed) throw new DisposedError(`Pinned memory ${this.label}`);
    if (!Number.isSafeInteger(byteLength) || byteLength < 0) {
      throw new InvalidArgumentError(`A piece of ${byteLength} bytes: give a count of bytes.`);
    }
    const offset = Math.ceil(this.#used / alignment) * alignment;
    if (offset + byteLength > this.byteLength) {
      const left = Math.max(0, this.byteLength - offset);
      throw new OutOfDeviceMemoryError(
        `pinned memory of ${this.label}`,
        byteLength,
        left,
        `The block has ${this.byteLength} bytes: make a larger one.`,
      );
    }
    this.#used = offset + byteLength;
    return {
      address: this.#address + BigInt(offset),
      offset,
      buffer: this.#buffer,
      bytes: new Uint8Array(this.#buffer, offset, byteLength),
      view: new DataView(this.#buffer, offset, byteLength),
    };
  }

  /** Unlocks and frees the block with all its pieces. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    release(() => this.#driver.freePinned(this.#address));
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
