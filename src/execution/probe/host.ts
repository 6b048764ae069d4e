/**
 * What the probes look at: the facts Node gives, and files under a root folder.
 * The probes ask only this, never `process` or `os`, so they can be pointed at a
 * folder that stands for another machine.
 */

import { accessSync, constants, readdirSync, readFileSync } from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { join } from "node:path";

export interface Host {
  readonly platform: NodeJS.Platform;
  readonly arch: string;
  /** As `process.version`, with the leading v. */
  readonly nodeVersion: string;
  /** Null where the system does not tell. */
  readonly cpuModel: string | null;
  /** Logical cores of the machine. */
  readonly cores: number;
  /** Cores this process may run on. */
  readonly usableCores: number;
  readonly memoryBytes: number;
  /** Limit of the control group this process is in, or null. */
  readonly memoryLimitBytes: number | null;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Whether this runtime takes a WebAssembly module. */
  validatesWasm(module: Uint8Array<ArrayBuffer>): boolean;
  /** The folder that stands for `/`. */
  readonly root: string;
}

/** The machine this process runs on. */
export function thisHost(): Host {
  const processors = cpus();
  const memoryBytes = totalmem();
  // 0 or a number beyond all memory means that there is no limit.
  const limit = process.constrainedMemory();
  return {
    platform: process.platform,
    arch: process.arch,
    nodeVersion: process.version,
    cpuModel: processors[0]?.model.trim() || null,
    cores: processors.length,
    usableCores: availableParallelism(),
    memoryBytes,
    memoryLimitBytes: limit > 0 && limit < memoryBytes ? limit : null,
    env: process.env,
    // Node without a JIT compiler (--jitless) has no WebAssembly at all.
    validatesWasm: (module) => typeof WebAssembly === "object" && WebAssembly.validate(module),
    root: "/",
  };
}

/** The text of a file of the host, or null where it cannot be read. */
export function readText(host: Host, path: string): string | null {
  try {
    return readFileSync(join(host.root, path), "utf8");
  } catch {
    return null;
  }
}

/** The entries of a folder of the host that match, in natural order; none where it cannot be read. */
export function listMatching(host: Host, folder: string, pattern: RegExp): string[] {
  try {
    return readdirSync(join(host.root, folder))
      .filter((entry) => pattern.test(entry))
      .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  } catch {
    return [];
  }
}

/** Whether this process may read a file of the host. */
export function isReadable(host: Host, path: string): boolean {
  try {
    accessSync(join(host.root, path), constants.R_OK);
    return true;
  } catch {
    return false;
  }
}
