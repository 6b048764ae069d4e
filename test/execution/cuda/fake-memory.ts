/** The fake driver's memory: of the device and page-locked, in one space of addresses with gaps between. */

interface Region {
  readonly bytes: ArrayBuffer;
  readonly pinned: boolean;
}

const FIRST_ADDRESS = 0x10_0000_0000n;
const PAGE = 4096;

export class FakeMemory {
  readonly #regions = new Map<bigint, Region>();
  #next = FIRST_ADDRESS;

  count(pinned: boolean): number {
    return [...this.#regions.values()].filter((region) => region.pinned === pinned).length;
  }

  /** Bytes of device memory in use. */
  get usedBytes(): number {
    let sum = 0;
    for (const { bytes, pinned } of this.#regions.values()) if (!pinned) sum += bytes.byteLength;
    return sum;
  }

  allocate(
    length: number,
    pinned: boolean,
  ): { readonly address: bigint; readonly bytes: ArrayBuffer } {
    const address = this.#next;
    // A page between regions, so that running over an end is noticed.
    this.#next += BigInt((Math.ceil(length / PAGE) + 1) * PAGE);
    const bytes = new ArrayBuffer(length);
    this.#regions.set(address, { bytes, pinned });
    return { address, bytes };
  }

  free(address: bigint): void {
    if (!this.#regions.delete(address)) throw new Error("Memory is freed that is not there.");
  }

  bytesAt(address: bigint, length: number): Uint8Array<ArrayBuffer> {
    for (const [first, { bytes }] of this.#regions) {
      if (address < first || address + BigInt(length) > first + BigInt(bytes.byteLength)) continue;
      return new Uint8Array(bytes, Number(address - first), length);
    }
    throw new Error(`There is no memory at ${address.toString(16)} (${length} bytes).`);
  }

  /** At most so many bytes: those there are. */
  upTo(address: bigint, most: number): Uint8Array<ArrayBuffer> {
    for (let length = most; length > 8; length -= 8) {
      try {
        return this.bytesAt(address, length);
      } catch {
        // The memory ends before.
      }
    }
    return this.bytesAt(address, 8);
  }

  copy(target: bigint, source: bigint, length: number): void {
    this.bytesAt(target, length).set(this.bytesAt(source, length));
  }
}
