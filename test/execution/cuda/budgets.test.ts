/** Budgets become grids and partitions, and follow the device's budgets without a new capture. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { CudaBudgets } from "../../../src/execution/cuda/budgets.ts";
import type { CudaDevice } from "../../../src/execution/cuda/device.ts";
import { PartitionPool, type PartitionSet } from "../../../src/execution/cuda/partitions.ts";
import type { DeviceBuffer, Graph, Realisation, Stream } from "../../../src/execution/device.ts";
import { FAKE_FACTS, FakeDriver } from "./fake-driver.ts";
import { BLOCKS, enqueue, type FakeDevice, operand, WEIGHT_BYTES, withFake } from "./harness.ts";

const { multiprocessors } = FAKE_FACTS;

/** One operator on each of the streams, in turn. */
function fanOut(device: CudaDevice, groups: readonly number[], budgeted = true): () => Graph {
  const streams = groups.map((group) => device.createStream({ group, priority: 0 }));
  const zero = operand(device, 0);
  const outputs = groups.map(() => operand(device));
  const [origin] = streams as [Stream];
  const begun = device.createEvent("begun");
  return () =>
    device.capture(origin, () => {
      origin.record(begun);
      for (const [i, stream] of streams.entries()) {
        stream.wait(begun);
        enqueue(stream, { a: zero, b: zero, output: outputs[i] as DeviceBuffer, budgeted });
      }
    });
}

/** Widths of the grids that ran, widest first. */
function widths({ driver }: FakeDevice): number[] {
  return driver.launches
    .splice(0)
    .map(({ grid }) => grid.x / BLOCKS)
    .sort((a, b) => b - a);
}

describe("shared budgets", () => {
  it("cut the grids of persistent kernels, and a graph follows them", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      // Groups 0, 1, 1 and 2: the streams of a group share its budget.
      const graph = fanOut(device, [0, 1, 1, 2])();
      const under = async (...units: number[]) => {
        device.setComputeBudgets({ realisation: "shared", units });
        await graph.launch();
        return widths(fake);
      };
      await graph.launch();
      const all = multiprocessors;
      assert.deepEqual(widths(fake), [all, all, all, all]);
      const captures = driver.count("beginCapture");
      assert.deepEqual(await under(60, 41, 20), [60, 20, 20, 20]);
      assert.equal(driver.count("setNodeLaunch"), 4);
      // The same grids need no call; a group without a budget has the whole device.
      assert.deepEqual(await under(60, 40, 20), [60, 20, 20, 20]);
      assert.equal(driver.count("setNodeLaunch"), 4);
      assert.deepEqual(await under(60, 1), [all, 60, 1, 1]);
      await graph.launch();
      assert.deepEqual(widths(fake), [all, 60, 1, 1]);
      assert.equal(driver.count("setNodeLaunch"), 7);
      assert.equal(driver.count("beginCapture"), captures);
      assert.deepEqual(await under(), [all, all, all, all]);
    });
  });

  it("leave alone what is not charged to them, and keep the rest of a grid", async () => {
    await withFake(async ({ device, driver }) => {
      device.setComputeBudgets({ realisation: "shared", units: [3] });
      await fanOut(device, [0], false)().launch();
      assert.deepEqual(
        driver.launches.splice(0).map(({ grid }) => grid),
        [{ x: 5, y: 3, z: 1 }],
      );
      const graph = fanOut(device, [0])();
      device.setComputeBudgets({ realisation: "shared", units: [7] });
      await graph.launch();
      assert.deepEqual(driver.launches[0]?.grid, { x: 7 * BLOCKS, y: 3, z: 1 });
    });
  });

  it("are shared only by streams with work that is charged to them", async () => {
    await withFake(async (fake) => {
      const { device } = fake;
      const streams = [0, 1].map(() => device.createStream({ group: 0, priority: 0 }));
      const [origin, other] = streams as [Stream, Stream];
      const [zero, output, more] = [operand(device, 0), operand(device), operand(device)];
      const begun = device.createEvent("begun");
      device.setComputeBudgets({ realisation: "shared", units: [60] });
      const graph = device.capture(origin, () => {
        origin.record(begun);
        other.wait(begun);
        enqueue(origin, { a: zero, b: zero, output });
        enqueue(other, { a: zero, b: zero, output: more, budgeted: false });
      });
      await graph.launch();
      assert.equal(widths(fake)[0], 60);
    });
  });

  it("are those that a submission was made with", async () => {
    await withFake(async (fake) => {
      const { device, driver } = fake;
      const graph = fanOut(device, [0])();
      driver.stalled = true;
      const launches = [10, 20, 30].map((units) => {
        device.setComputeBudgets({ realisation: "shared", units: [units] });
        return graph.launch();
      });
      driver.stalled = false;
      await Promise.all(launches);
      assert.deepEqual(
        driver.launches.map(({ grid }) => grid.x / BLOCKS),
        [10, 20, 30],
      );
    });
  });

  it("set part of the L2 cache aside, as much as there can be", async () => {
    await withFake(async ({ device, driver }) => {
      const found = 5 * 2 ** 20;
      driver.persistingL2 = found;
      const graph = fanOut(device, [0])();
      const under = async (...cacheBytes: number[]) => {
        device.setComputeBudgets({ realisation: "shared", units: [1], cacheBytes });
        await graph.launch();
        return driver.persistingL2;
      };
      assert.equal(await under(2 ** 20, 2 ** 21), 3 * 2 ** 20);
      assert.equal(await under(2 ** 40), FAKE_FACTS.maxPersistingL2Bytes);
      const calls = driver.count("setPersistingL2Limit");
      assert.equal(await under(2 ** 39), FAKE_FACTS.maxPersistingL2Bytes);
      assert.equal(driver.count("setPersistingL2Limit"), calls);
      assert.equal(driver.count("resetPersistingL2"), 0);
      assert.equal(await under(), found);
      assert.equal(driver.count("resetPersistingL2"), 1);
      const later = found + 2 ** 20;
      driver.persistingL2 = later;
      assert.equal(await under(2 ** 20), 2 ** 20);
      // A context that others hold on to lives on.
      await device.close();
      assert.deepEqual([driver.persistingL2, driver.count("resetPersistingL2")], [later, 2]);
    });
  });
});

describe("cache budgets", () => {
  it("give a group's kernels windows on their weights, as far as the room goes", async () => {
    await withFake(async ({ device, driver }) => {
      const cacheBytes = [2 ** 18, 0, 2 ** 22];
      device.setComputeBudgets({ realisation: "shared", units: [], cacheBytes });
      await fanOut(device, [0, 1, 2])().launch();
      const windows = driver.launches.splice(0).map(({ window }) => window);
      const given = windows.filter((window) => window !== undefined);
      assert.equal(windows.length, 3);
      assert.deepEqual(given.map(({ hitRatio }) => hitRatio).sort(), [0.25, 1]);
      assert.ok(given.every(({ bytes }) => bytes === WEIGHT_BYTES));
      device.setComputeBudgets({ realisation: "shared", units: [] });
      await fanOut(device, [0])().launch();
      assert.equal(driver.launches[0]?.window, undefined);
    });
  });

  it("have windows no longer than the device's", async () => {
    const driver = new FakeDriver({ maxWindowBytes: 4096 });
    await withFake(async ({ device }) => {
      device.setComputeBudgets({ realisation: "shared", units: [], cacheBytes: [2 ** 19] });
      await fanOut(device, [0])().launch();
      const { bytes, hitRatio } = driver.launches[0]?.window ?? {};
      assert.deepEqual([bytes, hitRatio], [4096, 0.5]);
    }, driver);
  });
});

describe("partitions", () => {
  it("hold the streams of groups with a budget, and graphs keep theirs", async () => {
    await withFake(async ({ device, driver }) => {
      const capture = fanOut(device, [0, 1, 1, 2]);
      device.setComputeBudgets({ realisation: "partitioned", units: [0, 16, 30] });
      const graph = capture();
      const ran = async () => {
        await graph.launch();
        return driver.launches
          .splice(0)
          .map(({ grid, partition }) => [partition?.multiprocessors ?? 0, grid.x / BLOCKS])
          .sort(([a = 0], [b = 0]) => a - b);
      };
      // 30 are rounded up to what the driver hands out.
      const expected = [
        [0, multiprocessors],
        [16, 8],
        [16, 8],
        [32, 32],
      ];
      assert.deepEqual(await ran(), expected);
      device.setComputeBudgets({ realisation: "shared", units: [1, 1, 1] });
      assert.deepEqual(await ran(), expected);
      device.setComputeBudgets({ realisation: "partitioned", units: [8] });
      assert.deepEqual(await ran(), expected);
      const made = driver.count("createPartitions");
      device.setComputeBudgets({ realisation: "partitioned", units: [0, 16, 30] });
      assert.equal(driver.count("createPartitions"), made);
    });
  });

  it("leave a graph alone that was captured under shared budgets", async () => {
    await withFake(async (fake) => {
      const { device } = fake;
      device.setComputeBudgets({ realisation: "shared", units: [50] });
      const graph = fanOut(device, [0])();
      device.setComputeBudgets({ realisation: "partitioned", units: [16] });
      await graph.launch();
      assert.deepEqual(widths(fake), [50]);
    });
  });

  it("are pooled, and go once nobody uses them", async () => {
    await withFake(async ({ device, driver }) => {
      const capture = fanOut(device, [0]);
      device.setComputeBudgets({ realisation: "partitioned", units: [1] });
      const graph = capture();
      for (let units = 2; units < 30; units++) {
        device.setComputeBudgets({ realisation: "partitioned", units: [units] });
        await capture().launch();
      }
      // Each graph holds on to its own.
      assert.equal(driver.live["partitions"], 29);
      await graph.launch();
      assert.equal(driver.launches.at(-1)?.partition?.multiprocessors, 8);
    });
    await withFake(async ({ device, driver }) => {
      const capture = fanOut(device, [0]);
      for (let units = 1; units < 30; units++) {
        device.setComputeBudgets({ realisation: "partitioned", units: [units] });
        using graph = capture();
        await graph.launch();
      }
      assert.ok((driver.live["partitions"] ?? 0) <= 9, `${driver.live["partitions"]} partitions`);
    });
  });

  it("are lent out by vector of sizes", () => {
    const driver = new FakeDriver();
    const retired: PartitionSet[] = [];
    const pool = new PartitionPool(driver, 0, (set) => retired.push(set));
    const a = pool.acquire([8, 16]);
    assert.equal(pool.acquire([8, 16]), a);
    assert.notEqual(pool.acquire([16, 8]), a);
    assert.equal(a.users, 2);
    assert.deepEqual(retired, []);
    assert.equal(pool.drain().length, 2);
    assert.deepEqual(pool.drain(), []);
  });

  it("are kept while used, and eight that are not: those acquired last", () => {
    const retired: PartitionSet[] = [];
    const pool = new PartitionPool(new FakeDriver(), 0, (set) => retired.push(set));
    const used = pool.acquire([1]);
    const sets = Array.from({ length: 8 }, (_, i) => pool.acquire([i + 2]));
    for (const set of sets) pool.release(set);
    assert.deepEqual(retired, []);
    const [first, second] = sets as [PartitionSet, PartitionSet];
    pool.release(pool.acquire([2]));
    pool.release(pool.acquire([10]));
    assert.deepEqual(retired, [second]);
    assert.equal(pool.acquire([2]), first);
    assert.equal(pool.acquire([1]), used);
  });
});

describe("budgets that a device cannot give", () => {
  it("are refused by name, and change nothing", async () => {
    const driver = new FakeDriver();
    driver.noPartitions = "This driver is too old.";
    await withFake(async (fake) => {
      const { device } = fake;
      const refused = (pattern: RegExp, realisation: string, units: number[]) =>
        assert.throws(
          () => device.setComputeBudgets({ realisation: realisation as Realisation, units }),
          (e) => e instanceof InvalidArgumentError && pattern.test(e.message),
        );
      refused(/133 compute units together, and the device has 132/, "shared", [100, 33]);
      refused(/Group 1 asks for 0\.5 .* steps of 1\./, "shared", [1, 0.5]);
      refused(/Group 0 asks for -1/, "shared", [-1]);
      refused(/at most 8 groups, got 9/, "shared", new Array(9).fill(0));
      assert.throws(
        () => device.setComputeBudgets({ realisation: "shared", units: [], cacheBytes: [0, -1] }),
        /Group 1 asks for -1 bytes of cache/,
      );
      refused(/too old/, "partitioned", [8]);
      refused(/"mig"/, "mig", [8]);
      refused(/Unknown realisation "exclusive"/, "exclusive", [1]);
      const graph = fanOut(device, [0])();
      await graph.launch();
      assert.deepEqual(widths(fake), [multiprocessors]);
    }, driver);
    await withFake(async (fake) => {
      const { device } = fake;
      device.setComputeBudgets({ realisation: "shared", units: [5] });
      // The sizes are within what the device has, but not as the driver deals them out.
      const units = [2, 2, 128];
      assert.throws(() => device.setComputeBudgets({ realisation: "partitioned", units }), /fit/);
      await fanOut(device, [0])().launch();
      assert.deepEqual(widths(fake), [5]);
    });
  });
});

describe("CudaBudgets", () => {
  it("divides a group's units among its streams, never to nothing", () => {
    const budgets = new CudaBudgets(132, { units: [10, 0] });
    assert.equal(budgets.shareOf(0, 3), 3);
    assert.equal(budgets.shareOf(0, 11), 1);
    assert.equal(budgets.shareOf(1, 3), 132);
    assert.equal(budgets.shareOf(7, 1), 132);
  });
});
