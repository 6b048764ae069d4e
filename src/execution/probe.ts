/**
 * What this machine has and what Nexus will use of it, as plain values. The
 * probes live in probe/, one file per part of the machine; they look and report,
 * and open no device.
 */

import type { Check } from "./probe/check.ts";
import { checkGpu } from "./probe/gpu.ts";
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
  /** What it runs on, or why it cannot run, in one sentence. */
  readonly summary: string;
  readonly checks: readonly Check[];
}

/** Looks the machine over. Reads some small files; takes a few milliseconds. */
export function probeMachine(host: Host = thisHost()): MachineReport {
  const required = [checkNode(host), checkSimd(host)];
  const failed = required.filter((check) => check.status !== "ok");
  const canRun = failed.length === 0;
  const kernels = hasRelaxedSimd(host) ? "relaxed SIMD" : "plain SIMD";
  return {
    canRun,
    summary: canRun
      ? `Nexus runs here on the CPU: ${host.usableCores} threads, ${kernels} kernels.`
      : `Nexus cannot run here: see ${failed.map((check) => check.name).join(", ")}.`,
    checks: [
      ...required,
      checkRelaxedSimd(host),
      checkProcessor(host),
      checkThreads(host),
      checkMemory(host),
      checkCache(host),
      checkRapl(host),
      ...checkGpu(host),
    ],
  };
}
