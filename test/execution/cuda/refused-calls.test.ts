/**
 * What the driver refuses, once or for good, costs the step that asked at most: nothing is left behind, and the
 * next one runs.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { OutOfDeviceMemoryError } from "../../../src/errors.ts";
import type { KernelEntry } from "../../../src/execution/cuda/bundle/manifest.ts";
import { openOnDriver } from "../../../src/execution/cuda/device.ts";
import { coverGrid } from "../../../src/execution/cuda/operators/grids.ts";
import type { ComputeBudgets } from "../../../src/execution/device.ts";
import { DeviceTensor } from "../../../src/execution/device-tensor.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { dividingByUse } from "../../support/dividing-by-use.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "../../support/layers.ts";
import { randomFor } from "../../support/seed.ts";
import { EmulatedDriver, openEmulated, shippedManifest } from "./emulator/driver.ts";
import { withEmulated } from "./emulator/harness.ts";
import { hiddenFor } from "./emulator/layers.ts";
import { failed } from "./fake-calls.ts";
import { FakeDriver } from "./fake-driver.ts";
import { enqueue, OPERAND_BYTES, operand, readValue, withFake } from "./harness.ts";

const HIDDEN = 20;
const OUT_OF_MEMORY = 2;
const INVALID_VALUE = 1;
const spec = {
  ...plainSpec(HIDDEN, 1, 6, 2),
  experts: gatedExperts(HIDDEN, 24, { dtype: "bfloat16" }),
};

describe("reads at the same time", () => {
  const small = () => new FakeDriver({ memoryBytes: 256 * 2 ** 20 });

  it("wait for each other where there is no memory for a second one's staging", () =>
    withFake(async ({ device, driver }) => {
      const buffers = [operand(device, 1), operand(device, 2)];
      // Makes the memory for one.
      assert.equal(await readValue(device, buffers[0] as never), 1);
      const { freeBytes } = driver.memoryInfo();
      using _rest = device.allocate(freeBytes - 4 * 2 ** 20, "the rest");
      const values = await Promise.all(buffers.map((buffer) => readValue(device, buffer)));
      assert.deepEqual(values, [1, 2]);
    }, small()));

  it("do so where it is page-locked memory that is refused", () =>
    withFake(async ({ device, driver }) => {
      const buffers = [operand(device, 1), operand(device, 2)];
      assert.equal(await readValue(device, buffers[0] as never), 1);
      driver.fail("allocatePinned", { result: OUT_OF_MEMORY });
      const values = await Promise.all(buffers.map((buffer) => readValue(device, buffer)));
      assert.deepEqual(values, [1, 2]);
    }));
});

describe("a copy into a buffer with a mirror", () => {
  it("is what is read, also behind a launch under way that ends with what it put there itself", () =>
    withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [zero, forty] = [operand(device, 0), operand(device, 40)];
      const output = device.allocate(OPERAND_BYTES, "counts", { mirrored: true });
      const graph = device.capture(stream, () => enqueue(stream, { a: zero, b: zero, output }));
      driver.stalled = true;
      const all = [graph.launch(), device.copy(output, forty, OPERAND_BYTES)];
      driver.stalled = false;
      await Promise.all(all);
      assert.equal(await readValue(device, output), 40);
    }));
});

describe("compute budgets", () => {
  it("that are changed in place and set again are taken", () =>
    withFake(async ({ device, driver }) => {
      const stream = device.createStream({ group: 0, priority: 0 });
      const [zero, output] = [operand(device, 0), operand(device)];
      const budgets = { realisation: "shared" as const, units: [10] };
      const width = async () => {
        device.setComputeBudgets(budgets);
        enqueue(stream, { a: zero, b: zero, output });
        await device.synchronize();
        return driver.launches.at(-1)?.grid.x as number;
      };
      const before = await width();
      budgets.units[0] = 20;
      assert.equal(await width(), 2 * before);
    }));
});

describe("compute budgets like those in force", () => {
  it("cost nothing, whatever object they are in; others are divided anew", () =>
    withFake(async ({ device, driver }) => {
      const given = { realisation: "partitioned", units: [16, 30] } as const;
      const divided = (budgets: ComputeBudgets) => {
        const before = driver.count("createPartitions");
        device.setComputeBudgets(budgets);
        return driver.count("createPartitions") - before;
      };
      assert.equal(divided(given), 1);
      assert.equal(divided({ ...given, units: [...given.units] }), 0);
      const seen = new Proxy(given, {});
      assert.equal(divided(seen), 0);
      assert.equal(divided(new Proxy({ ...given, units: [16, 40] }, {})), 1);
      assert.equal(divided({ ...given, units: [16, 30, 8] }), 1);
    }));
});

describe("a tensor that cannot be written", () => {
  it("leaves no memory behind", () =>
    withFake(
      async ({ device, driver }) => {
        const { allocations } = device.memory();
        driver.fail("allocatePinned", { result: OUT_OF_MEMORY });
        const tensor = { data: new Float32Array(10_000), shape: [100, 100] };
        assert.throws(() => DeviceTensor.fromHost(device, tensor), ofTheHost("writes"));
        assert.equal(device.memory().allocations, allocations);
      },
      new FakeDriver({ readsPageable: true }),
    ));
});

describe("page-locked memory that runs out", () => {
  it("is the host's, and asked for by size and use; the device goes on", () =>
    withFake(async ({ core, device, driver }) => {
      const refuse = () => driver.fail("allocatePinned", { result: OUT_OF_MEMORY });
      refuse();
      const large = 1_000_000;
      assert.throws(
        () => device.allocate(large, "counts", { mirrored: true }),
        ofTheHost("mirrors", large),
      );
      refuse();
      assert.throws(() => core.arena.allocate(large), ofTheHost("kernel launches", large));
      const buffer = operand(device, 3);
      refuse();
      await assert.rejects(readValue(device, buffer), ofTheHost("staging"));
      assert.equal(await readValue(device, buffer), 3);
    }));

  it("is a reason for the CPU where a device is being opened, as is the GPU's", async () => {
    for (const call of ["allocatePinned", "allocate"] as const) {
      const driver = new EmulatedDriver();
      // The allocator tries twice.
      driver[call] = () => {
        throw failed(call, OUT_OF_MEMORY);
      };
      await assert.rejects(openOnDriver(driver), {
        name: "DeviceUnavailableError",
        message: /^There is no CUDA device: Cannot allocate \d+ bytes for .*Use "cpu", or "auto"/,
      });
      assert.deepEqual(driver.live, {});
    }
  });
});

/** An error about memory of the host that is for this use, and of at least so many bytes. */
function ofTheHost(label: string, bytes = 1) {
  return (error: unknown) => {
    assert.ok(error instanceof OutOfDeviceMemoryError, String(error));
    assert.ok(error.requestedBytes >= bytes, `${error.requestedBytes} bytes`);
    const start = `Cannot allocate ${error.requestedBytes} bytes for ${label} in page-locked host memory: `;
    assert.ok(error.message.startsWith(start), error.message);
    assert.match(error.message, /ulimit -l/);
    return true;
  };
}

describe("a grid", () => {
  it("of more blocks along y than CUDA takes is refused", () => {
    const gates = shippedManifest().kernels.filter(({ selects }) => selects["operator"] === "gate");
    const byTokens = gates.find(({ grid }) => grid.y?.of === "most_tokens") as KernelEntry;
    const by = byTokens.grid.y?.by as number;
    const gridOf = (tokens: number) => coverGrid(byTokens, { n: 1, most_tokens: tokens });
    assert.equal(gridOf(65_535 * by).y, 65_535);
    assert.throws(() => gridOf(65_535 * by + 1), {
      name: "InvalidArgumentError",
      message: /65536 blocks along y .* 65535 at most.* fewer tokens/,
    });
  });
});

describe("a layer", () => {
  const parts = randomLayer(randomFor("refused calls"), spec);

  it("whose partitions are refused goes on without, if nobody asked for them", async () => {
    const { driver, device } = await openEmulated();
    let refusals = 0;
    driver.createPartitions = () => {
      refusals += 1;
      throw failed("cuGreenCtxCreate", OUT_OF_MEMORY);
    };
    const kind = "partitioned" as const;
    const policy = dividingByUse(() => ({ realisation: { kind, reason: "it is tried." } }));
    const slices = { policy };
    await using layer = new MoELayer(spec, parts.tensors, { device, streams: 3, slices });
    const hidden = batch(await hiddenFor(randomFor("refused partitions"), parts, 8), HIDDEN);
    let failures = 0;
    for (let step = 0; step < 10; step++) {
      await layer.forward(hidden).catch((error: Error) => {
        assert.match(error.message, /cuGreenCtxCreate/);
        failures += 1;
      });
    }
    assert.equal(refusals, 1, "partitions were tried again");
    assert.equal(failures, 1);
    assert.equal((await layer.plan).realisation, "shared");
    assert.match((await layer.plan).realisationReason, /refused/);
    await layer.close();
    await device.close();
    assert.deepEqual([driver.violations, driver.live], [[], {}]);
  });

  it("whose graph is refused runs its steps as before, and captures once there is room", () =>
    withEmulated(async (device, driver) => {
      await using layer = new MoELayer(spec, parts.tensors, { device });
      const hidden = batch(await hiddenFor(randomFor("refused graph"), parts, 8), HIDDEN);
      const modes: string[] = [];
      const step = async () => modes.push((await layer.forward(hidden)).stats.mode);
      await step();
      driver.fail("instantiateGraph", { result: OUT_OF_MEMORY });
      await step();
      for (let i = 0; i < 3; i++) await step();
      assert.deepEqual(modes, ["eager", "eager", "eager", "captured", "replayed"]);
    }));

  it("whose step cannot be recorded says why, whatever else was wrong with it", () =>
    withEmulated(async (device, driver) => {
      await using layer = new MoELayer(spec, parts.tensors, { device });
      await layer.ready();
      driver.fail("encodeTensorMap", { result: INVALID_VALUE });
      const bad = batch(new Float32Array(40 * HIDDEN).fill(Number.NaN), HIDDEN);
      await assert.rejects(layer.forward(bad), /encodeTensorMap/);
    }));
});
