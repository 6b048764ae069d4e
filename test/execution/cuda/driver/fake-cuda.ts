/**
 * Compiles `fake-cuda.c` and opens it the way libcuda is opened. Where there is no C
 * compiler, or no foreign-function layer for the platform, it says so and the tests
 * that need it are skipped.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Driver } from "../../../../src/execution/cuda/driver/driver.ts";
import {
  driverOf,
  type OpenedDriver,
} from "../../../../src/execution/cuda/driver/native-driver.ts";
import { type NativeLibrary, openLibrary } from "../../../../src/execution/native/library.ts";

// The suite hides a real GPU from tests that want none; the fake one is to be seen.
delete process.env["CUDA_VISIBLE_DEVICES"];

const NOTES_BYTES = 1 << 16;
const SOURCE = join("test", "execution", "cuda", "driver", "fake-cuda.c");
const HEADERS_OF_TRITON = join("triton", "backends", "nvidia", "include");

/** The fake's own functions, beside those of CUDA. */
export class FakeCuda {
  readonly library: NativeLibrary;

  constructor(library: NativeLibrary) {
    this.library = library;
  }

  open(): OpenedDriver {
    return driverOf(this.library);
  }

  driver(): Driver {
    const opened = this.open();
    assert.ok("driver" in opened, "reason" in opened ? opened.reason : "");
    return opened.driver;
  }

  /** The named call fails with this code, once, after so many successes. */
  fail(call: string, code: number, after = 0): void {
    assert.equal(
      this.library.find("fake_fail", ["str", "int32_t", "int32_t"])?.(call, code, after),
      0,
    );
  }

  /** Handles and allocations not yet destroyed. */
  live(): number {
    return this.library.find("fake_live", [])?.() ?? -1;
  }

  /** What the fake wrote down since the last time, by line. */
  notes(): string[] {
    const text = Buffer.alloc(NOTES_BYTES);
    this.library.find("fake_take_notes", ["void *", "size_t"])?.(text, NOTES_BYTES);
    return text.toString("latin1", 0, text.indexOf(0)).split("\n").slice(0, -1);
  }

  layout(): number[] {
    const numbers = new Int32Array(64);
    const count = this.library.find("fake_layout", ["void *"])?.(numbers) ?? 0;
    return [...numbers.subarray(0, count)];
  }
}

/**
 * A fake of this CUDA version, or why there is none.
 *
 * @param headers a folder with NVIDIA's cuda.h: types are the header's, and every function is compiled against its prototype
 */
export function buildFake(version = 13000, headers?: string): FakeCuda | string {
  const root = findRoot();
  if (root === null) return "fake-cuda.c is not here: only compiled code is";
  const compiler = process.env["CC"] ?? "cc";
  const library = join(directory(), `libfakecuda-${version}${headers ? "-header" : ""}.so`);
  const flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", `-DFAKE_VERSION=${version}`];
  if (headers !== undefined) flags.push("-DWITH_CUDA_H", `-I${headers}`);
  const built = spawnSync(compiler, [...flags, join(root, SOURCE), "-o", library], {
    encoding: "utf8",
  });
  if (built.error !== undefined) return `no C compiler: ${built.error.message}`;
  assert.equal(built.status, 0, built.stderr);
  const opened = openLibrary("a fake CUDA driver", [library]);
  return "reason" in opened ? opened.reason : new FakeCuda(opened.library);
}

let made: string | undefined;
function directory(): string {
  if (made === undefined) {
    const path = mkdtempSync(join(tmpdir(), "nexus-fake-cuda-"));
    process.once("exit", () => rmSync(path, { recursive: true, force: true }));
    made = path;
  }
  return made;
}

/** The folder of the cuda.h that Triton's package has, or why there is none: npm run kernels:check installs it. */
export function cudaHeaders(): { folder: string } | string {
  const packages = join(findRoot() ?? ".", "kernels", ".venv", "lib");
  const pythons = existsSync(packages) ? readdirSync(packages) : [];
  const folder = pythons
    .map((python) => join(packages, python, "site-packages", HEADERS_OF_TRITON))
    .find((each) => existsSync(join(each, "cuda.h")));
  return folder ? { folder } : "no cuda.h: npm run kernels:check gets one with Triton";
}

/** The folder of the sources, where the C file stands; the tests run from dist/. */
function findRoot(): string | null {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (existsSync(join(folder, SOURCE))) return folder;
    if (folder === dirname(folder)) return null;
  }
}
