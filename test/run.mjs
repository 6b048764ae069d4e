/**
 * Runs the compiled tests with Node's own test runner.
 *
 *   node test/run.mjs [FILTER...]
 *
 * Without filters all of dist/test, otherwise the files whose path contains one
 * of them; those that need a GPU (*.gpu.test.js) last. The last line sums both up. The
 * files are listed here because glob patterns on the command line of `node --test` mean
 * different things from Node 20 to 24. Needs node, dist/ and the production dependencies, nothing
 * else: files that draw their cases from fast-check are left out where it is not
 * installed, and named.
 */

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { run } from "node:test";
import { spec } from "node:test/reporters";
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

/** Runs files, shows what comes of them, and counts it: suites are no tests. */
async function runFiles(wanted, concurrency) {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const reasons = new Set();
  const failures = [];
  const count = ({ name, file, skip, details }, passed) => {
    if (details.type === "suite") return;
    if (skip) {
      counts.skipped++;
      if (typeof skip === "string") reasons.add(skip);
    } else if (passed) {
      counts.passed++;
    } else {
      counts.failed++;
      failures.push(`${file === undefined ? "" : `${path.relative(root, file)}: `}${name}`);
    }
  };
  async function* shown(events) {
    for await (const event of events) {
      const { type, data } = event;
      const ended = type === "test:pass" || type === "test:fail";
      if (ended) count(data, type === "test:pass");
      // Why tests are skipped is often the same for all, and stands in the last line.
      yield ended && data.skip ? { type, data: { ...data, skip: true } } : event;
    }
  }
  if (wanted.length > 0) {
    const events = run({ files: wanted.map((file) => path.join(root, file)), concurrency });
    await pipeline(Readable.from(shown(events)), new spec(), process.stdout, { end: false });
  }
  return { counts, reasons, failures };
}

/** `CPU tests: 1586 passed, 2 skipped (why)` */
function summaryOf(name, { counts, reasons }) {
  const parts = Object.entries(counts).filter(([, number]) => number > 0);
  const texts = parts.map(([what, number]) => `${number} ${what}`);
  const why = reasons.size === 0 ? "" : ` (${[...reasons].join("; ")})`;
  return `${name} tests: ${texts.join(", ") || "none"}${why}`;
}

process.chdir(root);
const needsGpu = (file) => file.endsWith(".gpu.test.js");
const onGpu = files.filter(needsGpu);
const others = files.filter((file) => !needsGpu(file));
const { CUDA_VISIBLE_DEVICES: visible } = process.env;
// Theirs is the CPU, also on a machine with a GPU.
process.env.CUDA_VISIBLE_DEVICES = "";
const cpu = await runFiles(others, CONCURRENCY);
if (visible === undefined) delete process.env.CUDA_VISIBLE_DEVICES;
else process.env.CUDA_VISIBLE_DEVICES = visible;
// They watch the free memory of the whole card: one at a time, after all others.
const gpu = await runFiles(onGpu, 1);

const failures = [...cpu.failures, ...gpu.failures];
for (const failure of failures) console.log(`failed: ${failure}`);
console.log(
  [
    ...(others.length > 0 ? [summaryOf("CPU", cpu)] : []),
    ...(onGpu.length > 0 ? [summaryOf("GPU", gpu)] : []),
  ].join("; "),
);
process.exitCode = failures.length > 0 ? 1 : 0;
