/** What a CPU device says of itself. */

import { readdirSync, readFileSync } from "node:fs";
import { arch, cpus } from "node:os";
import { join } from "node:path";
import type { DeviceProperties } from "../device.ts";
import { SHARES_PER_UNIT } from "./budgets.ts";
import type { KernelVariant } from "./kernels.ts";
import { PACKS_WEIGHTS, WEIGHT_DTYPES } from "./projection.ts";

/** Where Linux describes the caches of the first CPU. */
const CACHE_ROOT = "/sys/devices/system/cpu/cpu0/cache";

/**
 * Enough lanes that there are others' tiles to take while the last ones of one finish, and few
 * enough that looking through all of them for the next tile stays cheap.
 */
const RECOMMENDED_STREAMS = 8;

const KIBI: Readonly<Record<string, number>> = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

export function cpuProperties(
  threads: number,
  memoryBytes: number,
  variant: KernelVariant,
): DeviceProperties {
  return {
    kind: "cpu",
    // Some containers hide the model.
    name: cpus()[0]?.model.trim() || `${arch()} CPU`,
    computeUnits: threads,
    computeUnitGranularity: 1 / SHARES_PER_UNIT,
    memoryBytes,
    memoryBytesPerSecond: null,
    cacheBytes: lastLevelCacheBytes(),
    features: variant === "relaxed-simd" ? ["wasm-simd", "wasm-relaxed-simd"] : ["wasm-simd"],
    weightDTypes: WEIGHT_DTYPES,
    logitsDTypes: ["float32"],
    realisations: {
      shared: { available: true },
      partitioned:
        threads >= 2
          ? { available: true }
          : {
              available: false,
              reason: "One worker thread cannot be divided; open the device with two or more.",
            },
      mig: {
        available: false,
        reason: "MIG instances are parts of NVIDIA GPUs; a CPU has none.",
      },
    },
    migInstances: [],
    enforces: {
      bandwidth: {
        available: false,
        reason:
          "Worker threads share the memory controllers, and a process cannot cap its use of them.",
      },
      cache: {
        available: false,
        reason:
          "Dividing a CPU cache takes the operating system's resource control, which a process cannot set for its own threads.",
      },
    },
    timesExperts: { available: true },
    recommendedStreams: RECOMMENDED_STREAMS,
    // A product of a few rows is cut into enough tiles for all workers to read weights as it is.
    decodeTokens: 0,
    packsWeights: PACKS_WEIGHTS,
  };
}

/**
 * Size of the largest-level cache that the first CPU uses, or null where the system does not tell.
 *
 * @param root a directory like Linux's /sys/devices/system/cpu/cpu0/cache
 */
export function lastLevelCacheBytes(root = CACHE_ROOT): number | null {
  let last = { level: 0, bytes: 0 };
  try {
    for (const name of readdirSync(root)) {
      if (!/^index\d+$/.test(name)) continue;
      const level = Number(readFileSync(join(root, name, "level"), "utf8"));
      const size = /^(\d+)([KMG])$/.exec(readFileSync(join(root, name, "size"), "utf8").trim());
      const bytes = Number(size?.[1]) * (KIBI[size?.[2] ?? ""] ?? Number.NaN);
      if (level > last.level && bytes > 0) last = { level, bytes };
    }
  } catch {
    // Not Linux, or a container that hides it: whatever was read so far counts.
  }
  return last.bytes > 0 ? last.bytes : null;
}
