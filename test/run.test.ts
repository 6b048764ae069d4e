/** The runner of the tests sums them up in its last line, with each reason once; what runs on a GPU machine asks it for all that need one. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
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

const script = path.join(root, "bench/gpu/run.sh");

test("a GPU machine runs every test that needs a GPU, and no other", {
  skip: !existsSync(script),
}, () => {
  const folder = mkdtempSync(path.join(tmpdir(), "nexus-test-"));
  try {
    // In the place of Node: says what it is asked for.
    const node = path.join(folder, "node");
    writeFileSync(node, '#!/bin/sh\nprintf "%s\\n" "$@"\n', { mode: 0o755 });
    const out = path.join(folder, "out");
    const { status, stdout, stderr } = spawnSync("bash", [script, out, "tests"], {
      encoding: "utf8",
      env: { ...process.env, NEXUS_NODE: node },
    });
    assert.equal(status, 0, stdout + stderr);
    const asked = readFileSync(path.join(out, "tests.log"), "utf8").trimEnd().split("\n");
    const [runs, ...filters] = asked.slice(asked.indexOf("test/run.mjs"));
    assert.equal(runs, "test/run.mjs");
    const files = readdirSync(path.join(root, "dist/test"), { recursive: true, encoding: "utf8" })
      .map((file) => path.join("dist/test", file))
      .filter((file) => file.endsWith(".test.js"));
    assert.deepEqual(
      files.filter((file) => filters.some((filter) => file.includes(filter))),
      files.filter((file) => file.endsWith(".gpu.test.js")),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});
