/** What the probes find out about GPUs, on made-up machines. */

import assert from "node:assert/strict";
import { rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { GpuFindings } from "../../../src/execution/probe/gpu-findings.ts";
import {
  check,
  gpuFiles,
  h200,
  look,
  machine,
  managed,
  noDriver,
  report,
  working,
} from "./machines.ts";

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
      [
        { ...working, kernels: { ok: false, reason }, device: { ok: false, reason: "No device." } },
        "CUDA kernels",
      ],
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

  it("go by whether the device opens, whatever else does not load", () => {
    const { kernels: _, ...opened } = working;
    const stopped = { during: "loading the CUDA kernels", how: "was ended by SIGSEGV" };
    for (const [findings, what, remedy] of [
      [{ ...opened, kernels: { ok: false, reason: "One is bad." } }, /^One is bad$/, /install/],
      [{ ...opened, stopped }, /ended by SIGSEGV while loading the CUDA kernels/, /nvidia-smi/],
    ] as const) {
      const found = report(machine(gpuFiles(1)), findings);
      assert.equal(
        found.summary,
        "Nexus runs here on the GPU: NVIDIA H200, 132 multiprocessors, but not all kernels load: see CUDA kernels.",
      );
      assert.equal(check(found, "GPU 0").use, "the CUDA device");
      const kernels = check(found, "CUDA kernels");
      assert.deepEqual([kernels.status, what.test(kernels.found)], ["limited", true]);
      assert.match(kernels.use, /^the CUDA device, until/);
      assert.match(kernels.remedy ?? "", remedy);
    }
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
