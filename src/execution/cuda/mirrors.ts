/**
 * Small pieces of page-locked memory that come and go with mirrored buffers. Locking
 * pages is slow and rounds up to them, so pieces are cut from a few larger blocks and
 * used again.
 */

import type { Driver } from "./driver/driver.ts";
import { PIECE_ALIGNMENT, PinnedMemory, type PinnedPiece } from "./driver/pinned.ts";
import type { GpuBuffer } from "./memory.ts";
import { type Recording, worksOf } from "./recorder.ts";
import type { Work } from "./work.ts";

/** Mirrors hold a few hundred bytes each. */
const BLOCK_BYTES = 64 * 1024;

export class MirrorPool {
  readonly #driver: Driver;
  readonly #blocks: PinnedMemory[] = [];
  /** Pieces given back, by size. */
  readonly #free = new Map<number, PinnedPiece[]>();

  constructor(driver: Driver) {
    this.#driver = driver;
  }

  /** A zeroed piece of at least so many bytes. @throws OutOfDeviceMemoryError if the system cannot lock more memory, CudaError */
  take(byteLength: number): PinnedPiece {
    const size = Math.max(1, Math.ceil(byteLength / PIECE_ALIGNMENT)) * PIECE_ALIGNMENT;
    const old = this.#free.get(size)?.pop();
    if (old !== undefined) {
      old.bytes.fill(0);
      return old;
    }
    let block = this.#blocks.at(-1);
    if (block === undefined || block.usedBytes + size > block.byteLength) {
      block = new PinnedMemory(this.#driver, Math.max(size, BLOCK_BYTES), "mirrors");
      this.#blocks.push(block);
    }
    return block.take(size);
  }

  give(piece: PinnedPiece): void {
    const size = piece.bytes.byteLength;
    const free = this.#free.get(size);
    if (free === undefined) this.#free.set(size, [piece]);
    else free.push(piece);
  }

  close(): void {
    this.#free.clear();
    for (const block of this.#blocks.splice(0)) block.close();
  }
}

/** The buffers whose mirrors a recording brings up to date. @param mirrored buffers by the address of their mirror */
export function mirroredBy(
  recording: Recording,
  mirrored: ReadonlyMap<bigint, GpuBuffer>,
): readonly GpuBuffer[] {
  const targets = worksOf(recording).flatMap(targetsOf);
  const found = targets.map((target) => mirrored.get(target));
  return [...new Set(found.filter((buffer) => buffer !== undefined))];
}

function targetsOf(work: Work): readonly bigint[] {
  if (work.kind === "mirror") return [work.target];
  return (work.kind === "kernel" && work.mirrors) || [];
}
