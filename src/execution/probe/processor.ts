/**
 * The processor, how much of it this process may use, its memory, its last-level
 * cache and its energy counters: all that the CPU device stands on.
 */

import { join } from "node:path";
import { MAXIMUM_PAGES } from "../cpu/kernels.ts";
import { lastLevelCacheBytes } from "../cpu/properties.ts";
import { POWERCAP_ROOT, surveyRapl } from "../cpu/rapl.ts";
import type { Check } from "./check.ts";
import { type Host, readText } from "./host.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

/** The kernels see one WebAssembly memory, whose pages have 64 KiB. */
const DEVICE_LIMIT_BYTES = MAXIMUM_PAGES * 64 * KIB;

export function checkProcessor(host: Host): Check {
  const model = host.cpuModel ?? `${host.arch} processor of unknown model`;
  return {
    name: "CPU",
    status: "ok",
    found: `${model}, ${host.cores} logical cores`,
    use: "the CPU device",
  };
}

/** How many worker threads the CPU device starts unless told otherwise. */
export function checkThreads(host: Host): Check {
  const name = "worker threads";
  const use = `${host.usableCores} threads, one compute unit each`;
  const quota = cpuQuota(host);
  if (quota !== null && quota < host.usableCores) {
    return {
      name,
      status: "limited",
      found: `${host.usableCores} cores, but processor time for ${quota} (cgroup cpu.max)`,
      use,
      remedy: "Raise the container's CPU limit, or open the device with fewer threads.",
    };
  }
  if (host.usableCores < host.cores) {
    return {
      name,
      status: "limited",
      found: `this process may run on ${host.usableCores} of ${host.cores} cores`,
      use,
      remedy: "Widen the process's CPU affinity (taskset, cpuset) to use more.",
    };
  }
  return { name, status: "ok", found: `${host.usableCores} usable cores`, use };
}

export function checkMemory(host: Host): Check {
  const name = "memory";
  const usable = Math.min(host.memoryLimitBytes ?? host.memoryBytes, DEVICE_LIMIT_BYTES);
  const use = `weights and activations of the CPU device, ${gib(usable)} at most`;
  if (host.memoryLimitBytes !== null) {
    return {
      name,
      status: "limited",
      found: `${gib(host.memoryLimitBytes)} allowed by the control group, of ${gib(host.memoryBytes)}`,
      use,
      remedy: "Raise the container's memory limit to use more.",
    };
  }
  return { name, status: "ok", found: gib(host.memoryBytes), use };
}

export function checkCache(host: Host): Check {
  const name = "last-level cache";
  const use = "cache budgets of the slices (accounted for, not enforced)";
  const bytes = lastLevelCacheBytes(join(host.root, "/sys/devices/system/cpu/cpu0/cache"));
  if (bytes !== null) return { name, status: "ok", found: `${bytes / MIB} MiB`, use };
  return {
    name,
    status: "missing",
    found: "the system does not tell its size",
    use: "slices get no cache budget",
    remedy: "Run on Linux with the processor's caches listed in /sys/devices/system/cpu.",
  };
}

export function checkRapl(host: Host): Check {
  const survey = surveyRapl(join(host.root, POWERCAP_ROOT), host.platform);
  if (survey.available) {
    const found = survey.packages.map((one) => one.name).join(", ");
    return { name: "RAPL", status: "ok", found, use: "energy of the whole processor, in joules" };
  }
  return {
    name: "RAPL",
    status: "missing",
    found: survey.reason,
    use: "none: energy is reported as unavailable",
    remedy: survey.remedy,
  };
}

/** Cores' worth of processor time that the control group allows, or null for no limit. */
function cpuQuota(host: Host): number | null {
  const [quota, period] = (readText(host, "/sys/fs/cgroup/cpu.max") ?? "").trim().split(" ");
  const cores = Number(quota) / Number(period);
  return cores > 0 ? Math.round(cores * 100) / 100 : null;
}

function gib(bytes: number): string {
  return `${(bytes / GIB).toFixed(1)} GiB`;
}
