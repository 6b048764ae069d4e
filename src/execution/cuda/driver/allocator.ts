/**
 * Device memory with a memory of its own.
 *
 * The driver's allocation and above all its free wait for the GPU. So blocks that are
 * given back are kept, and handed out again to requests of about their size. Sizes
 * are rounded so that requests which differ little can use the same block: blocks are
 * not cut up, which leaves nothing to join again, and a bound on the waste keeps a
 * small request from sitting on a large block. When the driver has no more, the kept
 * blocks go back to it first.
 *
 * It knows nothing of streams. Whoever frees a block says that no work enqueued later
 * than the next user's can still touch it. Contents are as the last user left them.
 */

import { DisposedError, OutOfDeviceMemoryError } from "../../../errors.ts";
import { checkSize } from "../../memory-checks.ts";
import type { Driver } from "./driver.ts";
import { isOutOfMemory, release } from "./errors.ts";

type MemoryDriver = Pick<Driver, "allocate" | "free" | "memoryInfo">;

const KIB = 1024;
const MIB = 1024 * KIB;
/** The driver hands out small blocks in these steps, and kernels want no finer alignment. */
const SMALL_STEP = 512;
/** From here on sizes are multiples of the GPU's pages. */
const LARGE = MIB;
const LARGE_STEP = 2 * MIB;
/** Share of a block that may go unused when it is handed out again. */
const MOST_WASTE = 1 / 4;

export interface MemoryStatistics {
  /** Bytes of blocks in use, as rounded. */
  readonly usedBytes: number;
  /** Most bytes that were ever in use at once. */
  readonly peakBytes: number;
  /** Bytes held from the driver: used and cached. */
  readonly reservedBytes: number;
  /** Bytes kept for reuse. */
  readonly cachedBytes: number;
  /** Blocks in use. */
  readonly allocations: number;
}

/** A block in use. */
export interface DeviceBlock extends Disposable {
  readonly address: bigint;
  /** Bytes that are the user's: those asked for, or a few more. */
  readonly byteLength: number;
  readonly label: string;
  readonly closed: boolean;
  /** Gives it back for reuse; a second time does nothing. */
  close(): void;
}

/** A block as the allocator holds it, in use or not. */
interface Chunk {
  readonly address: bigint;
  readonly bytes: number;
}

export class CachingAllocator {
  readonly #driver: MemoryDriver;
  /** By size, smallest first. */
  readonly #cache: Chunk[] = [];
  readonly #used = new Set<Chunk>();
  #usedBytes = 0;
  #peakBytes = 0;
  #cachedBytes = 0;
  #closed = false;

  constructor(driver: MemoryDriver) {
    this.#driver = driver;
  }

  get statistics(): MemoryStatistics {
    return {
      usedBytes: this.#usedBytes,
      peakBytes: this.#peakBytes,
      reservedBytes: this.#usedBytes + this.#cachedBytes,
      cachedBytes: this.#cachedBytes,
      allocations: this.#used.size,
    };
  }

  /**
   * A block of at least `bytes`, at a multiple of 256. Contents are not defined.
   *
   * @param label for messages: what it is for
   * @throws OutOfDeviceMemoryError, InvalidArgumentError, DisposedError, CudaError
   */
  allocate(bytes: number, label: string): DeviceBlock {
    if (this.#closed) throw new DisposedError("The device's memory");
    checkSize(bytes, label);
    const size = roundedSize(bytes);
    const chunk = this.#fromCache(size) ?? {
      address: this.#fromDriver(size, bytes, label),
      bytes: size,
    };
    this.#used.add(chunk);
    this.#usedBytes += chunk.bytes;
    this.#peakBytes = Math.max(this.#peakBytes, this.#usedBytes);
    return new Block(chunk, label, () => this.#giveBack(chunk));
  }

  /** Returns all kept blocks to the driver. */
  trim(): void {
    for (let chunk = this.#cache.pop(); chunk !== undefined; chunk = this.#cache.pop()) {
      const { address, bytes } = chunk;
      this.#cachedBytes -= bytes;
      release(() => this.#driver.free(address));
    }
  }

  /** Frees everything, blocks in use too; closing those afterwards does nothing. */
  close(): void {
    this.#closed = true;
    for (const chunk of this.#used) this.#giveBack(chunk);
    this.trim();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #giveBack(chunk: Chunk): void {
    if (!this.#used.delete(chunk)) return;
    this.#usedBytes -= chunk.bytes;
    this.#cachedBytes += chunk.bytes;
    this.#cache.splice(this.#firstOfAtLeast(chunk.bytes), 0, chunk);
  }

  /** The smallest kept block that is large enough, unless it is much too large. */
  #fromCache(size: number): Chunk | undefined {
    const at = this.#firstOfAtLeast(size);
    const chunk = this.#cache[at];
    if (chunk === undefined || chunk.bytes - size > chunk.bytes * MOST_WASTE) return undefined;
    this.#cache.splice(at, 1);
    this.#cachedBytes -= chunk.bytes;
    return chunk;
  }

  #firstOfAtLeast(size: number): number {
    let low = 0;
    let high = this.#cache.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#cache[middle]?.bytes ?? 0) < size) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** @param asked the bytes of `size` that were asked for */
  #fromDriver(size: number, asked: number, label: string): bigint {
    try {
      return this.#driver.allocate(size);
    } catch (error) {
      if (!isOutOfMemory(error)) throw error;
    }
    const { cachedBytes } = this.statistics;
    this.trim();
    try {
      return this.#driver.allocate(size);
    } catch (error) {
      if (!isOutOfMemory(error)) throw error;
      const { freeBytes, totalBytes } = this.#driver.memoryInfo();
      throw new OutOfDeviceMemoryError(
        label,
        asked,
        freeBytes,
        `Of the GPU's ${totalBytes} bytes this device uses ${this.#usedBytes}; the ${cachedBytes} that it kept ` +
          "for reuse were given back first. Close buffers or layers, use fewer tokens or experts per device, " +
          "or end other processes on the GPU (nvidia-smi lists them).",
      );
    }
  }
}

/** A multiple of 512 bytes below 1 MiB, of 2 MiB from there on; never nothing. */
function roundedSize(bytes: number): number {
  const step = bytes < LARGE ? SMALL_STEP : LARGE_STEP;
  return Math.max(1, Math.ceil(bytes / step)) * step;
}

class Block implements DeviceBlock {
  readonly address: bigint;
  readonly byteLength: number;
  readonly label: string;
  #giveBack: (() => void) | undefined;

  constructor(chunk: Chunk, label: string, giveBack: () => void) {
    this.address = chunk.address;
    this.byteLength = chunk.bytes;
    this.label = label;
    this.#giveBack = giveBack;
  }

  get closed(): boolean {
    return this.#giveBack === undefined;
  }

  close(): void {
    const giveBack = this.#giveBack;
    this.#giveBack = undefined;
    giveBack?.();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
