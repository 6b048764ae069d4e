/** Made-up machines for the probes: a folder that stands for the root, and facts to go with it. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after } from "node:test";
import type {
  CudaGpu,
  GpuFindings,
  ManagedGpu,
} from "../../../src/execution/probe/gpu-findings.ts";
import type { Host } from "../../../src/execution/probe/host.ts";
import { type Check, type MachineReport, reportOn } from "../../../src/execution/probe.ts";

const folder = mkdtempSync(join(tmpdir(), "nexus-probe-"));
after(() => rmSync(folder, { recursive: true }));
let machines = 0;

export const GIB = 2 ** 30;
export const missing = "libcuda.so.1 (the NVIDIA driver) was not found";

/** What trying shows without a driver. */
export const noDriver: GpuFindings = {
  ffi: { ok: true, version: "3.3.4" },
  nvml: { ok: false, reason: "No NVML: libnvidia-ml.so.1 was not found." },
  driver: { ok: false, reason: missing },
};

export const h200: CudaGpu = {
  name: "NVIDIA H200",
  capability: [9, 0],
  multiprocessors: 132,
  memoryBytes: 150_110_011_392,
  l2Bytes: 62_914_560,
};

export const managed: ManagedGpu = {
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
export const working = {
  ffi: { ok: true, version: "3.3.4" },
  nvml: { ok: true, version: "13.580.95.05", gpus: [managed] },
  driver: { ok: true, version: 13000, gpus: [h200] },
  greenContexts: { ok: true },
  kernels: { ok: true, architecture: "sm_90a", loaded: 214 },
  device: { ok: true },
} as const satisfies GpuFindings;

/** A plain Linux machine with eight cores and nothing else, plus what is given. */
export function machine(files: Record<string, string> = {}, facts: Partial<Host> = {}): Host {
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

export function check(report: MachineReport, name: string): Check {
  const found = report.checks.find((one) => one.name === name);
  assert.ok(found, `no check called ${name}`);
  return found;
}

export const look = (name: string, files: Record<string, string> = {}, facts: Partial<Host> = {}) =>
  check(report(machine(files, facts)), name);

/** A machine on which the driver cannot be opened, whatever its files say, unless told otherwise. */
export function report(host: Host, findings: GpuFindings = noDriver): MachineReport {
  return reportOn(host, findings);
}

/** The files of a machine with `count` H200s, as driver 580 leaves them. */
export function gpuFiles(count: number): Record<string, string> {
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
