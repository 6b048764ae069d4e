/** The runner of the tests sums them up in its last line, with each reason once. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const runner = path.join(root, "test/run.mjs");

test("the last line counts both kinds of tests", { skip: !existsSync(runner) }, () => {
  const { NODE_TEST_CONTEXT: _, NEXUS_REQUIRE_GPU: __, ...env } = process.env;
  const filters = ["cli/statistics.test", "gpu/energy.gpu.test"];
  const { status, stdout, stderr } = spawnSync(process.execPath, [runner, ...filters], {
    cwd: root,
    encoding: "utf8",
    env: { ...env, CUDA_VISIBLE_DEVICES: "" },
  });
  assert.equal(status, 0, stdout + stderr);
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  const found = /^CPU tests: [1-9]\d* passed; GPU tests: [1-9]\d* skipped \((.+)\)$/.exec(last);
  assert.ok(found, last);
  assert.equal(stdout.split(found[1] as string).length, 2, "the reason stands once");
});
