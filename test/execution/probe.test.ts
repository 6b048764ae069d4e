/** The probes on made-up machines: a folder that stands for the root, and facts to go with it. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, it } from "node:test";
import type { CudaGpu, GpuFindings, ManagedGpu } from "../../src/execution/probe/gpu-findings.ts";
import type { Host } from "../../src/execution/probe/host.ts";
import {
  type Check,
  type MachineReport,
  probeMachine,
  reportOn,
} from "../../src/execution/probe.ts";

const folder = mkdtempSync(join(tmpdir(), "nexus-probe-"));
after(() => rmSync(folder, { recursive: true }));
let machines = 0;

const GIB = 2 ** 30;
const missing = "libcuda.so.1 (the NVIDIA driver) was not found";

/** What trying shows without a driver. */
const noDriver: GpuFindings = {
  ffi: { ok: true, version: "3.3.4" },
  nvml: { ok: false, reason: "No NVML: libnvidia-ml.so.1 was not found." },
  driver: { ok: false, reason: missing },
};

const h200: CudaGpu = {
  name: "NVIDIA H200",
  capability: [9, 0],
  multiprocessors: 132,
  memoryBytes: 150_110_011_392,
  l2Bytes: 62_914_560,
};

const managed: ManagedGpu = {
  index: 0,
  name: "NVIDIA H200",
  telemetry: {
    watts: 75.4,
    limitWatts: 700,
    joules: 123_456.7,
    celsius: 31,
    smMegahertz: 1980,
    memoryMegahertz: 3201,
    kernelPercent: 0,
    memoryPercent: 0,
    memoryUsedBytes: 0,
    memoryTotalBytes: 150_754_820_096,
  },
  mig: { instances: [], reason: "MIG is off on GPU 0 (NVIDIA H200); an administrator can." },
};

/** What trying shows where all is well. */
const working = {
  ffi: { ok: true, version: "3.3.4" },
  nvml: { ok: true, version: "13.580.95.05", gpus: [managed] },
  driver: { ok: true, version: 13000, gpus: [h200] },
  greenContexts: { ok: true },
  kernels: { ok: true, architecture: "sm_90a", loaded: 214 },
  device: { ok: true },
} as const satisfies GpuFindings;

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
  check(report(machine(files, facts)), name);

/** A machine on which the driver cannot be opened, whatever its files say, unless told otherwise. */
function report(host: Host, findings: GpuFindings = noDriver): MachineReport {
  return reportOn(host, findings);
}

/** The files of a machine with `count` H200s, as driver 580 leaves them. */
function gpuFiles(count: number): Record<string, string> {
  const files: Record<string, string> = {
    "/proc/driver/nvidia/version":
      "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)  Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc version 12.3.0\n",
    "/dev/nvidiactl": "",
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

describe("GPU probes", () => {
  it("say of a GPU that works what Nexus does with it", () => {
    const found = report(machine(gpuFiles(1)), working);
    assert.equal(
      found.summary,
      "Nexus runs here on the GPU: NVIDIA H200, 132 multiprocessors, sm_90a kernels.",
    );
    const said = (name: string) => {
      const { status, found: what, use } = check(found, name);
      return `${status}: ${what}; ${use}`;
    };
    assert.equal(
      said("GPU 0"),
      "ok: NVIDIA H200, compute capability 9.0, 132 multiprocessors, 139.8 GiB, 60 MiB of L2; the CUDA device",
    );
    assert.equal(said("GPU driver"), "ok: 580.95.05; the CUDA device");
    assert.equal(said("CUDA library"), "ok: CUDA 13.0; the CUDA device");
    assert.equal(said("CUDA kernels"), "ok: sm_90a cubins, all 214 load; the CUDA device");
    assert.match(said("green contexts"), /^ok: .*\(partitioned\)$/);
    assert.equal(
      said("NVML"),
      "ok: 13.580.95.05; GPU 0 draws 75 W of 700 W, 31 C, 1980 MHz, energy counter at 123457 J; energy of the GPU in joules, from 1 s on",
    );
    assert.match(said("MIG"), /^absent: MIG is off on GPU 0 .*; slice F is absent$/);
    assert.match(said("native calls"), /^ok: koffi 3\.3\.4/);
    assert.match(said("CUDA_VISIBLE_DEVICES"), /^ok: not set.*which GPUs there are/);
  });

  it("let a GPU stand in for SIMD, but not for Node.js", () => {
    const noSimd = machine(gpuFiles(1), { validatesWasm: () => false });
    assert.equal(report(noSimd, working).canRun, true);
    assert.equal(report(noSimd).canRun, false);
    assert.equal(report(machine({}, { nodeVersion: "v18.0.0" }), working).canRun, false);
  });

  it("list every GPU that CUDA sees, and which one is used", () => {
    const driver = { ...working.driver, gpus: [h200, { ...h200, capability: [8, 6] as const }] };
    const found = report(machine(gpuFiles(2)), { ...working, driver });
    assert.equal(check(found, "GPU 0").use, "the CUDA device");
    assert.match(check(found, "GPU 1").found, /capability 8\.6/);
    assert.match(check(found, "GPU 1").use, /if it is opened with ordinal 1/);
  });

  it("name PTX as what it is", () => {
    const kernels = { ok: true, architecture: "ptx", loaded: 1 } as const;
    const found = report(machine(gpuFiles(1)), { ...working, kernels });
    assert.match(check(found, "CUDA kernels").found, /^PTX, which the driver compiles/);
  });

  it("say what keeps CUDA from working, where it is found, and what to do", () => {
    const host = machine(gpuFiles(1));
    const reason = "it is broken.";
    const cases: [GpuFindings, string][] = [
      [{ ffi: { ok: false, reason } }, "native calls"],
      [{ ...noDriver, driver: { ok: false, reason } }, "CUDA library"],
      [{ ...working, kernels: { ok: false, reason } }, "CUDA kernels"],
    ];
    for (const [findings, name] of cases) {
      const found = report(host, findings);
      assert.match(found.summary, / on the CPU: .*\. No CUDA because it is broken\.$/);
      assert.equal(check(found, name).status, "missing");
      assert.equal(check(found, name).found, "it is broken");
      assert.ok(
        found.checks.every((one) => !one.use.includes("the CUDA device")),
        name,
      );
    }
    const found = report(host, { ...working, device: { ok: false, reason } });
    assert.match(found.summary, /No CUDA because it is broken\.$/);
    assert.deepEqual(
      [check(found, "GPU 0").status, check(found, "GPU 0").use],
      ["limited", "the CPU device instead"],
    );
    assert.equal(check(report(host), "GPU").status, "limited");
  });

  it("say what the trial was doing when it ended", () => {
    const { kernels: _, device: __, ...reached } = working;
    const stopped = { during: "loading the CUDA kernels", how: "was ended by SIGSEGV" };
    const found = report(machine(gpuFiles(1)), { ...reached, stopped });
    const text = "the process that tried it was ended by SIGSEGV while loading the CUDA kernels";
    assert.ok(found.summary.endsWith(`No CUDA because ${text}.`), found.summary);
    assert.equal(check(found, "CUDA kernels").found, text);
    assert.match(check(found, "CUDA kernels").remedy ?? "", /nvidia-smi .* reinstall/);
    assert.equal(check(found, "CUDA library").status, "ok");
    // Nobody knows what an update or another machine would do for what was never reached.
    const { greenContexts: _undivided, ...early } = reached;
    for (const [name, findings] of [
      ["green contexts", { ...early, stopped: { ...stopped, during: "dividing" } }],
      ["native calls", { stopped: { ...stopped, during: "loading the FFI" } }],
    ] as const) {
      const { remedy } = check(report(machine(gpuFiles(1)), findings), name);
      assert.match(remedy ?? "", /nvidia-smi .* reinstall/, name);
    }
    assert.match(check(report(machine(), { stopped }), "native calls").remedy ?? "", /None is/);
    assert.match(report(machine(), {}).summary, /No CUDA because the GPU was not tried out\.$/);
  });

  it("do without energy and green contexts", () => {
    const blind = { ...managed, telemetry: { ...managed.telemetry, joules: null, watts: null } };
    const found = report(machine(gpuFiles(1)), {
      ...working,
      nvml: { ...working.nvml, gpus: [blind] },
      greenContexts: { ok: false, reason: "the driver is too old" },
    });
    assert.match(found.summary, /on the GPU/);
    assert.equal(check(found, "NVML").status, "limited");
    assert.match(check(found, "NVML").found, /GPU 0 tells no power, .*, has no energy counter$/);
    const green = check(found, "green contexts");
    assert.deepEqual([green.status, green.found], ["missing", "the driver is too old"]);
    const nvml = { ok: false, reason: "No NVML: gone." } as const;
    const dark = report(machine(gpuFiles(1)), { ...working, nvml });
    assert.match(dark.summary, /on the GPU/);
    assert.equal(check(dark, "NVML").found, "No NVML: gone");
    assert.equal(check(dark, "MIG").found, "only NVML can tell");
  });

  it("list MIG instances", () => {
    const instance = {
      uuid: "MIG-1",
      gpu: 0,
      gpuInstance: 1,
      computeInstance: 0,
      profile: "1g.18gb",
      computeUnits: 16,
      memoryBytes: null,
    };
    const divided = { ...managed, mig: { instances: [instance], reason: null } };
    const found = report(machine(gpuFiles(1)), {
      ...working,
      nvml: { ...working.nvml, gpus: [divided] },
    });
    const { status, found: what, use } = check(found, "MIG");
    assert.deepEqual(
      [status, what],
      ["ok", "1 instance: 1g.18gb on GPU 0 (MIG-1, 16 multiprocessors)"],
    );
    assert.match(use, /slice F, a worker process/);
    const none = { ...working, nvml: { ...working.nvml, gpus: [] } };
    assert.equal(check(report(machine(), none), "MIG").found, "NVML lists no GPU");
  });

  it("read the version of the closed driver too", () => {
    const version =
      "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n";
    assert.equal(
      look("GPU driver", { "/proc/driver/nvidia/version": version }).found,
      "535.183.01",
    );
    assert.equal(check(report(machine(), working), "GPU driver").found, "the host system's");
  });

  it("tell what is missing one step at a time", () => {
    const bus = "/sys/bus/pci/devices/0000:01:00.0";
    const onBus = { [`${bus}/vendor`]: "0x10de\n", [`${bus}/class`]: "0x030200\n" };
    assert.match(look("GPU", onBus).found, /1 NVIDIA on the PCI bus, without a driver/);
    assert.match(look("GPU driver", onBus).remedy ?? "", /Install NVIDIA's driver/);
    assert.match(look("CUDA library", onBus).remedy ?? "", /NVIDIA_DRIVER_CAPABILITIES/);
    assert.match(look("CUDA library").remedy ?? "", /None is needed/);

    const { "/dev/nvidia0": _, ...noDevice } = gpuFiles(1);
    assert.match(look("GPU", noDevice).found, /NVIDIA H200, without a device file/);

    assert.equal(look("GPU", { "/dev/nvidia3": "" }).found, "1 of unknown model");
    assert.equal(look("GPU", gpuFiles(2)).found, "2 x NVIDIA H200");
  });

  it("ignore other NVIDIA functions and other vendors on the bus", () => {
    const bus = "/sys/bus/pci/devices";
    const files = {
      [`${bus}/0/vendor`]: "0x10de\n",
      [`${bus}/0/class`]: "0x040300\n",
      [`${bus}/1/vendor`]: "0x1002\n",
      [`${bus}/1/class`]: "0x030000\n",
    };
    assert.equal(look("GPU", files).found, "no NVIDIA GPU");
  });

  it("report a device file that this user cannot open", () => {
    const host = machine(gpuFiles(1));
    // Root may open anything but what is not there.
    rmSync(join(host.root, "/dev/nvidia0"));
    symlinkSync(join(host.root, "nowhere"), join(host.root, "/dev/nvidia0"));
    assert.match(check(report(host), "GPU").found, /not readable by this user/);
  });

  it("read CUDA_VISIBLE_DEVICES as CUDA does", () => {
    const at = (value?: string) =>
      look("CUDA_VISIBLE_DEVICES", {}, { env: { CUDA_VISIBLE_DEVICES: value } });
    assert.equal(at(undefined).status, "ok");
    assert.equal(at("0,1").found, '"0,1"');
    for (const hidden of ["", " ", "-1", "-1,0"]) assert.match(at(hidden).found, /hides every GPU/);
  });

  it("look on Linux only, and say so", () => {
    assert.match(look("GPU", {}, { platform: "win32" }).found, /Linux only/);
    assert.match(look("GPU driver", {}, { platform: "win32" }).found, /Linux only/);
  });
});
