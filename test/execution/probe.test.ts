/** The report on made-up machines, and its probes of runtime and processor. Those of GPUs are in probe/. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { GpuFindings } from "../../src/execution/probe/gpu-findings.ts";
import type { Host } from "../../src/execution/probe/host.ts";
import { type Check, probeMachine, reportOnCpu, reportOnGpu } from "../../src/execution/probe.ts";
import {
  check,
  GIB,
  gpuFiles,
  look,
  machine,
  missing,
  noDriver,
  report,
  working,
} from "./probe/machines.ts";

describe("the report", () => {
  it("is plain: survives JSON, names are unique, whatever is missing has a remedy", () => {
    const { device: _, ...noDevice } = working;
    for (const [host, findings] of [
      [machine(), noDriver],
      [machine({}, { platform: "darwin" }), { ffi: { ok: false, reason: "no FFI" } }],
      [machine(gpuFiles(2)), working],
      [machine(gpuFiles(2)), noDriver],
      [machine(gpuFiles(1)), {}],
      [machine(gpuFiles(1)), { ...noDevice, stopped: { during: "a", how: "b" } }],
    ] as [Host, GpuFindings][]) {
      const found = report(host, findings);
      assert.deepEqual(JSON.parse(JSON.stringify(found)), found);
      assert.equal(new Set(found.checks.map((one) => one.name)).size, found.checks.length);
      for (const one of found.checks) {
        assert.ok(one.found !== "" && one.use !== "", one.name);
        if (one.status === "missing" || one.status === "absent") {
          assert.ok(one.remedy, `${one.name} has no remedy`);
        }
        if (one.status === "missing") assert.doesNotMatch(one.remedy ?? "", /^None is needed/);
        if (one.status === "ok") assert.equal(one.remedy, undefined, one.name);
      }
    }
  });

  it("lets a machine without a GPU run", () => {
    const found = report(machine());
    assert.equal(found.canRun, true);
    assert.equal(
      found.summary,
      `Nexus runs here on the CPU: 8 threads, relaxed SIMD kernels. No CUDA because ${missing}.`,
    );
  });

  it("tells the truth about the machine it runs on", async () => {
    const found = await probeMachine();
    assert.equal(found.canRun, true, found.summary);
    const relaxed = Number(process.versions.node.split(".")[0]) >= 22;
    assert.equal(check(found, "relaxed SIMD").status, relaxed ? "ok" : "missing");
    assert.match(check(found, "Node.js").found, new RegExp(`^${process.version} on `));
  });
});

describe("the report on the CPU alone", () => {
  it("says nothing of GPUs, and whether the CPU will do", () => {
    const found = reportOnCpu(machine(gpuFiles(1)));
    assert.equal(found.canRun, true);
    assert.equal(found.summary, "Nexus runs here on the CPU: 8 threads, relaxed SIMD kernels.");
    assert.deepEqual(
      found.checks.filter((one) => /GPU|CUDA|NVML|MIG|native|green/.test(one.name)),
      [],
    );
    assert.equal(check(found, "WebAssembly SIMD").status, "ok");
    assert.equal(check(found, "RAPL").status, "missing");
  });

  it("does not let a GPU stand in for SIMD", () => {
    const found = reportOnCpu(machine(gpuFiles(1), { validatesWasm: () => false }));
    assert.equal(found.canRun, false);
    assert.equal(found.summary, "Nexus cannot run here on the CPU: see WebAssembly SIMD.");
  });
});

describe("the report on the GPU alone", () => {
  it("says of one that works what the whole report says, and no more", () => {
    const host = machine(gpuFiles(1), { validatesWasm: () => false });
    const found = reportOnGpu(host, working);
    const whole = report(host, working);
    assert.deepEqual([found.canRun, found.summary], [true, whole.summary]);
    const cpu = reportOnCpu(host).checks.slice(1);
    const isOfCpu = ({ name }: Check) => cpu.some((one) => one.name === name);
    assert.deepEqual(
      found.checks,
      whole.checks.filter((one) => !isOfCpu(one)),
    );
  });

  it("cannot run without one, and misses what another report would call absent", () => {
    const found = reportOnGpu(machine(), noDriver);
    assert.equal(found.canRun, false);
    assert.equal(found.summary, `Nexus cannot run here on a GPU because ${missing}.`);
    for (const { name, status, use, remedy = "" } of found.checks) {
      assert.notEqual(status, "absent", name);
      assert.doesNotMatch(`${use} ${remedy}`, /the CPU device|None is needed/, name);
    }
    assert.match(check(found, "GPU").remedy ?? "", /^CUDA takes one\. .*--gpus all/);
    assert.match(check(found, "CUDA library").remedy ?? "", /^Install NVIDIA's driver, 525/);
  });

  it("promises no CPU device beside a GPU that does not open", () => {
    const device = { ok: false, reason: "it is broken." } as const;
    const found = reportOnGpu(machine(gpuFiles(1)), { ...working, device });
    assert.equal(found.summary, "Nexus cannot run here on a GPU because it is broken.");
    assert.equal(check(found, "GPU 0").use, "nothing");
    assert.ok(found.checks.every((one) => !one.use.includes("the CPU device")));
  });

  it("needs Node.js as well", () => {
    const found = reportOnGpu(machine(gpuFiles(1), { nodeVersion: "v18.0.0" }), working);
    assert.equal(found.canRun, false);
    assert.equal(found.summary, "Nexus cannot run here on a GPU: see Node.js.");
  });
});

describe("runtime probes", () => {
  it("draws the line at Node 20.19", () => {
    const versions = { "v20.19.0": true, "v20.18.9": false, "v18.20.0": false, "v22.0.0": true };
    for (const [nodeVersion, supported] of Object.entries(versions)) {
      const found = report(machine({}, { nodeVersion }));
      assert.equal(found.canRun, supported, nodeVersion);
      assert.equal(check(found, "Node.js").remedy === undefined, supported);
    }
  });

  it("offers modules that differ, and whose bytes are all there", () => {
    const modules: Uint8Array<ArrayBuffer>[] = [];
    report(
      machine(
        {},
        { validatesWasm: (module) => modules.push(module) > 0 && WebAssembly.validate(module) },
      ),
    );
    const simd = modules[0] as Uint8Array<ArrayBuffer>;
    assert.ok(WebAssembly.validate(simd));
    assert.ok(!WebAssembly.validate(simd.slice(0, -1)));
    assert.ok(modules.some((module) => module.length > simd.length));
  });

  it("cannot run without SIMD, and names the check at fault", () => {
    const found = report(machine({}, { validatesWasm: () => false }));
    assert.equal(found.canRun, false);
    assert.match(found.summary, /cannot run here: see WebAssembly SIMD/);
    assert.equal(check(found, "WebAssembly SIMD").status, "missing");
  });

  it("falls back to plain SIMD", () => {
    const sizes = new Set<number>();
    report(machine({}, { validatesWasm: (module) => sizes.add(module.length).size > 0 }));
    const smallest = Math.min(...sizes);
    const found = report(machine({}, { validatesWasm: (module) => module.length === smallest }));
    assert.equal(found.canRun, true);
    assert.match(found.summary, /plain SIMD kernels/);
    assert.equal(check(found, "relaxed SIMD").status, "missing");
  });
});

describe("processor probes", () => {
  it("copes with a system that does not name its processor", () => {
    assert.match(look("CPU", {}, { cpuModel: null, arch: "arm64" }).found, /^arm64 processor/);
  });

  it("reports affinity and quotas that leave cores unused", () => {
    assert.equal(look("worker threads").status, "ok");
    const pinned = look("worker threads", {}, { usableCores: 2 });
    assert.equal(pinned.status, "limited");
    assert.match(pinned.found, /2 of 8/);
    const file = "/sys/fs/cgroup/cpu.max";
    const throttled = look("worker threads", { [file]: "250000 100000\n" });
    assert.equal(throttled.status, "limited");
    assert.match(throttled.found, /time for 2\.5/);
    assert.equal(look("worker threads", { [file]: "max 100000\n" }).status, "ok");
    assert.equal(look("worker threads", { [file]: "1600000 100000\n" }).status, "ok");
  });

  it("reports memory and its limit", () => {
    assert.equal(look("memory").found, "64.0 GiB");
    assert.match(look("memory").use, /4\.0 GiB at most/);
    assert.match(look("memory", {}, { memoryBytes: 2 * GIB }).use, /2\.0 GiB at most/);
    const limited = look("memory", {}, { memoryLimitBytes: 4 * GIB });
    assert.equal(limited.status, "limited");
    assert.match(limited.found, /4\.0 GiB allowed .* of 64\.0 GiB/);
  });

  it("reports the last-level cache that the device counts on", () => {
    const files: Record<string, string> = {};
    for (const [index, level, size] of [
      [0, 1, "32K"],
      [2, 2, "1024K"],
      [3, 3, "32768K"],
    ]) {
      files[`/sys/devices/system/cpu/cpu0/cache/index${index}/level`] = `${level}\n`;
      files[`/sys/devices/system/cpu/cpu0/cache/index${index}/size`] = `${size}\n`;
    }
    assert.equal(look("last-level cache", files).found, "32 MiB");
    assert.equal(look("last-level cache").status, "missing");
  });

  it("reports RAPL with its reason and its remedy apart", () => {
    const powercap = "/sys/class/powercap/intel-rapl:0";
    const files = {
      [`${powercap}/name`]: "package-0\n",
      [`${powercap}/energy_uj`]: "5\n",
      [`${powercap}/max_energy_range_uj`]: "100\n",
    };
    assert.deepEqual([look("RAPL", files).status, look("RAPL", files).found], ["ok", "package-0"]);
    const missing = look("RAPL");
    assert.equal(missing.status, "missing");
    assert.match(missing.found, /virtual machine/);
    assert.match(missing.remedy ?? "", /CONFIG_POWERCAP/);
  });
});
