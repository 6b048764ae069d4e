/** The caching allocator, over a driver that keeps accounts. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  DisposedError,
  InvalidArgumentError,
  OutOfDeviceMemoryError,
} from "../../../../src/errors.ts";
import {
  CachingAllocator,
  type DeviceBlock,
} from "../../../../src/execution/cuda/driver/allocator.ts";
import { CudaError } from "../../../../src/execution/cuda/driver/errors.ts";
import { between, chance, randomFor } from "../../../support/seed.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

/** Memory of a given size that knows every block. */
class Memory {
  readonly totalBytes: number;
  readonly blocks = new Map<bigint, number>();
  calls = 0;
  broken: CudaError | null = null;
  #next = 0x7f0000000000n;

  constructor(totalBytes: number) {
    this.totalBytes = totalBytes;
  }

  get held(): number {
    return [...this.blocks.values()].reduce((sum, bytes) => sum + bytes, 0);
  }

  memoryInfo(): { freeBytes: number; totalBytes: number } {
    return { freeBytes: this.totalBytes - this.held, totalBytes: this.totalBytes };
  }

  allocate(bytes: number): bigint {
    this.calls++;
    if (this.broken !== null) throw this.broken;
    if (this.held + bytes > this.totalBytes) {
      throw new CudaError("cuMemAlloc_v2", 2, "CUDA_ERROR_OUT_OF_MEMORY");
    }
    const address = this.#next;
    this.#next += BigInt(Math.ceil(bytes / 512) * 512);
    this.blocks.set(address, bytes);
    return address;
  }

  free(address: bigint): void {
    if (this.broken !== null) throw this.broken;
    assert.ok(this.blocks.delete(address), `${address} is freed twice`);
  }
}

describe("CachingAllocator", () => {
  test("rounds sizes: 512 bytes below 1 MiB, 2 MiB from there on", () => {
    const allocator = new CachingAllocator(new Memory(64 * MIB));
    const rounded = (bytes: number): number => allocator.allocate(bytes, "x").byteLength;
    assert.deepEqual([0, 1, 512, 513].map(rounded), [512, 512, 512, 1024]);
    assert.deepEqual([MIB - 1, MIB, 2 * MIB, 2 * MIB + 1].map(rounded), [
      MIB,
      2 * MIB,
      2 * MIB,
      4 * MIB,
    ]);
  });

  test("a block that was given back serves the next request of about its size", () => {
    const memory = new Memory(64 * MIB);
    const allocator = new CachingAllocator(memory);
    const first = allocator.allocate(8 * MIB, "first");
    first.close();
    const second = allocator.allocate(7 * MIB, "second");
    assert.equal(second.address, first.address);
    assert.equal(second.byteLength, 8 * MIB);
    assert.equal(memory.calls, 1);
  });

  test("but not one a quarter of which would go to waste", () => {
    const memory = new Memory(64 * MIB);
    const allocator = new CachingAllocator(memory);
    const large = allocator.allocate(8 * MIB, "large");
    large.close();
    assert.notEqual(allocator.allocate(4 * MIB, "small").address, large.address);
    assert.equal(allocator.allocate(6 * MIB, "just").address, large.address);
  });

  test("takes the smallest that fits, whatever the order they came back in", () => {
    const allocator = new CachingAllocator(new Memory(64 * MIB));
    const blocks = [12, 10, 14, 10].map((size) => allocator.allocate(size * MIB, `${size}`));
    for (const block of blocks) block.close();
    const taken = [10, 10, 12, 14].map((size) => allocator.allocate(size * MIB, "again"));
    assert.deepEqual(
      taken.map((block) => block.byteLength / MIB),
      [10, 10, 12, 14],
    );
    assert.equal(new Set(taken.map((block) => block.address)).size, 4);
    assert.equal(allocator.statistics.cachedBytes, 0);
  });

  test("closing twice is closing once", () => {
    const memory = new Memory(8 * MIB);
    const allocator = new CachingAllocator(memory);
    const block = allocator.allocate(KIB, "x");
    assert.equal(block.closed, false);
    block.close();
    block.close();
    block[Symbol.dispose]();
    assert.equal(block.closed, true);
    const [a, b] = [allocator.allocate(KIB, "a"), allocator.allocate(KIB, "b")];
    assert.notEqual(a.address, b.address);
    block.close();
    assert.equal(allocator.statistics.allocations, 2);
  });

  test("gives its cache back before it reports that memory is out", () => {
    const memory = new Memory(32 * MIB);
    const allocator = new CachingAllocator(memory);
    allocator.allocate(16 * MIB, "kept").close();
    const block = allocator.allocate(30 * MIB, "large");
    assert.equal(memory.held, 30 * MIB);
    block.close();
    assert.equal(allocator.statistics.cachedBytes, 30 * MIB);
  });

  test("out of memory names the label and all sizes, and leaves it usable", () => {
    const memory = new Memory(32 * MIB);
    const allocator = new CachingAllocator(memory);
    allocator.allocate(8 * MIB, "cached").close();
    const block = allocator.allocate(20 * MIB, "held");
    assert.throws(
      () => allocator.allocate(15 * MIB, "expert weights"),
      (e: unknown) => {
        assert.ok(e instanceof OutOfDeviceMemoryError);
        assert.equal(e.requestedBytes, 15 * MIB);
        assert.equal(e.availableBytes, 12 * MIB);
        assert.match(e.message, /expert weights/);
        for (const bytes of [15, 12, 32, 20, 8]) {
          assert.ok(e.message.includes(`${bytes * MIB}`), `${bytes} MiB in ${e.message}`);
        }
        return true;
      },
    );
    assert.deepEqual(allocator.statistics, {
      usedBytes: 20 * MIB,
      peakBytes: 20 * MIB,
      reservedBytes: 20 * MIB,
      cachedBytes: 0,
      allocations: 1,
    });
    block.close();
    allocator.allocate(20 * MIB, "again");
  });

  test("other failures pass through", () => {
    const memory = new Memory(MIB);
    memory.broken = new CudaError("cuMemAlloc_v2", 700, "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert.throws(() => new CachingAllocator(memory).allocate(1, "x"), memory.broken);
  });

  test("trim and close give everything back; a lost context has nothing to give", () => {
    const memory = new Memory(32 * MIB);
    const allocator = new CachingAllocator(memory);
    const used = allocator.allocate(4 * MIB, "used");
    allocator.allocate(2 * MIB, "cached").close();
    allocator.trim();
    assert.equal(memory.held, 4 * MIB);
    allocator.allocate(2 * MIB, "cached").close();
    allocator.close();
    allocator.close();
    assert.equal(memory.held, 0);
    used.close();
    const { usedBytes, cachedBytes, peakBytes } = allocator.statistics;
    assert.deepEqual([usedBytes, cachedBytes, peakBytes], [0, 0, 6 * MIB]);
    assert.throws(() => allocator.allocate(1, "x"), DisposedError);

    const lost = new CachingAllocator(memory);
    lost.allocate(MIB, "x");
    memory.broken = new CudaError("cuMemFree_v2", 719, "CUDA_ERROR_LAUNCH_FAILED");
    lost.close();
    assert.equal(lost.statistics.reservedBytes, 0);
  });

  test("sizes that are no sizes are refused", () => {
    const allocator = new CachingAllocator(new Memory(MIB));
    for (const bytes of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60]) {
      assert.throws(() => allocator.allocate(bytes, "x"), InvalidArgumentError);
    }
  });

  test("random use: blocks never overlap, the accounts agree, nothing leaks", () => {
    const random = randomFor("caching allocator");
    const memory = new Memory(256 * MIB);
    const allocator = new CachingAllocator(memory);
    const held: DeviceBlock[] = [];
    let peak = 0;
    for (let step = 0; step < 4000; step++) {
      if (chance(random, 0.5) || held.length === 0) {
        const bytes = between(random, 0, chance(random, 0.5) ? 64 * KIB : 24 * MIB);
        try {
          held.push(allocator.allocate(bytes, `step ${step}`));
          assert.ok((held[held.length - 1]?.byteLength ?? -1) >= bytes);
        } catch (error) {
          assert.ok(error instanceof OutOfDeviceMemoryError);
          held.shift()?.close();
        }
      } else {
        held.splice(between(random, 0, held.length - 1), 1)[0]?.close();
      }
      const { usedBytes, peakBytes, reservedBytes, cachedBytes, allocations } =
        allocator.statistics;
      assert.equal(
        usedBytes,
        held.reduce((sum, block) => sum + block.byteLength, 0),
      );
      assert.equal(new Set(held.map((block) => block.address)).size, held.length);
      assert.equal(allocations, held.length);
      assert.equal(reservedBytes, memory.held);
      assert.equal(reservedBytes, usedBytes + cachedBytes);
      peak = Math.max(peak, usedBytes);
      assert.equal(peakBytes, peak);
    }
    for (const block of held) block.close();
    allocator.trim();
    assert.equal(memory.held, 0);
  });
});
