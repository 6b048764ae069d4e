/** Bytes between the host and the device: in order, whole, and without waiting. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DisposedError, InvalidArgumentError, ShapeError } from "../../../src/errors.ts";
import { LARGE_WRITE_BYTES, SMALL_WRITE_BYTES } from "../../../src/execution/cuda/transfers.ts";
import type { DeviceBuffer, Stream } from "../../../src/execution/device.ts";
import { between, randomFor } from "../../support/seed.ts";
import { FakeDriver } from "./fake-driver.ts";
import { enqueue, OPERAND_BYTES, operand, readValue, withFake } from "./harness.ts";

function noise(length: number, seed: string): Uint8Array {
  const random = randomFor(seed);
  const words = Uint32Array.from({ length: Math.ceil(length / 4) }, () => random.integer(2 ** 32));
  return new Uint8Array(words.buffer, 0, length);
}

describe("write and read", () => {
  it("bring any bytes there and back", async () => {
    await withFake(async ({ device }) => {
      const random = randomFor("bytes");
      const sizes = [
        0,
        1,
        3,
        SMALL_WRITE_BYTES,
        SMALL_WRITE_BYTES + 1,
        LARGE_WRITE_BYTES,
        17 * 2 ** 20 + 5,
      ];
      for (const [i, size] of sizes.entries()) {
        const buffer = device.allocate(size + 10, "bytes");
        const zeros = new Uint8Array(size + 10).fill(1);
        await device.read(buffer, zeros);
        assert.ok(zeros.every((byte) => byte === 0));
        const bytes = noise(size, `bytes ${i}`);
        const offset = between(random, 0, 10);
        const source = bytes.slice();
        device.write(buffer, source, offset);
        // The source is free at once.
        source.fill(0xff);
        const target = new Uint8Array(size + 2);
        await device.read(buffer, target.subarray(1, size + 1), offset);
        assert.ok(Buffer.from(target.subarray(1, size + 1)).equals(Buffer.from(bytes)));
        assert.deepEqual([target[0], target[size + 1]], [0, 0]);
        buffer[Symbol.dispose]();
      }
    });
  });

  for (const readsPageable of [false, true]) {
    it(`leave the source free at once, however large, where the GPU ${readsPageable ? "reads" : "does not read"} ordinary memory by itself`, async () => {
      const driver = new FakeDriver({ readsPageable });
      await withFake(async ({ device }) => {
        const random = randomFor("sources");
        const most = LARGE_WRITE_BYTES + 100;
        const buffer = device.allocate(most, "bytes");
        const expected = Buffer.alloc(most);
        // The ring is full several times over, and some writes are too large for it.
        for (let i = 0; i < 30; i++) {
          const source = noise(between(random, 1, i % 10 === 0 ? most : most >> 3), `source ${i}`);
          const offset = between(random, 0, most - source.length);
          expected.set(source, offset);
          device.write(buffer, source, offset);
          source.fill(0xff);
        }
        const target = new Uint8Array(most);
        await device.read(buffer, target);
        assert.ok(expected.equals(target));
      }, driver);
    });
  }

  it("do not wait for the GPU before large writes have filled their room", async () => {
    const driver = new FakeDriver({ readsPageable: true });
    await withFake(async ({ device }) => {
      const half = LARGE_WRITE_BYTES / 2;
      const buffers = Array.from({ length: 5 }, (_, i) => device.allocate(half, `${i}`));
      const values = [3, 4, 5, 6, 7];
      driver.stalled = true;
      const write = (i: number): void =>
        device.write(buffers[i] as DeviceBuffer, new Uint8Array(half).fill(values[i] as number));
      for (let i = 0; i < 4; i++) write(i);
      assert.equal(driver.count("synchronizeStream"), 0);
      driver.stalled = false;
      await device.synchronize();
      // The first two lie in a half that the GPU has read by now.
      write(4);
      assert.equal(driver.count("synchronizeStream"), 0);
      for (const [i, buffer] of buffers.entries()) {
        const target = new Uint8Array(half);
        await device.read(buffer, target);
        assert.ok(target.every((byte) => byte === values[i]));
      }
      device.write(
        device.allocate(2 * LARGE_WRITE_BYTES, "larger"),
        new Uint8Array(LARGE_WRITE_BYTES + 1),
      );
      assert.equal(driver.count("synchronizeStream"), 1);
    }, driver);
  });

  it("never wait for the GPU to take small writes, however many", async () => {
    await withFake(async ({ device, driver }) => {
      const buffers = Array.from({ length: 300 }, (_, i) => operand(device, undefined, `${i}`));
      driver.stalled = true;
      for (const [i, buffer] of buffers.entries())
        device.write(buffer, new Float32Array(4).fill(i));
      driver.stalled = false;
      for (const [i, buffer] of buffers.entries()) assert.equal(await readValue(device, buffer), i);
      // And again, with the ring free once more.
      for (let round = 0; round < 5; round++) {
        for (const [i, buffer] of buffers.entries()) {
          device.write(buffer, new Float32Array(4).fill(i + round));
          if (i % 20 === 0) assert.equal(await readValue(device, buffer), i + round);
        }
      }
      for (const [i, buffer] of buffers.entries())
        assert.equal(await readValue(device, buffer), i + 4);
      assert.equal(driver.count("synchronizeStream"), 0);
    });
  });

  it("are in the order of the calls, with many readers at once", async () => {
    await withFake(async ({ device }) => {
      const buffer = operand(device);
      const reads = Array.from({ length: 10 }, async (_, i) => {
        device.write(buffer, new Float32Array(4).fill(i));
        return readValue(device, buffer);
      });
      const values = await Promise.all(reads);
      // Only so many at a time have a place to be staged; the others read what is there later.
      assert.deepEqual(values.slice(0, 2), [0, 1]);
      assert.ok(values.every((value, i) => value >= i));
    });
  });

  it("refuse what is not there", async () => {
    await withFake(async ({ device }) => {
      const buffer = device.allocate(8, "eight");
      for (const offset of [-1, 0.5, 5, Number.NaN]) {
        const range = /"eight" has 8 bytes/;
        assert.throws(() => device.write(buffer, new Uint8Array(4), offset), range);
        await assert.rejects(device.read(buffer, new Uint8Array(4), offset), range);
      }
      await assert.rejects(device.copy(buffer, operand(device), 9), InvalidArgumentError);
      await assert.rejects(device.copy(operand(device), buffer, 9), InvalidArgumentError);
      const gone = operand(device, 1, "gone");
      const reading = device.read(gone, new Uint8Array(4));
      gone[Symbol.dispose]();
      // It was asked for in time.
      await reading;
      await assert.rejects(device.copy(buffer, gone, 1), DisposedError);
    });
  });

  it("copy on the device", async () => {
    await withFake(async ({ device }) => {
      const [from, to] = [operand(device, 3), operand(device, 4)];
      await device.copy(to, from, OPERAND_BYTES);
      assert.equal(await readValue(device, to), 3);
      await device.copy(to, operand(device, 9), 0);
      assert.equal(await readValue(device, to), 3);
    });
  });

  it("copy what was launched before, and nothing that is launched later", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 }) as Stream;
      const output = operand(device, 50);
      const graphs = [1, 2, 3].map((value) => {
        const input = operand(device, value);
        return device.capture(stream, () => enqueue(stream, { a: input, b: input, output }));
      });
      const kept = Array.from({ length: 4 }, (_, i) => operand(device, undefined, `kept ${i}`));
      driver.stalled = true;
      const copy = (i: number) => device.copy(kept[i] as DeviceBuffer, output, OPERAND_BYTES);
      const all = [copy(0)];
      for (const [i, graph] of graphs.entries()) all.push(graph.launch(), copy(i + 1));
      driver.stalled = false;
      await Promise.all(all);
      const values = await Promise.all(kept.map((buffer) => readValue(device, buffer)));
      assert.deepEqual(values, [50, 2, 3, 4]);
    });
  });
});

describe("mirrored buffers", () => {
  it("are read without the driver once a launch has written them", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 }) as Stream;
      const zero = operand(device, 0);
      const output = device.allocate(OPERAND_BYTES, "counts", { mirrored: true });
      const graph = device.capture(stream, () => enqueue(stream, { a: zero, b: zero, output }));
      const silently = async (): Promise<number> => {
        const calls = driver.count("copyToHost");
        const value = await readValue(device, output);
        assert.equal(driver.count("copyToHost"), calls);
        return value;
      };
      assert.equal(await silently(), 0);
      await graph.launch();
      assert.equal(await silently(), 1);
      // What the host writes is on the device alone.
      device.write(output, new Float32Array(4).fill(8));
      assert.equal(await readValue(device, output), 8);
      device.write(zero, new Float32Array(4).fill(4));
      await graph.launch();
      assert.equal(await silently(), 5);
      await device.copy(output, zero, OPERAND_BYTES);
      assert.equal(await readValue(device, output), 4);
      enqueue(stream, { a: zero, b: zero, output });
      await device.synchronize();
      assert.equal(await silently(), 5);
      const half = new Float32Array(2);
      await device.read(output, half, 8);
      assert.deepEqual([...half], [5, 5]);
    });
  });

  it("give their page-locked memory back", async () => {
    await withFake(async ({ device, driver }) => {
      const pinned = () => driver.live["pinned"];
      device.allocate(OPERAND_BYTES, "counts", { mirrored: true })[Symbol.dispose]();
      const before = pinned();
      for (let i = 0; i < 3000; i++) {
        using _ = device.allocate(OPERAND_BYTES, "counts", { mirrored: true });
      }
      assert.equal(pinned(), before);
      using large = device.allocate(100_000, "large", { mirrored: true });
      assert.equal(pinned(), (before ?? 0) + 1);
      const read = new Uint8Array(100_000).fill(1);
      await device.read(large, read);
      assert.ok(read.every((byte) => byte === 0));
    });
  });

  it("are zero again when their memory is used again", async () => {
    await withFake(async ({ device }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const zero = operand(device, 0);
      for (let round = 0; round < 5; round++) {
        using output = device.allocate(OPERAND_BYTES, "counts", { mirrored: true });
        assert.equal(await readValue(device, output), 0);
        enqueue(stream, { a: zero, b: zero, output });
        await device.synchronize();
        assert.equal(await readValue(device, output), 1);
      }
    });
  });
});

describe("rows", () => {
  it("that lie as they should are written as they are", async () => {
    await withFake(async ({ device }) => {
      const layout = device.rowLayout(64, "float32");
      assert.deepEqual(layout, { dtype: "float32", width: 64, pitch: 64 });
      assert.equal(device.rowLayout(65, "bfloat16").pitch, 128);
      const buffer = device.allocate(3 * 64 * 4, "rows");
      const data = Float32Array.from({ length: 2 * 64 }, (_, i) => i);
      device.writeRows(buffer, layout, { dtype: "float32", shape: [2, 64], data });
      const read = new Float32Array(3 * 64);
      await device.read(buffer, read);
      assert.deepEqual([...read.subarray(0, 128)], [...data]);
      assert.ok(read.subarray(128).every((x) => x === 0));
      const copied = device.allocate(3 * 64 * 4, "copied");
      await device.copyRows(copied, layout, buffer, "float32", 2);
      await device.read(copied, read);
      assert.deepEqual([...read.subarray(0, 128)], [...data]);
    });
  });

  it("that do not fit are refused", async () => {
    await withFake(async ({ device }) => {
      const layout = device.rowLayout(64, "float32");
      const buffer = device.allocate(64 * 4, "one row");
      const tensor = (shape: number[]) => {
        const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
        return { dtype: "float32", shape, data } as const;
      };
      assert.throws(() => device.writeRows(buffer, layout, tensor([64, 2])), ShapeError);
      assert.throws(() => device.writeRows(buffer, layout, tensor([2, 64])), /"one row"/);
      const odd = { ...layout, pitch: 65 };
      assert.throws(() => device.writeRows(buffer, odd, tensor([1, 64])), /rowLayout/);
      const short = device.allocate(4, "short");
      await assert.rejects(
        device.copyRows(buffer, layout, short, "float32", 1),
        /"short" has 4 bytes/,
      );
      device.writeRows(buffer, layout, tensor([0, 64]));
      await device.copyRows(buffer, layout, short, "float32", 0);
      assert.throws(() => device.rowLayout(0, "float32"), InvalidArgumentError);
    });
  });
});

describe("weights on their way", () => {
  it("are staged while others are, and their work sees them", async () => {
    await withFake(async ({ device, core, driver }) => {
      const targets = Array.from({ length: 6 }, () => device.allocate(1000, "weights"));
      const chunks = targets.map((_, i) => noise(1000, `weights ${i}`));
      await Promise.all(
        chunks.map((chunk, i) =>
          core.transfers.uploadAndRun(chunk, (staged) => {
            const target = (targets[i] as unknown as { address: bigint }).address;
            return [{ kind: "copy", target, source: staged, bytes: chunk.byteLength }];
          }),
        ),
      );
      for (const [i, target] of targets.entries()) {
        const got = new Uint8Array(1000);
        await device.read(target, got);
        assert.deepEqual(got, chunks[i]);
      }
      // Two slots and no more; a failure gives its slot back.
      const pinned = driver.live["pinned"];
      for (let i = 0; i < 4; i++) {
        const failing = core.transfers.uploadAndRun(new Uint8Array(4), () => {
          throw new InvalidArgumentError("no such work");
        });
        await assert.rejects(failing, /no such work/);
      }
      assert.equal(driver.live["pinned"], pinned);
    });
  });
});

describe("timing", () => {
  it("gives a time for every replay", async () => {
    await withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [zero, output] = [operand(device, 0), operand(device)];
      const graph = device.capture(stream, () => enqueue(stream, { a: zero, b: zero, output }));
      const events = driver.live["events"] ?? 0;
      const times = await device.time(graph, 150);
      assert.equal(times.length, 150);
      assert.ok(times.every((time) => time > 0));
      assert.ok((await device.timeBackToBack(graph, 10)) > 0);
      assert.equal(driver.count("launchGraph"), 160);
      assert.ok((driver.live["events"] ?? 0) <= events + 2);
      await assert.rejects(device.time(graph, 0), InvalidArgumentError);
      await assert.rejects(device.timeBackToBack(graph, 0.5), InvalidArgumentError);
      await assert.rejects(device.time({} as typeof graph, 1), /not one of this device/);
      graph[Symbol.dispose]();
      await assert.rejects(device.time(graph, 1), DisposedError);
      await assert.rejects(device.timeBackToBack(graph, 1), DisposedError);
    });
  });
});
