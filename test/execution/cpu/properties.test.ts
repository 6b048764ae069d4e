/** What a CPU device says of itself. */

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { openCpuDevice } from "../../../src/execution/cpu/device.ts";
import { cpuProperties, lastLevelCacheBytes } from "../../../src/execution/cpu/properties.ts";
import { withDevice } from "./harness.ts";

const root = mkdtempSync(join(tmpdir(), "nexus-cache-"));
after(() => rmSync(root, { recursive: true }));

function caches(name: string, sizes: readonly (readonly [level: string, size: string])[]): string {
  for (const [i, [level, size]] of sizes.entries()) {
    const folder = join(root, name, `index${i}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "level"), `${level}\n`);
    writeFileSync(join(folder, "size"), `${size}\n`);
  }
  return join(root, name);
}

describe("properties", () => {
  it("finds the last-level cache, or says that it cannot", () => {
    const usual = caches("usual", [
      ["1", "32K"],
      ["1", "32K"],
      ["2", "1024K"],
      ["3", "32M"],
    ]);
    assert.equal(lastLevelCacheBytes(usual), 32 * 2 ** 20);
    assert.equal(
      lastLevelCacheBytes(
        caches("odd", [
          ["2", "1G"],
          ["3", "unknown"],
        ]),
      ),
      2 ** 30,
    );
    assert.equal(lastLevelCacheBytes(caches("none", [["1", "?"]])), null);
    assert.equal(lastLevelCacheBytes(join(root, "missing")), null);
  });

  it("says what can be had and why the rest cannot", async () => {
    await withDevice(2, async (device) => {
      const { properties } = device;
      assert.equal(properties.kind, "cpu");
      assert.ok(properties.name.length > 0);
      assert.equal(properties.computeUnits, 2);
      assert.equal(properties.memoryBytes, device.memory().limitBytes);
      assert.deepEqual([...properties.weightDTypes].sort(), ["bfloat16", "float16", "float32"]);
      assert.equal(properties.realisations.partitioned.available, true);
      assert.equal(device.energy.available || device.energy.reason.length > 0, true);
    });
    const { realisations, enforces, timesExperts } = cpuProperties(1, 2 ** 32, "relaxed-simd");
    assert.equal(realisations.shared.available, true);
    assert.equal(timesExperts.available, true);
    for (const each of [realisations.partitioned, realisations.mig, ...Object.values(enforces)]) {
      assert.ok(!each.available && each.reason.endsWith("."));
    }
  });

  it("refuses a number of threads that is none", async () => {
    for (const threads of [0, -1, 1.5, Number.NaN, 1025]) {
      await assert.rejects(openCpuDevice({ threads }), InvalidArgumentError, String(threads));
    }
  });
});
