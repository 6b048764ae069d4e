/** Faults, failures, closing things in use, and leaks: every device in here must leave nothing behind. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
  InvalidLogitsError,
  OutOfDeviceMemoryError,
} from "../../../src/errors.ts";
import { openCudaDevice, openOnDriver } from "../../../src/execution/cuda/device.ts";
import type { Driver } from "../../../src/execution/cuda/driver/driver.ts";
import type { Graph, Projection, Stream } from "../../../src/execution/device.ts";
import { FakeDriver } from "./fake-driver.ts";
import { enqueue, type FakeDevice, openFake, operand, readValue, withFake } from "./harness.ts";

/** A graph of two streams that sets `output` to 1, and a way to enqueue the same eagerly. */
function small({ device }: FakeDevice, faultyRow?: number) {
  const [main, side] = [0, 1].map((group) => device.createStream({ group, priority: group })) as [
    Stream,
    Stream,
  ];
  const [zero, between, output] = [operand(device, 0), operand(device), operand(device)];
  const [forked, joined] = [device.createEvent("forked"), device.createEvent("joined")];
  const record = () => {
    main.record(forked);
    side.wait(forked);
    enqueue(side, { a: zero, b: zero, output: between });
    side.record(joined);
    main.wait(joined);
    enqueue(main, {
      a: between,
      b: zero,
      output,
      beside: device.allocate(16, "copy"),
      ...(faultyRow !== undefined && { faultyRow }),
    });
  };
  return { main, output, between, record, capture: () => device.capture(main, record) };
}

describe("faults", () => {
  it("reject the launch that finds them and no other", async () => {
    await withFake(async (fake) => {
      const good = small(fake).capture();
      const bad = small(fake, 7).capture();
      for (let round = 0; round < 5; round++) {
        const outcomes = await Promise.allSettled([
          good.launch(),
          bad.launch(),
          good.launch(),
          bad.launch(),
        ]);
        assert.deepEqual(
          outcomes.map((outcome) => outcome.status),
          ["fulfilled", "rejected", "fulfilled", "rejected"],
        );
        for (const outcome of outcomes) {
          if (outcome.status === "fulfilled") continue;
          assert.ok(outcome.reason instanceof InvalidLogitsError);
          assert.equal(outcome.reason.row, 7);
        }
      }
      small(fake, 3).record();
      await assert.rejects(fake.device.synchronize(), InvalidLogitsError);
      await fake.device.synchronize();
    });
  });
});

describe("a failure of the GPU", () => {
  const CALLS: readonly (keyof Driver)[] = ["launchGraph", "recordEvent", "eventDone"];
  for (const call of CALLS) {
    it(`in ${call} ends the device, with everything in flight`, async () => {
      const driver = new FakeDriver();
      const fake = openFake(driver);
      const { capture, main, output } = small(fake);
      const graph = capture();
      await graph.launch();
      driver.fail(call, { result: 719 });
      const outcomes = await Promise.allSettled([
        graph.launch(),
        graph.launch(),
        fake.device.read(output, new Float32Array(4)),
        fake.device.synchronize(),
      ]);
      for (const outcome of outcomes) {
        assert.ok(outcome.status === "rejected", call);
        assert.ok(outcome.reason instanceof DeviceFailedError, String(outcome.reason));
        assert.match(outcome.reason.message, /719/);
      }
      await refusesEverything(fake, graph, main, DeviceFailedError);
      await fake.device.close();
      await fake.device.close();
      assert.deepEqual(driver.live, {});
    });
  }

  it("in an eager kernel ends it too", async () => {
    const driver = new FakeDriver();
    const fake = openFake(driver);
    const { record, main, capture } = small(fake);
    const graph = capture();
    record();
    driver.fail("launchKernel", { skip: 1 });
    await assert.rejects(fake.device.synchronize(), DeviceFailedError);
    await refusesEverything(fake, graph, main, DeviceFailedError);
    await fake.device.close();
    assert.deepEqual(driver.live, {});
  });

  it("in freeing what was closed ends it as well", async () => {
    const driver = new FakeDriver();
    const fake = openFake(driver);
    const { capture, main } = small(fake);
    const [graph, other] = [capture(), capture()];
    await graph.launch();
    driver.fail("destroyGraphExec", { result: 400 });
    const launched = other.launch();
    graph[Symbol.dispose]();
    await launched;
    await refusesEverything(fake, other, main, DeviceFailedError);
    await fake.device.close();
    assert.deepEqual(driver.live, {});
  });

  it("that loses the context ends it, and closing still frees what is left", async () => {
    const driver = new FakeDriver();
    const fake = openFake(driver);
    const { capture, main } = small(fake);
    const graph = capture();
    const launches = [graph.launch(), graph.launch()];
    driver.breakDown();
    for (const outcome of await Promise.allSettled(launches)) {
      assert.ok(outcome.status === "rejected" && outcome.reason instanceof DeviceFailedError);
      assert.match(outcome.reason.message, /ILLEGAL_ADDRESS|700/);
    }
    await refusesEverything(fake, graph, main, DeviceFailedError);
    await fake.device.close();
    assert.deepEqual(driver.live, {});
  });
});

describe("a capture that fails", () => {
  const CALLS: readonly (keyof Driver)[] = [
    "beginCapture",
    "launchKernel",
    "recordEvent",
    "waitEvent",
    "copyOnDevice",
    "lastCapturedNode",
    "createStream",
    "createEvent",
    "endCapture",
    "instantiateGraph",
    "uploadGraph",
  ];
  for (const call of CALLS) {
    it(`in ${call} leaves the device as it was`, async () => {
      await withFake(async (fake) => {
        const { capture, output } = small(fake);
        await fake.device.synchronize();
        const before = fake.driver.live;
        for (let i = 0; i < 200; i++) {
          fake.driver.fail(call);
          assert.throws(capture, DeviceFailedError);
        }
        const after = fake.driver.live;
        // Launches are written down in pinned memory.
        assert.ok((after["pinned"] ?? 0) <= (before["pinned"] ?? 0) + 1);
        assert.equal(after["graphs"], before["graphs"]);
        assert.equal(after["execs"], before["execs"]);
        const graph = capture();
        await graph.launch();
        assert.equal(await readValue(fake.device, output), 1.5);
      });
    });
  }
});

describe("closing", () => {
  it("a buffer makes what uses it refuse to run, and spoils no other memory", async () => {
    await withFake(async (fake) => {
      const { device } = fake;
      const { capture, record, between, output } = small(fake);
      const graph = capture();
      record();
      const inFlight = graph.launch();
      const queued = graph.launch();
      between[Symbol.dispose]();
      between[Symbol.dispose]();
      // Submitted before: runs to its end on memory that is still its own.
      const others = Array.from({ length: 20 }, () => operand(device, 5));
      await inFlight;
      await queued;
      for (const other of others) assert.equal(await readValue(device, other), 5);
      assert.equal(await readValue(device, output), 1.5);
      const closed = (error: unknown) =>
        error instanceof DisposedError && /"operand", which the work uses/.test(error.message);
      await assert.rejects(graph.launch(), closed);
      await assert.rejects(device.synchronize(), closed);
      assert.throws(capture, /Buffer "operand" is closed/);
      assert.throws(() => device.write(between, new Uint8Array(1)), DisposedError);
      await assert.rejects(device.read(between, new Uint8Array(1)), DisposedError);
      await device.synchronize();
    });
  });

  it("a graph while it runs lets it run", async () => {
    await withFake(async ({ ...fake }) => {
      const { capture, output } = small(fake);
      const graph = capture();
      const launches = [graph.launch(), graph.launch()];
      graph[Symbol.dispose]();
      graph[Symbol.dispose]();
      assert.equal(fake.driver.live["execs"], 1);
      await Promise.all(launches);
      assert.equal(await readValue(fake.device, output), 1.5);
      assert.deepEqual(
        [fake.driver.live["execs"], fake.driver.live["graphs"]],
        [undefined, undefined],
      );
      await assert.rejects(graph.launch(), /The graph is closed/);
    });
  });

  it("the device rejects what is under way, and all that comes later", async () => {
    const driver = new FakeDriver();
    const fake = openFake(driver);
    const { capture, main, output } = small(fake);
    const graph = capture();
    const pending = [graph.launch(), graph.launch(), fake.device.read(output, new Float32Array(4))];
    const closing = Promise.all([fake.device.close(), fake.device.close()]);
    for (const outcome of await Promise.allSettled(pending)) {
      assert.ok(outcome.status === "rejected" && outcome.reason instanceof DisposedError);
    }
    await closing;
    assert.deepEqual(driver.live, {});
    await refusesEverything(fake, graph, main, DisposedError);
    await fake.device.close();
  });

  it("gives memory back, and takes attached memory along", async () => {
    await withFake(async ({ core, device }) => {
      const before = device.memory();
      const parent = core.allocate(1000, "parent", { mirrored: true });
      const child = core.scratch(2000, "child");
      parent.attach(child);
      assert.equal(device.memory().allocations, before.allocations + 2);
      parent[Symbol.dispose]();
      assert.equal(child.closed, true);
      await device.synchronize();
      const { peakBytes, ...after } = device.memory();
      assert.deepEqual({ ...after, peakBytes: before.peakBytes }, before);
      assert.ok(peakBytes >= before.usedBytes + 3000);
    });
  });

  it("many devices, graphs and launches leaves nothing growing", async () => {
    await withFake(async (fake) => {
      const { capture, output } = small(fake);
      for (let i = 0; i < 100; i++) {
        using graph = capture();
        await graph.launch();
        fake.device.write(output, new Float32Array(4));
      }
      await fake.device.synchronize();
      const before = fake.driver.live;
      for (let i = 0; i < 50; i++) {
        using graph = capture();
        await Promise.all([graph.launch(), graph.launch()]);
        fake.device.write(output, new Float32Array(4));
      }
      await fake.device.synchronize();
      for (let i = 0; i < 1000; i++) capture()[Symbol.dispose]();
      // Every capture of `small` allocates a buffer for its copy.
      const { allocations: a, ...rest } = fake.driver.live;
      const { allocations: b, ...first } = before;
      assert.deepEqual(rest, first);
      assert.ok((a ?? 0) - (b ?? 0) <= 1050);
    });
  });
});

describe("opening", () => {
  it("says what is wrong with its options", async () => {
    for (const ordinal of [-1, 0.5, Number.NaN]) {
      await assert.rejects(openCudaDevice({ ordinal }), /ordinal is .* whole number/);
    }
    await assert.rejects(openCudaDevice({ float32: "fp8" as "ieee" }), InvalidArgumentError);
  });

  it("says which GPUs there are", async () => {
    const driver = new FakeDriver();
    const before = process.env["CUDA_VISIBLE_DEVICES"];
    try {
      driver.gpus = 0;
      process.env["CUDA_VISIBLE_DEVICES"] = "";
      await unavailable(driver, {}, /no GPU is visible.*CUDA_VISIBLE_DEVICES is ""/);
      delete process.env["CUDA_VISIBLE_DEVICES"];
      await unavailable(driver, {}, /no GPU is visible.*nvidia-smi/);
      driver.gpus = 2;
      await unavailable(driver, { ordinal: 2 }, /no GPU 2, only 2/);
    } finally {
      if (before !== undefined) process.env["CUDA_VISIBLE_DEVICES"] = before;
    }
    const old = new FakeDriver({ name: "Old GPU", capability: [7, 5] });
    await unavailable(old, {}, /Old GPU has compute capability 7\.5/);
  });

  it("refuses a GPU that takes no kernel, by kernel and file, and leaves nothing behind", async () => {
    for (const call of ["loadModule", "getFunction"] as const) {
      const driver = new FakeDriver();
      driver.fail(call, { result: 209 });
      await unavailable(driver, {}, /Kernel tidy of .*sm_90a\S* cannot be loaded: .*reinstall/);
      // What is lost cannot be unloaded either.
      driver.fail(call, { result: 700 });
      driver.fail("unloadModule", { result: 700 });
      await unavailable(driver, {}, /Kernel tidy of .* cannot be loaded: .*restart the process/);
    }
  });

  it("leaves nothing behind when the driver refuses something", async () => {
    const CALLS: readonly (keyof Driver)[] = [
      "createStream",
      "allocatePinned",
      "allocate",
      "fillBytes",
      "fillWords",
    ];
    for (const call of CALLS) {
      const driver = new FakeDriver();
      driver.fail(call);
      assert.throws(() => openFake(driver), DeviceFailedError, call);
      assert.deepEqual(driver.live, {}, call);
    }
  });
});

async function unavailable(driver: FakeDriver, options: object, pattern: RegExp): Promise<void> {
  await assert.rejects(
    openOnDriver(driver, options),
    (error) => error instanceof DeviceUnavailableError && pattern.test(error.message),
  );
  assert.deepEqual(driver.live, {});
}

/** Every public call of a device that is over gives the reason. */
async function refusesEverything(
  { device }: FakeDevice,
  graph: Graph,
  stream: Stream,
  type: typeof DeviceFailedError | typeof DisposedError,
): Promise<void> {
  assert.equal(device.closed, true);
  const spec = { count: 1, inputs: 1, outputs: 1, dtype: "float32", input: "float32" } as const;
  for (const call of [
    () => device.allocate(4, "x"),
    () => device.createStream({ group: 0, priority: 0 }),
    () => device.createEvent("x"),
    () => device.setComputeBudgets({ realisation: "shared", units: [] }),
    () => device.createProjection({ ...spec, output: "rows", gated: false, bias: false }, "x"),
  ]) {
    assert.throws(call, type);
  }
  assert.throws(() => device.capture(stream, () => {}), DisposedError);
  await assert.rejects(graph.launch(), type);
  await assert.rejects(device.synchronize(), type);
  await assert.rejects(device.time(graph, 1), type);
  await assert.rejects(device.fillUniform({} as Projection, 1, 1), type);
  graph[Symbol.dispose]();
  stream[Symbol.dispose]();
}

describe("memory", () => {
  it("that is not there is refused with the sizes", async () => {
    await withFake(
      async ({ device }) => {
        const buffer = device.allocate(2 ** 20, "first");
        assert.throws(
          () => device.allocate(2 ** 40, "weights of layer 3"),
          (error) =>
            error instanceof OutOfDeviceMemoryError &&
            error.requestedBytes >= 2 ** 40 &&
            /weights of layer 3/.test(error.message),
        );
        for (const size of [-1, 0.5, Number.NaN]) {
          assert.throws(() => device.allocate(size, "x"), InvalidArgumentError);
        }
        device.write(buffer, Float32Array.of(1));
        await device.synchronize();
      },
      new FakeDriver({ memoryBytes: 2 ** 24 }),
    );
  });
});
