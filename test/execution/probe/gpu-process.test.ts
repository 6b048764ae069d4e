/** The process that tries the GPU: what it says, and what is told of it when it crashes, hangs or babbles. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import { tryGpu } from "../../../src/execution/probe/gpu-process.ts";

const folder = mkdtempSync(join(tmpdir(), "nexus-trial-"));
after(() => rmSync(folder, { recursive: true }));
let trials = 0;

/** A trial that says two things and then does something. */
function trial(then: string): URL {
  const file = join(folder, `${trials++}.mjs`);
  const say = (line: unknown) =>
    `process.stdout.write(${JSON.stringify(`${JSON.stringify(line)}\n`)});`;
  const ffi = { ok: true, version: "1" };
  writeFileSync(
    file,
    `${say({ during: "loading" })}${say({ found: { ffi } })}${say({ during: "worse" })}${then}`,
  );
  return pathToFileURL(file);
}

const ffi = { ok: true, version: "1" } as const;

describe("trying the GPU out", () => {
  it("finds on this machine what there is, to the end", { timeout: 90_000 }, async () => {
    const findings = await tryGpu();
    assert.equal(findings.stopped, undefined);
    const { ffi: calls, nvml, driver } = findings;
    for (const finding of [calls, nvml, driver]) {
      assert.ok(finding);
      assert.ok(finding.ok || finding.reason !== "", JSON.stringify(finding));
      // A module that is not there would be a finding too.
      assert.ok(
        finding.ok || !finding.reason.includes("Cannot find module"),
        JSON.stringify(finding),
      );
    }
    assert.equal(findings.kernels !== undefined, driver?.ok);
  });

  it("keeps what was said before a crash, and tells what came to an end", async () => {
    const killed = await tryGpu(
      trial("process.kill(process.pid, 'SIGSEGV'); setInterval(() => {}, 9)"),
    );
    assert.deepEqual(killed, { ffi, stopped: { during: "worse", how: "was ended by SIGSEGV" } });
    const left = await tryGpu(trial("process.exitCode = 7"));
    assert.deepEqual(left.stopped, { during: "worse", how: "ended with exit code 7" });
  });

  it("does not wait for ever", async () => {
    const start = performance.now();
    const hung = await tryGpu(trial("for (;;);"), 0.5);
    assert.deepEqual(hung, {
      ffi,
      stopped: { during: "worse", how: "did not return within 0.5 s" },
    });
    assert.ok(performance.now() - start < 5000);
  });

  it("passes over what libraries print", async () => {
    const babble = "process.stdout.write('hello\\n3\\nnull\\n{}\\n')";
    assert.deepEqual(await tryGpu(trial(babble)), { ffi });
  });

  it("says so where the trial does not even start", async () => {
    const nowhere = await tryGpu(pathToFileURL(join(folder, "nowhere.mjs")));
    assert.deepEqual(nowhere, { stopped: { during: "starting", how: "ended with exit code 1" } });
  });
});
