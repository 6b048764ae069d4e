/**
 * NVML through the real FFI: a library compiled for the test stands for the driver's.
 * Needs a C compiler, and the sources, where the library's is.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { openNvmlEnergy } from "../../../../src/execution/cuda/nvml/energy.ts";
import { NvmlError } from "../../../../src/execution/cuda/nvml/errors.ts";
import { FUNCTION_NOT_FOUND, loadNvml } from "../../../../src/execution/cuda/nvml/ffi.ts";
import { NvmlSession } from "../../../../src/execution/cuda/nvml/session.ts";
import { loadKoffi } from "../../../../src/execution/native/library.ts";

const folder = mkdtempSync(join(tmpdir(), "nexus-nvml-"));
after(() => rmSync(folder, { recursive: true }));
const library = join(folder, "libnvidia-ml.so.1");

/** Compiles the library. @returns why it cannot, or null */
function compile(): string | null {
  const koffi = loadKoffi(process.platform, process.arch);
  if (typeof koffi === "string") return koffi;
  // Compiled tests lie in dist/test, their sources in test.
  const path = "test/execution/cuda/nvml/fake-nvml.c";
  const source = fileURLToPath(new URL(`../../../../../${path}`, import.meta.url));
  if (!existsSync(source)) return `there is no ${path}`;
  const { error, status, stderr } = spawnSync(
    "cc",
    ["-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source],
    { encoding: "utf8" },
  );
  if (error !== undefined) return `there is no C compiler (${error.message})`;
  assert.equal(status, 0, stderr);
  return null;
}

const skip = compile() ?? false;

describe("NVML through the FFI", { skip }, () => {
  it("calls, and reads what is written", async () => {
    using session = await NvmlSession.open(loadNvml([library]));
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

  it("answers for entry points that the library does not have as NVML does", async () => {
    const nvml = loadNvml([library]);
    const percent = new Uint32Array(2);
    assert.equal(await nvml.call("nvmlDeviceGetUtilizationRates", 0n, percent), FUNCTION_NOT_FOUND);
  });

  it("keeps slow calls off the event loop", async () => {
    using energy = await openNvmlEnergy("GPU-fake", loadNvml([library]));
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
    using session = await NvmlSession.open(loadNvml([library]));
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
