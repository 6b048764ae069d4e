/** The command as a process: help, version, closed pipes, interrupts. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { MAIN, nexus } from "./nexus.ts";

test("the version is the package's", async () => {
  const manifest = new URL("../../../package.json", import.meta.url);
  const { version } = JSON.parse(readFileSync(manifest, "utf8"));
  assert.deepEqual(await nexus(["--version"]), { code: 0, stdout: `${version}\n`, stderr: "" });
});

for (const args of [
  ["--help"],
  ["help"],
  ["help", "bench"],
  ["help", "help"],
  ["run", "--help"],
  ["doctor", "--help"],
]) {
  test(`nexus ${args.join(" ")} prints help in 80 columns`, async () => {
    const { code, stdout, stderr } = await nexus(args);
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.match(stdout, /^Usage: nexus/);
    for (const line of stdout.split("\n")) {
      assert.ok([...line].length <= 80, `${[...line].length} columns: ${line}`);
    }
  });
}

test("no command prints help as an error", async () => {
  const { code, stdout, stderr } = await nexus([]);
  assert.equal(stdout, "");
  assert.match(stderr, /^Usage: nexus/);
  assert.equal(code, 2);
});

test("a closed pipe is silent", async () => {
  const child = spawn(process.execPath, [MAIN, "bench", "--help"]);
  let stderr = "";
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  child.stdout.destroy();
  const [code] = await once(child, "close");
  assert.equal(stderr, "");
  assert.equal(code, 0);
});

test("a closed pipe for errors changes nothing about what failed", async () => {
  const child = spawn(process.execPath, [MAIN, "run", "--bogus"]);
  child.stderr.destroy();
  const [code] = await once(child, "close");
  assert.equal(code, 2);
});

test("standard output that takes nothing is one line and code 1", async () => {
  // Open for reading only, so that every write fails, as on a full disk.
  const unwritable = openSync(MAIN, "r");
  try {
    const child = spawn(process.execPath, [MAIN, "doctor", "--json"], {
      stdio: ["ignore", unwritable, "pipe"],
    });
    let stderr = "";
    child.stderr?.on("data", (text) => {
      stderr += text;
    });
    const [code] = await once(child, "close");
    assert.equal(stderr, "nexus: cannot write to standard output (EBADF).\n");
    assert.equal(code, 1);
  } finally {
    closeSync(unwritable);
  }
});

test("an interrupt ends a run at once, with code 130 and no noise", async () => {
  const child = spawn(process.execPath, [MAIN, "bench", "--preset", "small", "--min-time", "60"]);
  let stderr = "";
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  // The head of the report comes when the workers are up and have measured the limits.
  await once(child.stdout, "data");
  await sleep(200);
  const interrupted = performance.now();
  child.kill("SIGINT");
  const [code] = await once(child, "close");
  assert.equal(stderr, "");
  assert.equal(code, 130);
  assert.ok(performance.now() - interrupted < 5000);
});
