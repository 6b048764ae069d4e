/**
 * NVML through the real FFI: a library compiled for the test stands for the driver's.
 * Needs a C compiler, and the sources, where the library's is.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceFailedError } from "../../../../src/errors.ts";
import { openNvmlEnergy } from "../../../../src/execution/cuda/nvml/energy.ts";
import { NvmlError } from "../../../../src/execution/cuda/nvml/errors.ts";
import {
  FUNCTION_NOT_FOUND,
  type NvmlLibrary,
  nvmlIn,
} from "../../../../src/execution/cuda/nvml/ffi.ts";
import { NvmlSession } from "../../../../src/execution/cuda/nvml/session.ts";
import { UTILIZATION } from "../../../../src/execution/cuda/nvml/structs.ts";
import { buildFakeNvml } from "./fake-library.ts";

const built = buildFakeNvml();
const skip = typeof built === "string" && built;

function load(): NvmlLibrary {
  assert.ok(typeof built !== "string");
  return nvmlIn(built);
}

describe("NVML through the FFI", { skip }, () => {
  it("calls, and reads what is written", async () => {
    using session = await NvmlSession.open(load());
    assert.equal(await session.use((nvml) => nvml.nvmlVersion()), "13.0.fake");
    const [gpu] = await session.gpus();
    assert.deepEqual([gpu?.index, gpu?.name, gpu?.uuid], [0, "NVIDIA Fake", "GPU-fake"]);
    const { joules, ...rest } = (await gpu?.telemetry()) ?? {};
    assert.deepEqual(rest, {
      watts: 250.5,
      limitWatts: 700,
      celsius: 30,
      smMegahertz: 1000,
      memoryMegahertz: 2000,
      kernelPercent: null,
      memoryPercent: null,
      memoryUsedBytes: 1e9,
      memoryTotalBytes: 150e9,
    });
    assert.ok((joules as number) >= 1000);
  });

  it("reads what an instance is made of, each from its place", async () => {
    using session = await NvmlSession.open(load());
    const attributes = await session.use(async (nvml) =>
      nvml.attributes(await nvml.deviceByIndex(0)),
    );
    assert.deepEqual(attributes, {
      multiprocessors: 16,
      gpuSlices: 6,
      computeSlices: 7,
      memoryMebibytes: 2 ** 33,
    });
  });

  it("says by name what the FFI does not call", async () => {
    const noNumber = "first" as unknown as number;
    const call = load().call("nvmlDeviceGetHandleByIndex_v2", noNumber, new BigUint64Array(1));
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof DeviceFailedError, String(error));
      assert.match(
        error.message,
        /^nvmlDeviceGetHandleByIndex_v2 could not be called: .*nexus doctor/,
      );
      return true;
    });
  });

  it("answers for entry points that the library does not have as NVML does", async () => {
    const nvml = load();
    const percent = new Uint8Array(UTILIZATION.size);
    assert.equal(await nvml.call("nvmlDeviceGetUtilizationRates", 0n, percent), FUNCTION_NOT_FOUND);
  });

  it("keeps slow calls off the event loop", async () => {
    using energy = await openNvmlEnergy("GPU-fake", load());
    const { source } = energy;
    assert.ok(source.available);
    let turns = 0;
    const counting = setInterval(() => turns++, 1);
    const readings = await Promise.all([source.joules(), source.joules(), source.joules()]);
    clearInterval(counting);
    // Each takes 20 ms; a blocked event loop would not turn once.
    assert.ok(turns >= 5, `${turns} turns`);
    const [first = 0, second, third] = readings;
    assert.deepEqual([second, third], [first + 0.5, first + 1]);
  });

  it("turns codes into errors", async () => {
    using session = await NvmlSession.open(load());
    await assert.rejects(
      session.use((nvml) => nvml.deviceByUuid("GPU-other")),
      (error: unknown) => error instanceof NvmlError && /NOT_FOUND/.test(error.message),
    );
    await assert.rejects(
      session.use((nvml) => nvml.name(0n)),
      (error: unknown) => error instanceof NvmlError && /INVALID_ARGUMENT/.test(error.message),
    );
  });
});
