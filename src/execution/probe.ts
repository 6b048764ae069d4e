/**
 * What this machine has and what Nexus will use of it, as plain values. The
 * probes live in probe/, one file per part of the machine. The processor's look and
 * open no device; the GPU is tried out for real, in a process of its own, since
 * nothing less tells whether it works.
 */

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
  /** Whether Nexus can run here at all. */
  readonly canRun: boolean;
  /** What it runs on, or why it cannot run, in a sentence or two. */
  readonly summary: string;
  readonly checks: readonly Check[];
}

/** Looks this machine over. Takes a few milliseconds, and what starting a GPU's driver takes. */
export async function probeMachine(): Promise<MachineReport> {
  return reportOn(thisHost(), await tryGpu());
}

/** The report on a machine of which everything is known. Reads some small files. */
export function reportOn(host: Host, findings: GpuFindings): MachineReport {
  const node = checkNode(host);
  const simd = checkSimd(host);
  const noCuda = whyNoCuda(findings);
  const required = noCuda === null ? [node] : [node, simd];
  const failed = required.filter((check) => check.status !== "ok");
  return {
    canRun: failed.length === 0,
    summary:
      failed.length > 0
        ? `Nexus cannot run here: see ${failed.map((check) => check.name).join(", ")}.`
        : noCuda === null
          ? gpuSummary(findings)
          : `${cpuSummary(host)} No CUDA because ${noCuda}.`,
    checks: [
      node,
      simd,
      checkRelaxedSimd(host),
      checkProcessor(host),
      checkThreads(host),
      checkMemory(host),
      checkCache(host),
      checkRapl(host),
      ...checkGpu(host, findings),
    ],
  };
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
