/** NVML sessions, readings and errors, against an NVML made of JavaScript. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import {
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
} from "../../../../src/errors.ts";
import { Nvml } from "../../../../src/execution/cuda/nvml/checked.ts";
import { NvmlError } from "../../../../src/execution/cuda/nvml/errors.ts";
import { loadNvml, type NvmlCall } from "../../../../src/execution/cuda/nvml/ffi.ts";
import { NvmlSession } from "../../../../src/execution/cuda/nvml/session.ts";
import { CODE, FakeNvml, h200, smallInstance } from "./fake-nvml.ts";

const failsWith = (call: NvmlCall, name: string) => (error: unknown) => {
  assert.ok(error instanceof NvmlError && error instanceof DeviceFailedError, String(error));
  assert.deepEqual([error.call, error.nvmlCode], [call, `NVML_ERROR_${name}`]);
  assert.match(error.message, new RegExp(`^${call} failed with NVML_ERROR_${name}\\. .+\\.$`));
  return true;
};

describe("a session", () => {
  it("is one init and one shutdown, however often it is closed", async () => {
    const library = new FakeNvml(h200());
    const first = await NvmlSession.open(library);
    const second = await NvmlSession.open(library);
    assert.equal(library.sessions, 2);
    first.close();
    first.close();
    first[Symbol.dispose]();
    await nextTurn();
    assert.equal(library.sessions, 1);
    assert.equal(first.closed, true);
    assert.equal((await second.gpus()).length, 1);
    second.close();
    await nextTurn();
    assert.equal(library.sessions, 0);
  });

  it("refuses calls once it is closed", async () => {
    const session = await NvmlSession.open(new FakeNvml(h200()));
    const [gpu] = await session.gpus();
    session.close();
    await assert.rejects(session.gpus(), DisposedError);
    await assert.rejects(gpu?.totalJoules() as Promise<number>, DisposedError);
  });

  it("shuts down only when the calls under way are back", async () => {
    const library = new FakeNvml(h200());
    const session = await NvmlSession.open(library);
    const [gpu] = await session.gpus();
    let open = () => {};
    library.gate = new Promise((resolve) => {
      open = resolve;
    });
    const reading = gpu?.totalJoules();
    session.close();
    await nextTurn();
    assert.equal(library.count("nvmlShutdown"), 0);
    open();
    assert.equal(await reading, 5_000_000_000.123);
    await nextTurn();
    assert.equal(library.count("nvmlShutdown"), 1);
  });

  it("does not mind a shutdown that fails", async () => {
    const library = new FakeNvml();
    library.failing.set("nvmlShutdown", CODE.GPU_IS_LOST);
    (await NvmlSession.open(library)).close();
    await nextTurn();
    assert.equal(library.count("nvmlShutdown"), 1);
  });

  it("says why it cannot be opened", async () => {
    const library = new FakeNvml();
    library.failing.set("nvmlInit_v2", CODE.DRIVER_NOT_LOADED);
    await assert.rejects(NvmlSession.open(library), failsWith("nvmlInit_v2", "DRIVER_NOT_LOADED"));
  });

  it("finds a GPU by its UUID and by that of an instance, whatever the prefix", async () => {
    const gpu = {
      ...h200(1),
      mig: { current: true, pending: true, places: [null, smallInstance] },
    };
    const library = new FakeNvml(h200(0), gpu);
    const session = await NvmlSession.open(library);
    const bare = (uuid: string) => uuid.slice("GPU-".length);
    for (const uuid of [gpu.uuid, bare(gpu.uuid)]) {
      const found = await session.locate(uuid);
      assert.deepEqual([found.gpu.index, found.isInstance], [1, false], uuid);
      assert.deepEqual([found.gpu.uuid, found.gpu.name], [gpu.uuid, "NVIDIA H200"]);
    }
    // CUDA gives the UUID of an instance without saying that it is one.
    for (const uuid of [smallInstance.uuid, `GPU-${bare(smallInstance.uuid)}`]) {
      const found = await session.locate(uuid);
      assert.deepEqual([found.gpu.uuid, found.isInstance], [gpu.uuid, true], uuid);
    }
    await assert.rejects(
      session.locate("GPU-nobody"),
      failsWith("nvmlDeviceGetHandleByUUID", "NOT_FOUND"),
    );
    library.failing.set("nvmlDeviceGetHandleByUUID", CODE.GPU_IS_LOST);
    await assert.rejects(
      session.locate(gpu.uuid),
      failsWith("nvmlDeviceGetHandleByUUID", "GPU_IS_LOST"),
    );
  });
});

describe("readings", () => {
  it("come in watts, joules, degrees and bytes", async () => {
    const session = await NvmlSession.open(new FakeNvml(h200()));
    const [gpu] = await session.gpus();
    assert.deepEqual(await gpu?.telemetry(), {
      watts: 75.5,
      limitWatts: 700,
      joules: 5_000_000_000.123,
      celsius: 31,
      smMegahertz: 1980,
      memoryMegahertz: 3201,
      kernelPercent: 98,
      memoryPercent: 61,
      memoryUsedBytes: 1e9,
      memoryTotalBytes: 150e9,
    });
    assert.equal(await session.use((nvml) => nvml.driverVersion()), "580.95.05");
    assert.equal(await session.use((nvml) => nvml.nvmlVersion()), "13.580.95.05");
  });

  it("are null one by one where this GPU, driver or user cannot have them", async () => {
    const library = new FakeNvml(h200());
    library.failing.set("nvmlDeviceGetTotalEnergyConsumption", CODE.NOT_SUPPORTED);
    library.failing.set("nvmlDeviceGetUtilizationRates", CODE.NO_PERMISSION);
    library.failing.set("nvmlDeviceGetEnforcedPowerLimit", CODE.FUNCTION_NOT_FOUND);
    const session = await NvmlSession.open(library);
    const [gpu] = await session.gpus();
    const { joules, kernelPercent, memoryPercent, limitWatts, watts } =
      (await gpu?.telemetry()) ?? {};
    assert.deepEqual(
      [joules, kernelPercent, memoryPercent, limitWatts, watts],
      [null, null, null, null, 75.5],
    );
    library.failing.set("nvmlDeviceGetTemperature", CODE.GPU_IS_LOST);
    await assert.rejects(
      gpu?.telemetry() as Promise<unknown>,
      failsWith("nvmlDeviceGetTemperature", "GPU_IS_LOST"),
    );
  });
});

describe("errors", () => {
  it("have a name and a remedy for every code, and a number for those unheard of", async () => {
    const library = new FakeNvml();
    const nvml = new Nvml(library);
    for (const code of [...Array.from({ length: 29 }, (_, i) => i + 1), 999, 4711]) {
      library.failing.set("nvmlDeviceGetCount_v2", code);
      await assert.rejects(nvml.deviceCount(), (error: unknown) => {
        assert.ok(error instanceof NvmlError);
        assert.match(error.message, /^nvmlDeviceGetCount_v2 failed with .+\. [A-Z].+\.$/);
        return true;
      });
    }
    assert.match(new NvmlError("nvmlInit_v2", 4711).message, /NVML code 4711/);
  });

  it("of a library that is not there name what was looked for", () => {
    assert.throws(
      () => loadNvml(["/nowhere/libnvidia-ml.so.1"]),
      (error: unknown) => {
        assert.ok(error instanceof DeviceUnavailableError);
        assert.match(error.message, /^No NVML: \/nowhere\/libnvidia-ml\.so\.1/);
        assert.match(error.message, /NVIDIA_DRIVER_CAPABILITIES/);
        return true;
      },
    );
  });
});
