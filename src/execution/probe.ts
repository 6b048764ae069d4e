/**
 * What this machine has and what Nexus will use of it, as plain values. The
 * probes live in probe/, one file per part of the machine. The processor's look and
 * open no device; the GPU is tried out for real, in a process of its own, since
 * nothing less tells whether it works.
 */

import type { DeviceKind } from "./device.ts";
import type { Check } from "./probe/check.ts";
import { whyNoCuda } from "./probe/cuda.ts";
import { checkGpu } from "./probe/gpu.ts";
import type { GpuFindings } from "./probe/gpu-findings.ts";
import { tryGpu } from "./probe/gpu-process.ts";
import { type Host, thisHost } from "./probe/host.ts";
import {
  checkCache,
  checkMemory,
  checkProcessor,
  checkRapl,
  checkThreads,
} from "./probe/processor.ts";
import { checkNode, checkRelaxedSimd, checkSimd, hasRelaxedSimd } from "./probe/runtime.ts";

export type { Check } from "./probe/check.ts";

export interface MachineReport {
  /** Whether Nexus can run here: at all, or on the one device that was looked at. */
  readonly canRun: boolean;
  /** What it runs on, or why it cannot run, in a sentence or two. */
  readonly summary: string;
  readonly checks: readonly Check[];
}

/**
 * Looks this machine over, or what one kind of device takes of it. Takes a few milliseconds, and what starting
 * a GPU's driver takes unless only the CPU is looked at.
 */
export async function probeMachine(device: DeviceKind | "auto" = "auto"): Promise<MachineReport> {
  const host = thisHost();
  if (device === "cpu") return reportOnCpu(host);
  const findings = await tryGpu();
  return device === "cuda" ? reportOnGpu(host, findings) : reportOn(host, findings);
}

/** The report on a machine of which everything is known. Reads some small files, as do those below. */
export function reportOn(host: Host, findings: GpuFindings): MachineReport {
  const node = checkNode(host);
  const simd = checkSimd(host);
  const noCuda = whyNoCuda(findings);
  const obstacle = obstacleIn(noCuda === null ? [node] : [node, simd]);
  return {
    canRun: obstacle === null,
    summary:
      obstacle !== null
        ? `Nexus cannot run here${obstacle}.`
        : noCuda === null
          ? gpuSummary(findings)
          : `${cpuSummary(host)} No CUDA because ${noCuda}.`,
    checks: [node, simd, ...checkCpu(host), ...checkGpu(host, findings)],
  };
}

/** The report on the CPU device alone, whether or not there is a GPU. */
export function reportOnCpu(host: Host): MachineReport {
  const required = [checkNode(host), checkSimd(host)];
  const obstacle = obstacleIn(required);
  return {
    canRun: obstacle === null,
    summary: obstacle === null ? cpuSummary(host) : `Nexus cannot run here on the CPU${obstacle}.`,
    checks: [...required, ...checkCpu(host)],
  };
}

/** The report on the CUDA device alone: without it Nexus cannot run. */
export function reportOnGpu(host: Host, findings: GpuFindings): MachineReport {
  const node = checkNode(host);
  const noCuda = whyNoCuda(findings);
  const obstacle = obstacleIn([node]) ?? (noCuda === null ? null : ` because ${noCuda}`);
  return {
    canRun: obstacle === null,
    summary:
      obstacle === null ? gpuSummary(findings) : `Nexus cannot run here on a GPU${obstacle}.`,
    checks: [node, ...checkGpu(host, findings, true)],
  };
}

/** What the CPU device makes of the machine, besides what it cannot do without. */
function checkCpu(host: Host): Check[] {
  return [
    checkRelaxedSimd(host),
    checkProcessor(host),
    checkThreads(host),
    checkMemory(host),
    checkCache(host),
    checkRapl(host),
  ];
}

/** Which of the required checks failed, for the end of "Nexus cannot run here"; null if none did. */
function obstacleIn(required: readonly Check[]): string | null {
  const failed = required.filter((check) => check.status !== "ok");
  return failed.length === 0 ? null : `: see ${failed.map((check) => check.name).join(", ")}`;
}

function gpuSummary({ driver, kernels }: GpuFindings): string {
  const gpu = driver?.ok ? driver.gpus[0] : undefined;
  const images = kernels?.ok
    ? `${kernels.architecture} kernels`
    : "but not all kernels load: see CUDA kernels";
  return `Nexus runs here on the GPU: ${gpu?.name}, ${gpu?.multiprocessors} multiprocessors, ${images}.`;
}

function cpuSummary(host: Host): string {
  const kernels = hasRelaxedSimd(host) ? "relaxed SIMD" : "plain SIMD";
  return `Nexus runs here on the CPU: ${host.usableCores} threads, ${kernels} kernels.`;
}
