/**
 * Device memory of the CPU: one shared WebAssembly memory, handed out in blocks.
 *
 * The memory grows when it must and never shrinks, because WebAssembly gives no
 * pages back; freed blocks are used again. Blocks come from an address-ordered
 * list of free ranges, first fit, neighbours joined on release. First fit keeps
 * the memory compact, and the list stays short: a layer makes tens of
 * allocations and frees them together.
 *
 * This is bookkeeping on the main thread only. Workers get addresses, and nothing
 * here knows what lies at them.
 */

import { OutOfDeviceMemoryError } from "../../errors.ts";
import type { MemoryUsage } from "../device.ts";
import { checkSize } from "../memory-checks.ts";
import { MAXIMUM_PAGES } from "./kernels.ts";

/** A range of device memory, in bytes. */
export interface Block {
  readonly address: number;
  readonly byteLength: number;
}

const PAGE = 65536;

/** A cache line: no two blocks share one, and every vector load in the kernels is aligned. */
const ALIGNMENT = 64;

/** The first page belongs to the kernels' static data; it also keeps address 0 free to mean "absent". */
const RESERVED = PAGE;

/**
 * Least growth: 16 MiB. Growing costs an interrupt of every worker, and pages that
 * were never touched cost nothing.
 */
const GROWTH_PAGES = 256;

const REMEDY =
  "Keep the weights in bfloat16 or float16, use a smaller batch, or close what is no longer needed.";

export class DeviceMemory {
  readonly wasm: WebAssembly.Memory;
  /** Free ranges by ascending address; the last one reaches to the limit. */
  readonly #free: { address: number; end: number }[];
  /** Everything from here on has never been handed out and so is still zero. */
  #dirtyEnd = RESERVED;
  #usedBytes = 0;
  #peakBytes = 0;
  #allocations = 0;

  constructor() {
    this.wasm = new WebAssembly.Memory({
      initial: RESERVED / PAGE,
      maximum: MAXIMUM_PAGES,
      shared: true,
    });
    this.#free = [{ address: RESERVED, end: this.limitBytes }];
  }

  /** 4 GiB, the most that 32-bit addresses reach. */
  get limitBytes(): number {
    return MAXIMUM_PAGES * PAGE;
  }

  /**
   * Takes a block of at least `byteLength` bytes, aligned to 64.
   *
   * @param zeroed false where the caller overwrites all of it anyway
   * @throws OutOfDeviceMemoryError if no free range is that long, or the system refuses the pages
   */
  allocate(byteLength: number, label: string, zeroed = true): Block {
    checkSize(byteLength, label);
    // An empty block still gets an address of its own.
    const size = Math.max(1, Math.ceil(byteLength / ALIGNMENT)) * ALIGNMENT;
    const index = this.#free.findIndex((range) => range.end - range.address >= size);
    const range = this.#free[index];
    if (range === undefined) throw this.#outOfMemory(byteLength, label);
    const { address } = range;
    this.#commit(address + size, byteLength, label);
    range.address += size;
    if (range.address === range.end) this.#free.splice(index, 1);

    const dirty = Math.min(address + size, this.#dirtyEnd) - address;
    if (zeroed && dirty > 0) new Uint8Array(this.wasm.buffer, address, dirty).fill(0);
    this.#dirtyEnd = Math.max(this.#dirtyEnd, address + size);

    this.#usedBytes += size;
    this.#peakBytes = Math.max(this.#peakBytes, this.#usedBytes);
    this.#allocations += 1;
    return { address, byteLength: size };
  }

  /** Gives a block back. Its owner must not do so twice. */
  release(block: Block): void {
    const { address } = block;
    const end = address + block.byteLength;
    // The first free range after the block.
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#free[middle]?.address ?? 0) < address) low = middle + 1;
      else high = middle;
    }
    const before = this.#free[low - 1];
    const after = this.#free[low];
    if (before?.end === address) {
      before.end = end;
      if (after?.address === end) {
        before.end = after.end;
        this.#free.splice(low, 1);
      }
    } else if (after?.address === end) {
      after.address = address;
    } else {
      this.#free.splice(low, 0, { address, end });
    }
    this.#usedBytes -= block.byteLength;
    this.#allocations -= 1;
  }

  usage(): MemoryUsage {
    return {
      usedBytes: this.#usedBytes,
      peakBytes: this.#peakBytes,
      limitBytes: this.limitBytes,
      allocations: this.#allocations,
    };
  }

  /** Makes sure that the memory reaches to `end`. */
  #commit(end: number, byteLength: number, label: string): void {
    const pages = this.wasm.buffer.byteLength / PAGE;
    const needed = Math.ceil(end / PAGE) - pages;
    if (needed <= 0) return;
    try {
      this.wasm.grow(Math.min(Math.max(needed, GROWTH_PAGES), MAXIMUM_PAGES - pages));
    } catch {
      throw new OutOfDeviceMemoryError(
        label,
        byteLength,
        pages * PAGE - this.#usedBytes - RESERVED,
        `The system refused to grow the device's memory beyond ${pages * PAGE} bytes. ${REMEDY}`,
      );
    }
  }

  #outOfMemory(byteLength: number, label: string): OutOfDeviceMemoryError {
    const longest = this.#free.reduce((most, r) => Math.max(most, r.end - r.address), 0);
    return new OutOfDeviceMemoryError(
      label,
      byteLength,
      longest,
      `That is the longest free range; ${this.#usedBytes} of ${this.limitBytes} bytes are in use, and a CPU device cannot have more. ${REMEDY}`,
    );
  }
}
