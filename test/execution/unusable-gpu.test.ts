/**
 * A GPU that cannot be used, from the library on: a fake libcuda in the place of NVIDIA's, whose GPU opens and
 * takes no kernel of the bundle. All ways of opening, and the doctor, come to the same conclusion.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { symlinkSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { buildFake } from "./cuda/driver/fake-cuda.ts";

const fake = buildFake();

/** Opens devices, has the machine examined, and says what comes of it. */
const SCRIPT = `
const { openDevice } = await import(process.argv[1]);
const { probeMachine } = await import(process.argv[2]);
const device = await openDevice();
const insisted = await openDevice({ kind: "cuda" }).catch(({ name, message }) => ({ name, message }));
const { kind } = device.properties;
await device.close();
const report = await probeMachine();
const reportOnGpu = await probeMachine("cuda");
console.log(JSON.stringify({ kind, insisted, report, reportOnGpu }));
`;

const WHY = /Kernel tidy of .*sm_90a\S* cannot be loaded: cuModuleGetFunction failed/;

test("a GPU that takes no kernel is left alone, and the doctor says so", {
  skip: typeof fake === "string" && fake,
}, () => {
  assert.ok(typeof fake !== "string");
  const folder = path.dirname(fake.library.path);
  symlinkSync(fake.library.path, path.join(folder, "libcuda.so.1"));
  const modules = ["open", "probe"].map(
    (name) => new URL(`../../src/execution/${name}.js`, import.meta.url).href,
  );
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    ["--input-type=module", "-e", SCRIPT, ...modules],
    { encoding: "utf8", env: { ...process.env, LD_LIBRARY_PATH: folder } },
  );
  assert.equal(status, 0, stderr);
  const { kind, insisted, report, reportOnGpu } = JSON.parse(stdout);
  assert.equal(kind, "cpu");
  assert.equal(insisted.name, "DeviceUnavailableError");
  assert.match(insisted.message, WHY);
  assert.match(report.summary, /^Nexus runs here on the CPU: /);
  assert.match(report.summary, WHY);
  assert.equal(reportOnGpu.canRun, false);
  assert.match(reportOnGpu.summary, /^Nexus cannot run here on a GPU because /);
  assert.match(reportOnGpu.summary, WHY);
  const kernels = report.checks.find((check: { name: string }) => check.name === "CUDA kernels");
  assert.equal(kernels.status, "missing");
});
