/** Compiles `fake-nvml.c` and opens it the way NVML is opened, or says why that cannot be. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type NativeLibrary, openLibrary } from "../../../../src/execution/native/library.ts";

/** Compiled tests lie in dist/test, their sources in test. */
const SOURCE = "test/execution/cuda/nvml/fake-nvml.c";

export function buildFakeNvml(): NativeLibrary | string {
  const source = fileURLToPath(new URL(`../../../../../${SOURCE}`, import.meta.url));
  if (!existsSync(source)) return `there is no ${SOURCE}`;
  const folder = mkdtempSync(join(tmpdir(), "nexus-nvml-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  const library = join(folder, "libnvidia-ml.so.1");
  const { error, status, stderr } = spawnSync(
    "cc",
    ["-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source],
    { encoding: "utf8" },
  );
  if (error !== undefined) return `there is no C compiler (${error.message})`;
  assert.equal(status, 0, stderr);
  const opened = openLibrary("a fake NVML", [library]);
  return "reason" in opened ? opened.reason : opened.library;
}
