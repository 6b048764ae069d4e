import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  GraphManager,
  graphKey,
  type RunMode,
  tokenBucket,
} from "../../src/control/graph-manager.ts";
import { DisposedError, InvalidArgumentError, InvalidLogitsError } from "../../src/errors.ts";
import type { DeviceBuffer } from "../../src/execution/device.ts";
import { FakeDevice } from "./fake-device.ts";

function setUp(options: { warmup?: number; capacity?: number } = {}) {
  const device = new FakeDevice();
  const graphs = new GraphManager({ device, ...options });
  const run = (key: string, operators = 3): Promise<RunMode> =>
    graphs.run(key, { origin: device.origin, record: device.recording(operators) });
  return { device, graphs, run };
}

describe("life of a key", () => {
  test("replays may have substitutes, other runs not", async () => {
    const { device, graphs, run } = setUp({ warmup: 1 });
    const named = (label: string) => ({ label }) as DeviceBuffer;
    const substitutes = [
      { buffer: named("a"), by: named("b"), byteLength: 4, access: "read" as const },
    ];
    const step = { origin: device.origin, record: device.recording(3), substitutes };
    for (const mode of ["eager", "captured"]) {
      assert.equal(graphs.has("k"), false);
      await assert.rejects(graphs.run("k", step), /substitutes are for replays.*has\(key\)/);
      assert.equal(await run("k"), mode);
    }
    assert.equal(graphs.has("k"), true);
    assert.equal(await graphs.run("k", step), "replayed");
    assert.equal(await run("k"), "replayed");
    assert.deepEqual(device.log.slice(-2), ["launch 3 b for a", "launch 3"]);
  });

  test("eager while it warms up, then captured, then replayed", async () => {
    const { device, graphs, run } = setUp({ warmup: 2 });
    const modes = [];
    for (let i = 0; i < 5; i++) modes.push(await run("a"));
    assert.deepEqual(modes, ["eager", "eager", "captured", "replayed", "replayed"]);
    assert.deepEqual(device.log, [
      "synchronize 3",
      "synchronize 3",
      "capture 3",
      "launch 3",
      "launch 3",
      "launch 3",
    ]);
    assert.deepEqual(graphs.stats(), {
      warmups: 2,
      captures: 1,
      replays: 2,
      evictions: 0,
      graphs: 1,
      nodes: 3,
    });
  });

  test("without warm-up the first run is captured", async () => {
    const { run } = setUp({ warmup: 0 });
    assert.deepEqual([await run("a"), await run("a")], ["captured", "replayed"]);
  });

  test("keys are apart", async () => {
    const { graphs, run } = setUp();
    for (const key of ["a", "b", "a", "b"]) await run(key, key === "a" ? 3 : 5);
    assert.equal(graphs.stats().captures, 2);
    assert.equal(graphs.stats().nodes, 8);
  });
});

describe("eviction", () => {
  test("closes the graph that was used longest ago, which is then captured without warming up again", async () => {
    const { device, graphs, run } = setUp({ capacity: 2 });
    for (const key of ["a", "b", "a", "b", "a"]) await run(key);
    for (let i = 0; i < 2; i++) await run("c");
    assert.deepEqual(
      device.graphs.map((graph) => graph.closed),
      [false, true, false],
    );
    assert.equal(graphs.stats().evictions, 1);
    assert.equal(graphs.stats().graphs, 2);
    assert.equal(await run("a"), "replayed");
    assert.equal(await run("b"), "captured");
  });

  test("never closes a graph in flight, and closes it when it comes back", async () => {
    const { device, graphs, run } = setUp({ capacity: 1, warmup: 0 });
    device.hold = true;
    const first = run("a");
    const second = run("b");
    const [a, b] = device.graphs;
    assert.equal(graphs.stats().evictions, 1);
    assert.deepEqual([a?.closed, b?.closed], [false, false]);
    device.letGo();
    await Promise.all([first, second]);
    assert.deepEqual([a?.closed, b?.closed], [true, false]);
  });

  test("remembers a bounded number of warm keys", async () => {
    const { graphs, run } = setUp({ capacity: 1 });
    await run("first");
    for (let i = 0; i < 16; i++) await run(`key ${i}`);
    assert.equal(await run("first"), "eager");
    assert.equal(graphs.stats().captures, 0);
    // Sixteen a graph.
    assert.equal(await run("key 1"), "captured");
  });
});

describe("invalidation and closing", () => {
  test("invalidate forgets the keys it is told, warmth included", async () => {
    const { device, graphs, run } = setUp();
    for (const key of ["a", "b", "a", "b"]) await run(key);
    graphs.invalidate((key) => key === "a");
    assert.deepEqual(
      device.graphs.map((graph) => graph.closed),
      [true, false],
    );
    assert.equal(await run("b"), "replayed");
    assert.equal(await run("a"), "eager");
  });

  test("graphs in flight outlive invalidation and closing until they come back", async () => {
    for (const end of ["invalidate", "dispose"]) {
      const { device, graphs, run } = setUp({ warmup: 0 });
      device.hold = true;
      const running = run("a");
      if (end === "invalidate") graphs.invalidate(() => true);
      else graphs[Symbol.dispose]();
      assert.equal(device.graphs[0]?.closed, false);
      device.letGo();
      await running;
      assert.equal(device.graphs[0]?.closed, true);
    }
  });

  test("closing closes everything, can be done twice, and ends it", async () => {
    const { device, graphs, run } = setUp({ warmup: 0 });
    await run("a");
    await run("b");
    graphs[Symbol.dispose]();
    graphs[Symbol.dispose]();
    assert.ok(device.graphs.every((graph) => graph.closed));
    assert.deepEqual([graphs.stats().graphs, graphs.stats().nodes], [0, 0]);
    await assert.rejects(run("a"), DisposedError);
  });
});

describe("failures", () => {
  test("a launch that fails rejects and leaves the graph in use", async () => {
    const { device, graphs, run } = setUp({ warmup: 0 });
    device.failure = new InvalidLogitsError(7);
    await assert.rejects(run("a"), { code: "ERR_INVALID_LOGITS", row: 7 });
    assert.equal(await run("a"), "replayed");
    device.failure = new InvalidLogitsError(3);
    await assert.rejects(run("a"), InvalidLogitsError);
    assert.equal(await run("a"), "replayed");
    const { captures, replays, graphs: kept } = graphs.stats();
    assert.deepEqual([captures, replays, kept], [1, 2, 1]);
  });

  test("a capture that fails leaves nothing behind and is tried again", async () => {
    const { device, graphs, run } = setUp({ warmup: 0 });
    const broken = {
      origin: device.origin,
      record: () => {
        device.recording(2)();
        throw new Error("no such operator");
      },
    };
    await assert.rejects(graphs.run("a", broken), /no such operator/);
    assert.deepEqual([graphs.stats().graphs, graphs.stats().captures], [0, 0]);
    assert.equal(await run("a"), "captured");
  });

  test("an eager run that fails does not count, and its remains do not join the next step", async () => {
    const { device, graphs, run } = setUp();
    const broken = {
      origin: device.origin,
      record: () => {
        device.recording(2)();
        throw new Error("wrong shape");
      },
    };
    await assert.rejects(graphs.run("a", broken), /wrong shape/);
    device.failure = new InvalidLogitsError(0);
    await assert.rejects(run("a"), InvalidLogitsError);
    assert.equal(graphs.stats().warmups, 0);
    assert.equal(await run("a"), "eager");
    assert.deepEqual(device.log, ["synchronize 2", "synchronize 3", "synchronize 3"]);
  });

  test("options out of range are refused", () => {
    const device = new FakeDevice();
    for (const warmup of [-1, 0.5, Number.NaN]) {
      assert.throws(() => new GraphManager({ device, warmup }), InvalidArgumentError);
    }
    for (const capacity of [0, 1.5, Number.POSITIVE_INFINITY]) {
      assert.throws(() => new GraphManager({ device, capacity }), InvalidArgumentError);
    }
  });
});

describe("keys", () => {
  test("token buckets are powers of two up to 256 and multiples of 256 above", () => {
    const buckets = [0, 1, 2, 3, 4, 5, 128, 129, 256, 257, 512, 513, 4096, 4097].map(tokenBucket);
    assert.deepEqual(buckets, [1, 1, 2, 4, 4, 8, 128, 256, 256, 512, 512, 768, 4096, 4352]);
    for (const wrong of [-1, 1.5, Number.NaN, 2 ** 53]) {
      assert.throws(() => tokenBucket(wrong), InvalidArgumentError);
    }
  });

  test("different parts give different keys, wherever the boundary lies", () => {
    const parts = { spec: "s", bucket: 1, variant: "v", budgets: "b", lanes: "l" };
    const keys = new Set([
      graphKey(parts),
      graphKey({ ...parts, spec: "t" }),
      graphKey({ ...parts, bucket: 2 }),
      graphKey({ ...parts, variant: "w" }),
      graphKey({ ...parts, budgets: 'b","l', lanes: "" }),
      graphKey({ ...parts, budgets: "b,l", lanes: "" }),
      graphKey({ ...parts, lanes: "m" }),
    ]);
    assert.equal(keys.size, 7);
    assert.equal(graphKey(parts), graphKey({ ...parts }));
  });
});
