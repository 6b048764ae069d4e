/** Pinned memory and events: what owns a few handles. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  DisposedError,
  InvalidArgumentError,
  OutOfDeviceMemoryError,
} from "../../../../src/errors.ts";
import { CudaError } from "../../../../src/execution/cuda/driver/errors.ts";
import { EventPool } from "../../../../src/execution/cuda/driver/events.ts";
import { PinnedMemory } from "../../../../src/execution/cuda/driver/pinned.ts";

class Host {
  readonly held = new Map<bigint, ArrayBuffer>();
  allocatePinned(bytes: number): { address: bigint; bytes: ArrayBuffer } {
    const address = 0x1000n * BigInt(this.held.size + 1);
    const memory = new Uint8Array(bytes).fill(0xa5).buffer;
    this.held.set(address, memory);
    return { address, bytes: memory };
  }
  freePinned(address: bigint): void {
    assert.ok(this.held.delete(address), "freed twice");
  }
}

test("pinned memory is cut into aligned, zeroed pieces", () => {
  const host = new Host();
  const memory = new PinnedMemory(host, 512, "arguments");
  const a = memory.take(10);
  const b = memory.take(8);
  const c = memory.take(16, 128);
  assert.deepEqual([a.offset, b.offset, c.offset], [0, 64, 128]);
  assert.deepEqual([a.address, b.address, c.address], [0x1000n, 0x1040n, 0x1080n]);
  assert.equal(memory.usedBytes, 144);
  assert.deepEqual([a.bytes.length, b.view.byteLength], [10, 8]);
  assert.ok(c.bytes.every((byte) => byte === 0));
  b.view.setUint8(0, 7);
  assert.equal(new Uint8Array(b.buffer)[64], 7);
  assert.deepEqual([...a.bytes], Array(10).fill(0));
});

test("a block that is full says so, with sizes", () => {
  const memory = new PinnedMemory(new Host(), 128, "counts");
  memory.take(65);
  assert.throws(() => memory.take(1), {
    name: "OutOfDeviceMemoryError",
    message: /1 bytes for pinned memory of counts: 0 bytes.*128 bytes/,
  });
  assert.throws(() => memory.take(-1), InvalidArgumentError);
  assert.throws(() => new PinnedMemory(new Host(), 128, "x").take(129), OutOfDeviceMemoryError);
});

test("pinned memory is freed once", () => {
  const host = new Host();
  const memory = new PinnedMemory(host, 128, "x");
  assert.equal(memory.closed, false);
  memory.close();
  memory.close();
  memory[Symbol.dispose]();
  assert.equal(memory.closed, true);
  assert.equal(host.held.size, 0);
  assert.throws(() => memory.take(1), DisposedError);
});

class Events {
  readonly held = new Set<bigint>();
  readonly timed: boolean[] = [];
  broken: CudaError | null = null;
  createEvent(timing: boolean): bigint {
    const event = BigInt(this.timed.push(timing));
    this.held.add(event);
    return event;
  }
  destroyEvent(event: bigint): void {
    if (this.broken !== null) throw this.broken;
    assert.ok(this.held.delete(event), "destroyed twice");
  }
}

test("events are used again, each by one at a time", () => {
  const driver = new Events();
  const pool = new EventPool(driver, true);
  const [a, b] = [pool.take(), pool.take()];
  assert.notEqual(a, b);
  pool.give(a);
  pool.give(a);
  pool.give(999n);
  const [c, d] = [pool.take(), pool.take()];
  assert.equal(c, a);
  assert.ok(d !== a && d !== b && d !== 999n);
  assert.equal(pool.size, 3);
  assert.deepEqual(driver.timed, [true, true, true]);
});

test("closing the pool destroys all events, once", () => {
  const driver = new Events();
  const pool = new EventPool(driver, false);
  pool.give(pool.take());
  const used = pool.take();
  pool.close();
  pool.close();
  pool[Symbol.dispose]();
  assert.equal(driver.held.size, 0);
  pool.give(used);
  assert.throws(() => pool.take(), DisposedError);
});

test("a lost context does not keep a pool open, another fault is told", () => {
  const driver = new Events();
  const pool = new EventPool(driver, false);
  pool.take();
  driver.broken = new CudaError("cuEventDestroy_v2", 700, "CUDA_ERROR_ILLEGAL_ADDRESS");
  pool.close();
  const other = new EventPool(driver, false);
  other.take();
  driver.broken = new CudaError("cuEventDestroy_v2", 400, "CUDA_ERROR_INVALID_HANDLE");
  assert.throws(() => other.close(), CudaError);
});
