/**
 * Runs the compiled tests with Node's own test runner.
 *
 *   node test/run.mjs [FILTER...]
 *
 * Without filters all of dist/test, otherwise the files whose path contains one
 * of them; those that need a GPU (*.gpu.test.js) last. The files are listed here
 * because glob patterns on the command line of `node --test` mean different things
 * from Node 20 to 24. Needs node, dist/ and the production dependencies, nothing
 * else: files that draw their cases from fast-check are left out where it is not
 * installed, and named.
 */

import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

/**
 * Test files at a time, each in a process of its own. Two, because that is the
 * number of cores the tests are meant for; a device under test brings a thread
 * for every core, so more would only make them wait for each other.
 */
const CONCURRENCY = 2;

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const compiled = path.join("dist", "test");

function testFiles() {
  try {
    return readdirSync(path.join(root, compiled), { recursive: true })
      .filter((file) => file.endsWith(".test.js"))
      .map((file) => path.join(compiled, file))
      .sort();
  } catch {
    return [];
  }
}

function isInstalled(name) {
  try {
    import.meta.resolve(name);
    return true;
  } catch {
    return false;
  }
}

function importsFastCheck(file) {
  return readFileSync(path.join(root, file), "utf8").includes('from "fast-check"');
}

const filters = process.argv.slice(2);
const wanted = testFiles().filter(
  (file) => filters.length === 0 || filters.some((filter) => file.includes(filter)),
);
const leftOut = isInstalled("fast-check") ? [] : wanted.filter(importsFastCheck);
for (const file of leftOut) console.log(`left out, fast-check is not installed: ${file}`);
const files = wanted.filter((file) => !leftOut.includes(file));
if (files.length === 0) {
  const which = filters.length === 0 ? "" : ` whose path contains ${filters.join(" or ")}`;
  console.error(`No tests to run in ${compiled}${which}. "npm run build" compiles them.`);
  process.exit(1);
}

/** @returns exit status of the test runner */
function run(wanted, concurrency, env) {
  if (wanted.length === 0) return 0;
  const { status, signal, error } = spawnSync(
    process.execPath,
    ["--test", `--test-concurrency=${concurrency}`, "--test-reporter=spec", ...wanted],
    { cwd: root, stdio: "inherit", env: { ...process.env, ...env } },
  );
  if (error !== undefined) throw error;
  if (signal !== null) console.error(`The test runner was ended by ${signal}.`);
  return status ?? 1;
}

// Tests that need a GPU watch the free memory of the whole card: one at a time, after all others.
const needsGpu = (file) => file.endsWith(".gpu.test.js");
const others = run(
  files.filter((file) => !needsGpu(file)),
  CONCURRENCY,
  // Theirs is the CPU, also on a machine with a GPU.
  { CUDA_VISIBLE_DEVICES: "" },
);
process.exit(run(files.filter(needsGpu), 1) || others);
