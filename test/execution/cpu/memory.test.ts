/** The allocator: blocks never overlap, come zeroed, and everything comes back. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { InvalidArgumentError, OutOfDeviceMemoryError } from "../../../src/errors.ts";
import { type Block, DeviceMemory } from "../../../src/execution/cpu/memory.ts";
import { between, chance, randomFor } from "../../support/seed.ts";

const GIB = 2 ** 30;

describe("DeviceMemory", () => {
  it("hands out blocks that do not overlap, zeroed, and takes all of them back", () => {
    const random = randomFor("allocator");
    const memory = new DeviceMemory();
    const live: Block[] = [];
    let peak = 0;
    for (let step = 0; step < 3000; step++) {
      if (live.length > 0 && chance(random, live.length / 120)) {
        const [block] = live.splice(random.integer(live.length), 1);
        memory.release(block as Block);
      } else {
        const size = chance(random, 0.1) ? between(random, 0, 300_000) : between(random, 0, 5000);
        const block = memory.allocate(size, "block");
        assert.ok(block.byteLength >= size && block.address % 64 === 0);
        for (const other of live) {
          const apart =
            other.address + other.byteLength <= block.address ||
            block.address + block.byteLength <= other.address;
          assert.ok(apart, `step ${step}: two blocks overlap`);
        }
        const bytes = new Uint8Array(memory.wasm.buffer, block.address, block.byteLength);
        assert.ok(
          bytes.every((byte) => byte === 0),
          `step ${step}: a fresh block is not zero`,
        );
        bytes.fill(0xff);
        live.push(block);
      }
      const used = live.reduce((sum, block) => sum + block.byteLength, 0);
      peak = Math.max(peak, used);
      const usage = memory.usage();
      assert.deepEqual(
        [usage.usedBytes, usage.peakBytes, usage.allocations],
        [used, peak, live.length],
      );
    }
    for (const block of live) memory.release(block);
    assert.equal(memory.usage().usedBytes, 0);
    // All free ranges have joined again: the whole of it can be had in one piece.
    const rest = memory.usage().limitBytes - 65536;
    assert.equal(memory.allocate(rest, "everything", false).byteLength, rest);
  });

  it("reuses what was freed instead of growing", () => {
    const memory = new DeviceMemory();
    const first = memory.allocate(50_000_000, "a");
    const grown = memory.wasm.buffer.byteLength;
    memory.release(first);
    for (let i = 0; i < 50; i++) memory.release(memory.allocate(50_000_000, "b", false));
    assert.equal(memory.wasm.buffer.byteLength, grown);
  });

  it("names label, sizes and remedy when it is full", () => {
    const memory = new DeviceMemory();
    const block = memory.allocate(3 * GIB, "weights", false);
    assert.throws(
      () => memory.allocate(2 * GIB, "more weights"),
      (error: unknown) => {
        assert.ok(error instanceof OutOfDeviceMemoryError);
        assert.equal(error.requestedBytes, 2 * GIB);
        assert.equal(error.availableBytes, GIB - 65536);
        assert.match(error.message, /more weights/);
        assert.match(error.message, /bfloat16|smaller batch/);
        return true;
      },
    );
    assert.equal(memory.usage().allocations, 1);
    memory.release(block);
    memory.allocate(2 * GIB, "now it fits", false);
  });

  it("hands out the last of it, however little that is", () => {
    const memory = new DeviceMemory();
    const { limitBytes } = memory.usage();
    memory.allocate(limitBytes - 2 * 65536 - 1000 * 64, "others", false);
    assert.equal(memory.allocate(1000 * 64, "less than a page", false).byteLength, 1000 * 64);
    const last = memory.allocate(65536, "the last page");
    assert.equal(last.address + last.byteLength, limitBytes);
    assert.throws(() => memory.allocate(1, "no more"), OutOfDeviceMemoryError);
  });

  it("tells what is left where the system gives no more", () => {
    const memory = new DeviceMemory();
    memory.allocate(65536, "first", false);
    const { byteLength } = memory.wasm.buffer;
    memory.wasm.grow = () => {
      throw new RangeError("no more pages");
    };
    const available = byteLength - 2 * 65536;
    assert.throws(
      () => memory.allocate(GIB, "weights"),
      (error) => error instanceof OutOfDeviceMemoryError && error.availableBytes === available,
    );
    assert.equal(memory.allocate(available, "what is left").byteLength, available);
  });

  it("refuses sizes that are none", () => {
    const memory = new DeviceMemory();
    for (const size of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      assert.throws(() => memory.allocate(size, "x"), InvalidArgumentError, String(size));
    }
  });
});
