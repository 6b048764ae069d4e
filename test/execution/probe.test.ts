/** The probes on made-up machines: a folder that stands for the root, and facts to go with it. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, it } from "node:test";
import { type Host, thisHost } from "../../src/execution/probe/host.ts";
import { type Check, type MachineReport, probeMachine } from "../../src/execution/probe.ts";

const folder = mkdtempSync(join(tmpdir(), "nexus-probe-"));
after(() => rmSync(folder, { recursive: true }));
let machines = 0;

const GIB = 2 ** 30;
const cudaLibrary = "/usr/lib/x86_64-linux-gnu/libcuda.so.1";
const nvml = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1";

/** A plain Linux machine with eight cores and nothing else, plus what is given. */
function machine(files: Record<string, string> = {}, facts: Partial<Host> = {}): Host {
  const root = join(folder, String(machines++));
  mkdirSync(root);
  for (const [path, text] of Object.entries(files)) {
    const file = join(root, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
  return {
    platform: "linux",
    arch: "x64",
    nodeVersion: "v24.1.0",
    cpuModel: "Test CPU",
    cores: 8,
    usableCores: 8,
    memoryBytes: 64 * GIB,
    memoryLimitBytes: null,
    env: {},
    validatesWasm: () => true,
    root,
    ...facts,
  };
}

function check(report: MachineReport, name: string): Check {
  const found = report.checks.find((one) => one.name === name);
  assert.ok(found, `no check called ${name}`);
  return found;
}

const look = (name: string, files: Record<string, string> = {}, facts: Partial<Host> = {}) =>
  check(probeMachine(machine(files, facts)), name);

/** The files of a machine with `count` H200s, as driver 580 leaves them. */
function gpuFiles(count: number): Record<string, string> {
  const files: Record<string, string> = {
    "/proc/driver/nvidia/version":
      "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)  Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc version 12.3.0\n",
    "/dev/nvidiactl": "",
    [cudaLibrary]: "",
    [nvml]: "",
  };
  for (let gpu = 0; gpu < count; gpu++) {
    files[`/proc/driver/nvidia/gpus/0000:0${gpu}:00.0/information`] =
      `Model: \t\t NVIDIA H200\nIRQ:   \t\t 100\nGPU UUID: \t GPU-0\n`;
    files[`/dev/nvidia${gpu}`] = "";
  }
  return files;
}

describe("the report", () => {
  it("is plain: survives JSON, names are unique, whatever is missing has a remedy", () => {
    for (const host of [machine(), machine(gpuFiles(2)), machine({}, { platform: "darwin" })]) {
      const report = probeMachine(host);
      assert.deepEqual(JSON.parse(JSON.stringify(report)), report);
      assert.equal(new Set(report.checks.map((one) => one.name)).size, report.checks.length);
      for (const one of report.checks) {
        assert.ok(one.found !== "" && one.use !== "", one.name);
        if (one.status === "missing") assert.ok(one.remedy, `${one.name} has no remedy`);
        if (one.status === "ok") assert.equal(one.remedy, undefined, one.name);
      }
    }
  });

  it("lets a machine without a GPU run", () => {
    const report = probeMachine(machine());
    assert.equal(report.canRun, true);
    assert.equal(report.summary, "Nexus runs here on the CPU: 8 threads, relaxed SIMD kernels.");
  });

  it("tells the truth about the machine it runs on", () => {
    const report = probeMachine(thisHost());
    assert.equal(report.canRun, true, report.summary);
    const relaxed = Number(process.versions.node.split(".")[0]) >= 22;
    assert.equal(check(report, "relaxed SIMD").status, relaxed ? "ok" : "missing");
    assert.match(check(report, "Node.js").found, new RegExp(`^${process.version} on `));
  });
});

describe("runtime probes", () => {
  it("draws the line at Node 20.19", () => {
    const versions = { "v20.19.0": true, "v20.18.9": false, "v18.20.0": false, "v22.0.0": true };
    for (const [nodeVersion, supported] of Object.entries(versions)) {
      const report = probeMachine(machine({}, { nodeVersion }));
      assert.equal(report.canRun, supported, nodeVersion);
      assert.equal(check(report, "Node.js").remedy === undefined, supported);
    }
  });

  it("offers modules that differ, and whose bytes are all there", () => {
    const modules: Uint8Array<ArrayBuffer>[] = [];
    probeMachine(
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
    const report = probeMachine(machine({}, { validatesWasm: () => false }));
    assert.equal(report.canRun, false);
    assert.match(report.summary, /cannot run here: see WebAssembly SIMD/);
    assert.equal(check(report, "WebAssembly SIMD").status, "missing");
  });

  it("falls back to plain SIMD", () => {
    const sizes = new Set<number>();
    probeMachine(machine({}, { validatesWasm: (module) => sizes.add(module.length).size > 0 }));
    const smallest = Math.min(...sizes);
    const report = probeMachine(
      machine({}, { validatesWasm: (module) => module.length === smallest }),
    );
    assert.equal(report.canRun, true);
    assert.match(report.summary, /plain SIMD kernels/);
    assert.equal(check(report, "relaxed SIMD").status, "missing");
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

describe("GPU probes", () => {
  it("says of a whole GPU that this build does not use it", () => {
    const report = probeMachine(machine(gpuFiles(2)));
    assert.equal(report.canRun, true);
    assert.match(report.summary, /runs here on the CPU/);
    const gpu = check(report, "GPU");
    assert.deepEqual([gpu.status, gpu.found], ["limited", "2 x NVIDIA H200"]);
    assert.match(gpu.use, /no CUDA device and runs on the CPU/);
    assert.equal(check(report, "GPU driver").found, "580.95.05");
    assert.equal(check(report, "CUDA library").found, cudaLibrary);
    assert.equal(check(report, "NVML").found, nvml);
    assert.equal(check(report, "MIG").status, "missing");
  });

  it("reads the version of the closed driver too", () => {
    const version =
      "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n";
    assert.equal(
      look("GPU driver", { "/proc/driver/nvidia/version": version }).found,
      "535.183.01",
    );
  });

  it("tells what is missing one step at a time", () => {
    const bus = "/sys/bus/pci/devices/0000:01:00.0";
    const onBus = { [`${bus}/vendor`]: "0x10de\n", [`${bus}/class`]: "0x030200\n" };
    assert.match(look("GPU", onBus).found, /1 NVIDIA on the PCI bus, without a driver/);
    assert.match(look("GPU driver", onBus).remedy ?? "", /Install NVIDIA's driver/);
    assert.match(look("CUDA library", onBus).remedy ?? "", /NVIDIA_DRIVER_CAPABILITIES/);

    const { "/dev/nvidia0": _, ...noDevice } = gpuFiles(1);
    assert.match(look("GPU", noDevice).found, /NVIDIA H200, without a device file/);

    assert.equal(look("GPU", { "/dev/nvidia3": "" }).found, "1 of unknown model");
  });

  it("ignores other NVIDIA functions and other vendors on the bus", () => {
    const bus = "/sys/bus/pci/devices";
    const files = {
      [`${bus}/0/vendor`]: "0x10de\n",
      [`${bus}/0/class`]: "0x040300\n",
      [`${bus}/1/vendor`]: "0x1002\n",
      [`${bus}/1/class`]: "0x030000\n",
    };
    assert.equal(look("GPU", files).found, "no NVIDIA GPU");
  });

  it("reports a device file that this user cannot open", () => {
    const host = machine(gpuFiles(1));
    // Root may open anything but what is not there.
    rmSync(join(host.root, "/dev/nvidia0"));
    symlinkSync(join(host.root, "nowhere"), join(host.root, "/dev/nvidia0"));
    assert.match(check(probeMachine(host), "GPU").found, /not readable by this user/);
  });

  it("finds libraries by LD_LIBRARY_PATH, before the usual folders", () => {
    const files = { ...gpuFiles(1), "/opt/driver/libcuda.so.1": "" };
    const env = { LD_LIBRARY_PATH: ":relative:/opt/empty:/opt/driver" };
    assert.equal(look("CUDA library", files, { env }).found, "/opt/driver/libcuda.so.1");
    assert.equal(look("NVML", files, { env }).found, nvml);
  });

  it("counts MIG instances", () => {
    const capabilities = "/proc/driver/nvidia/capabilities";
    const files = {
      ...gpuFiles(1),
      [`${capabilities}/mig/config`]: "",
      [`${capabilities}/gpu0/mig/gi1/access`]: "",
      [`${capabilities}/gpu0/mig/gi2/ci0/access`]: "",
    };
    const mig = look("MIG", files);
    assert.deepEqual([mig.status, mig.found], ["limited", "2 GPU instances"]);
    assert.match(mig.use, /slice F is absent/);
    assert.match(look("MIG", gpuFiles(1)).remedy ?? "", /nvidia-smi -mig 1/);
    assert.match(look("MIG").found, /needs an NVIDIA driver/);
  });

  it("reads CUDA_VISIBLE_DEVICES as CUDA does", () => {
    const at = (value?: string) =>
      look("CUDA_VISIBLE_DEVICES", {}, { env: { CUDA_VISIBLE_DEVICES: value } });
    assert.equal(at(undefined).status, "ok");
    assert.equal(at("0,1").found, '"0,1"');
    for (const hidden of ["", " ", "-1", "-1,0"]) assert.match(at(hidden).found, /hides every GPU/);
  });

  it("looks on Linux only, and says so", () => {
    assert.match(look("GPU", {}, { platform: "win32" }).found, /Linux only/);
    assert.match(look("GPU driver", {}, { platform: "win32" }).found, /Linux only/);
  });
});
