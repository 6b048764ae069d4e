/**
 * What a `Driver` does, whatever is behind it: the same tests run against the fake
 * library and against a GPU.
 */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { Context } from "../../../../src/execution/cuda/driver/context.ts";
import type { Driver } from "../../../../src/execution/cuda/driver/driver.ts";
import { CudaError } from "../../../../src/execution/cuda/driver/errors.ts";

async function finished(driver: Driver, event: bigint): Promise<void> {
  while (!driver.eventDone(event)) await setImmediate();
}

/** @param skip why these tests cannot run, or false */
export function testDriver(open: () => Driver, skip: string | false): void {
  /** A test with device 0's context and a stream. */
  const withStream = (
    name: string,
    body: (driver: Driver, stream: bigint, t: TestContext) => Promise<void> | void,
  ): void => {
    test(name, { skip }, async (t) => {
      const driver = open();
      using context = new Context(driver, 0);
      context.current();
      const stream = driver.createStream(driver.priorityRange()[1]);
      try {
        await body(driver, stream, t);
      } finally {
        driver.destroyStream(stream);
      }
    });
  };

  test("facts of the device make sense", { skip }, () => {
    const driver = open();
    assert.ok(driver.version >= 12000);
    assert.ok(driver.deviceCount() >= 1);
    const facts = driver.deviceFacts(0);
    assert.ok(facts.name.length > 0);
    assert.match(facts.uuid, /^GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);
    assert.ok(facts.memoryBytes >= 2 ** 30, `${facts.memoryBytes} bytes`);
    assert.ok(facts.multiprocessors >= 1);
    assert.ok(facts.capability[0] >= 5);
    assert.ok(facts.sharedPerBlockOptin >= 48 * 1024);
    assert.ok(facts.maxPersistingL2Bytes <= facts.l2Bytes);
    assert.throws(
      () => driver.deviceFacts(999),
      (e: unknown) => e instanceof CudaError && e.codeName === "CUDA_ERROR_INVALID_DEVICE",
    );
  });

  withStream("bytes go to the device, are filled, copied and come back", async (driver, stream) => {
    const bytes = 4096;
    const a = driver.allocate(bytes);
    const b = driver.allocate(bytes);
    const pinned = driver.allocatePinned(bytes);
    const event = driver.createEvent(false);
    try {
      const host = new Uint8Array(pinned.bytes);
      const source = Uint8Array.from({ length: bytes }, (_, i) => i * 7);
      driver.copyToDevice(a, source, bytes, stream);
      driver.copyOnDevice(b, a, bytes, stream);
      driver.fillBytes(b + 16n, 0xab, 16, stream);
      driver.fillWords(b + 64n, 0x01020304, 4, stream);
      driver.copyToHost(pinned.address, b, bytes, stream);
      driver.recordEvent(event, stream);
      driver.waitEvent(stream, event);
      await finished(driver, event);
      const expected = source.slice();
      expected.fill(0xab, 16, 32);
      new Uint32Array(expected.buffer, 64, 4).fill(0x01020304);
      assert.deepEqual(host, expected);

      // From an address instead of an array, and from the middle of an array.
      host.fill(9);
      driver.copyToDevice(a, pinned.address, 8, stream);
      driver.copyToDevice(a + 8n, source.subarray(100), 8, stream);
      driver.copyToHost(pinned.address, a, 16, stream);
      driver.synchronizeStream(stream);
      assert.deepEqual(
        [...host.subarray(0, 16)],
        [...Array(8).fill(9), ...source.subarray(100, 108)],
      );
      assert.throws(
        () => driver.copyToDevice(a, source.subarray(0, 8), 9, stream),
        /9 bytes.* 8 bytes/,
      );
    } finally {
      driver.destroyEvent(event);
      driver.freePinned(pinned.address);
      driver.free(b);
      driver.free(a);
    }
  });

  withStream("events time what lies between them", async (driver, stream) => {
    const bytes = 1 << 20;
    const address = driver.allocate(bytes);
    const [from, to] = [driver.createEvent(true), driver.createEvent(true)];
    try {
      driver.recordEvent(from, stream);
      for (let i = 0; i < 20; i++) driver.fillWords(address, i, bytes / 4, stream);
      driver.recordEvent(to, stream);
      await finished(driver, to);
      const milliseconds = driver.elapsedMilliseconds(from, to);
      assert.ok(milliseconds > 0 && milliseconds < 1000, `${milliseconds} ms`);
    } finally {
      driver.destroyEvent(from);
      driver.destroyEvent(to);
      driver.free(address);
    }
  });

  withStream("a captured graph does its work at every launch, and not before", (driver, stream) => {
    const address = driver.allocate(64);
    const pinned = driver.allocatePinned(64);
    const words = new Uint32Array(pinned.bytes);
    const read = (): number[] => {
      driver.copyToHost(pinned.address, address, 64, stream);
      driver.synchronizeStream(stream);
      return [words[0] ?? -1, words[8] ?? -1];
    };
    try {
      driver.fillWords(address, 1, 16, stream);
      assert.throws(() => driver.lastCapturedNode(stream), /captures nothing/);
      driver.beginCapture(stream);
      assert.throws(() => driver.lastCapturedNode(stream), /0 graph nodes/);
      driver.fillWords(address, 2, 8, stream);
      const node = driver.lastCapturedNode(stream);
      driver.fillWords(address + 32n, 3, 8, stream);
      assert.notEqual(driver.lastCapturedNode(stream), node);
      assert.notEqual(node, 0n);
      const graph = driver.endCapture(stream);
      const exec = driver.instantiateGraph(graph);
      assert.deepEqual(read(), [1, 1]);
      driver.uploadGraph(exec, stream);
      for (let i = 0; i < 3; i++) {
        driver.fillWords(address, 1, 16, stream);
        driver.launchGraph(exec, stream);
        assert.deepEqual(read(), [2, 3]);
      }
      assert.throws(
        () => driver.setNodeLaunch(exec, node, { x: 1, y: 1, z: 1 }, pinned.address),
        CudaError,
      );
      driver.destroyGraphExec(exec);
      driver.destroyGraph(graph);
    } finally {
      driver.freePinned(pinned.address);
      driver.free(address);
    }
  });

  withStream("other streams take part in a capture, those of partitions too", (driver, stream) => {
    const words = 64;
    const address = driver.allocate(4 * words);
    const pinned = driver.allocatePinned(4 * words);
    const partitions =
      driver.partitionsUnavailable() === null ? driver.createPartitions(0, [2]) : [];
    const others = [
      driver.createStream(0),
      ...partitions.map((partition) => driver.createPartitionStream(partition, 0)),
    ];
    // All of the context that is current, and used on streams of the partitions.
    const [begun, ...done] = [stream, ...others].map(() => driver.createEvent(false)) as [
      bigint,
      ...bigint[],
    ];
    const issue = (capturing: boolean): void => {
      driver.fillWords(address, 1, words, stream);
      driver.recordEvent(begun, stream);
      for (const [i, other] of others.entries()) {
        driver.waitEvent(other, begun);
        driver.fillWords(address + BigInt(32 * i), 2 + i, 8, other);
        if (capturing) assert.notEqual(driver.lastCapturedNode(other), 0n);
        driver.recordEvent(done[i] as bigint, other);
      }
      for (const event of done) driver.waitEvent(stream, event);
      driver.copyToHost(pinned.address, address, 4 * words, stream);
    };
    const check = (): void => {
      driver.synchronizeStream(stream);
      const found = new Uint32Array(pinned.bytes);
      const expected = Uint32Array.from({ length: words }, (_, i) =>
        i < 8 * others.length ? 2 + Math.floor(i / 8) : 1,
      );
      assert.deepEqual(found, expected);
      found.fill(0);
    };
    try {
      issue(false);
      check();
      driver.beginCapture(stream);
      issue(true);
      const graph = driver.endCapture(stream);
      const exec = driver.instantiateGraph(graph);
      for (let i = 0; i < 3; i++) {
        driver.launchGraph(exec, stream);
        check();
      }
      // The events and streams of a capture are ordinary ones afterwards.
      issue(false);
      check();
      driver.destroyGraphExec(exec);
      driver.destroyGraph(graph);
    } finally {
      for (const event of [begun, ...done]) driver.destroyEvent(event);
      for (const other of others) driver.destroyStream(other);
      for (const partition of partitions) driver.destroyPartition(partition);
      driver.freePinned(pinned.address);
      driver.free(address);
    }
  });

  withStream("partitions are made, used and destroyed, twice", (driver, stream, t) => {
    const reason = driver.partitionsUnavailable();
    if (reason !== null) {
      t.skip(reason);
      return;
    }
    const { multiprocessors } = driver.deviceFacts(0);
    const half = Math.floor(multiprocessors / 4) * 2;
    const address = driver.allocate(64);
    const pinned = driver.allocatePinned(64);
    try {
      for (let round = 1; round <= 2; round++) {
        const partitions = driver.createPartitions(0, [half, 2]);
        assert.equal(partitions.length, 2);
        assert.ok((partitions[0]?.multiprocessors ?? 0) >= half);
        const total = partitions.reduce((sum, p) => sum + p.multiprocessors, 0);
        assert.ok(total <= multiprocessors, `${total} of ${multiprocessors}`);
        for (const [i, partition] of partitions.entries()) {
          const own = driver.createPartitionStream(partition, 0);
          driver.fillWords(address, 10 * round + i, 16, own);
          driver.synchronizeStream(own);
          driver.copyToHost(pinned.address, address, 64, stream);
          driver.synchronizeStream(stream);
          assert.equal(new Uint32Array(pinned.bytes)[15], 10 * round + i);
          driver.destroyStream(own);
          driver.destroyPartition(partition);
        }
      }
      assert.throws(() => driver.createPartitions(0, [multiprocessors, 1]), /do not fit/);
      assert.throws(() => driver.createPartitions(0, []), /one positive integer/);
    } finally {
      driver.freePinned(pinned.address);
      driver.free(address);
    }
  });

  withStream("the persisting part of the cache can be set and reset", (driver) => {
    const found = driver.persistingL2Limit();
    const most = driver.deviceFacts(0).maxPersistingL2Bytes;
    driver.setPersistingL2Limit(most);
    assert.ok(driver.persistingL2Limit() > 0);
    driver.resetPersistingL2();
    driver.setPersistingL2Limit(found);
    assert.equal(driver.persistingL2Limit(), found);
  });

  withStream("a thousand allocations leave the memory as it was", (driver) => {
    // What the first allocation costs the driver once is not counted.
    driver.free(driver.allocate(1 << 16));
    const before = driver.memoryInfo();
    for (let i = 0; i < 1000; i++) driver.free(driver.allocate(1 << 16));
    assert.deepEqual(driver.memoryInfo(), before);
  });

  withStream("more memory than there is, is out of memory", (driver) => {
    const { totalBytes } = driver.memoryInfo();
    assert.throws(
      () => driver.allocate(2 * totalBytes),
      (e: unknown) =>
        e instanceof CudaError &&
        e.codeName === "CUDA_ERROR_OUT_OF_MEMORY" &&
        /nvidia-smi/.test(e.message),
    );
  });
}
