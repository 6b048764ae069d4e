/** RAPL on powercap folders made for the test: what is summed, what wraps, and every reason for having no joules. */

import assert from "node:assert/strict";
import {
  chmodSync as chmod,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, beforeEach, describe, it, type TestContext } from "node:test";
import { DeviceFailedError } from "../../../src/errors.ts";
import { openRapl, surveyRapl } from "../../../src/execution/cpu/rapl.ts";
import type { EnergySource } from "../../../src/execution/device.ts";
import { between, randomFor } from "../../support/seed.ts";

const folder = mkdtempSync(join(tmpdir(), "nexus-rapl-"));
after(() => rmSync(folder, { recursive: true }));

let root: string;
let trees = 0;
beforeEach(() => {
  root = join(folder, String(trees++));
  mkdirSync(root);
});

function domain(id: string, files: Record<string, string | number>): void {
  mkdirSync(join(root, id), { recursive: true });
  for (const [file, content] of Object.entries(files)) setFile(id, file, content);
}

/** By renaming, as the kernel does it: a reader sees the old number or the new one. */
function setFile(id: string, file: string, content: string | number): void {
  writeFileSync(join(root, id, `.${file}`), `${content}\n`);
  renameSync(join(root, id, `.${file}`), join(root, id, file));
}

function packageDomain(index: number, energy: number, range = 1_000_000_000): void {
  domain(`intel-rapl:${index}`, {
    name: `package-${index}`,
    energy_uj: energy,
    max_energy_range_uj: range,
  });
}

const setEnergy = (index: number, energy: number | string) =>
  setFile(`intel-rapl:${index}`, "energy_uj", energy);

function opened(): Extract<EnergySource, { available: true }> {
  const source = openRapl(root, "linux");
  assert.ok(source.available, source.available ? "" : source.reason);
  return source;
}

function reason(platform: NodeJS.Platform = "linux"): string {
  const source = openRapl(root, platform);
  assert.ok(!source.available);
  return source.reason;
}

/** Runs `look` as a user without privileges, or skips the test where root cannot step down. */
function withoutRoot<T>(context: TestContext, look: () => T): T | undefined {
  if (process.geteuid?.() !== 0) return look();
  const nobody = 65534;
  try {
    process.seteuid?.(nobody);
  } catch (error) {
    context.skip(`cannot become user ${nobody}: ${(error as Error).message}`);
    return undefined;
  }
  try {
    return look();
  } finally {
    process.seteuid?.(0);
  }
}

describe("RAPL counter", () => {
  it("counts joules from the time it was opened", async () => {
    packageDomain(0, 5_000_000);
    const source = opened();
    assert.equal(source.domain, "RAPL package-0");
    assert.equal(source.minimumWindowSeconds, 0.05);
    assert.equal(await source.joules(), 0);
    setEnergy(0, 7_500_000);
    assert.equal(await source.joules(), 2.5);
  });

  it("sums all packages, in order of their numbers, and nothing but packages", async () => {
    for (const index of [10, 2, 0]) packageDomain(index, 1_000_000);
    const other = { energy_uj: 1_000_000, max_energy_range_uj: 1_000_000_000 };
    domain("intel-rapl", { enabled: 1 });
    domain("intel-rapl:0:0", { name: "core", ...other });
    domain("intel-rapl:3", { name: "psys", ...other });
    domain("intel-rapl-mmio:0", { name: "package-0", ...other });
    const source = opened();
    assert.equal(source.domain, "RAPL package-0 + package-2 + package-10");
    for (const index of [0, 2, 3, 10]) setEnergy(index, 3_000_000);
    setFile("intel-rapl:0:0", "energy_uj", 9_000_000);
    setFile("intel-rapl-mmio:0", "energy_uj", 9_000_000);
    assert.equal(await source.joules(), 6);
  });

  it("goes on across the wrap of each package", async () => {
    packageDomain(0, 9_000_000, 10_000_000);
    packageDomain(1, 1_000_000, 20_000_000);
    const source = opened();
    setEnergy(0, 2_000_000);
    setEnergy(1, 2_000_000);
    assert.equal(await source.joules(), 3 + 1);
    setEnergy(1, 1_000_000);
    assert.equal(await source.joules(), 3 + 1 + 19);
  });

  it("adds up to what was spent, whatever the steps, as long as none exceeds the range", async () => {
    const random = randomFor("RAPL steps");
    // The range of AMD parts.
    const range = 65_532_610_987;
    for (let round = 0; round < 40; round++) {
      let counter = between(random, 0, range);
      let spent = 0;
      packageDomain(0, counter, range);
      const source = opened();
      for (let step = between(random, 1, 12); step > 0; step--) {
        const energy = between(random, 0, range - 1);
        spent += energy;
        counter += counter + energy > range ? energy - range : energy;
        setEnergy(0, counter);
        assert.equal(await source.joules(), spent / 1e6);
      }
    }
  });

  it("never takes an overtaken reading for a wrap", async () => {
    packageDomain(0, 0);
    const source = opened();
    const readings: Promise<number>[] = [];
    for (let microjoules = 1; microjoules <= 400; microjoules++) {
      setEnergy(0, microjoules);
      readings.push(source.joules());
      if (microjoules % 7 === 0) await new Promise(setImmediate);
    }
    const joules = await Promise.all(readings);
    joules.forEach((value, i) => {
      assert.ok(i === 0 || value >= (joules[i - 1] as number), `reading ${i} went back`);
    });
    assert.equal(joules.at(-1), 400 / 1e6);
  });

  it("rejects when a package disappears, books nothing then, and recovers", async () => {
    packageDomain(0, 0);
    packageDomain(1, 0);
    const source = opened();
    setEnergy(0, 1_000_000);
    rmSync(join(root, "intel-rapl:1", "energy_uj"));
    await assert.rejects(source.joules(), (error) => {
      assert.ok(error instanceof DeviceFailedError);
      assert.match(error.message, /package-1 any more: ENOENT/);
      return true;
    });
    setEnergy(1, 4_000_000);
    assert.equal(await source.joules(), 5);
  });

  it("rejects a reading that is no counter value", async () => {
    packageDomain(0, 0, 1000);
    const source = opened();
    for (const bad of ["", "-4", "12.5", "1001", "plenty"]) {
      setEnergy(0, bad);
      await assert.rejects(source.joules(), { name: "DeviceFailedError" }, `"${bad}"`);
    }
  });
});

describe("RAPL unavailable", () => {
  it("off Linux", () => {
    packageDomain(0, 0);
    assert.match(reason("darwin"), /this is darwin\. Run on Linux/);
  });

  it("without a powercap folder", () => {
    rmSync(root, { recursive: true });
    assert.match(reason(), /There is no .*virtual machine.*CONFIG_POWERCAP/);
  });

  it("when the powercap folder is a file", () => {
    rmSync(root, { recursive: true });
    writeFileSync(root, "");
    assert.match(reason(), /cannot be read: ENOTDIR/);
  });

  it("without a package", () => {
    domain("intel-rapl:0", { name: "psys", energy_uj: 1, max_energy_range_uj: 2 });
    assert.match(reason(), /no processor package.*modprobe intel_rapl_msr/);
  });

  it("in a container that masks the counters", () => {
    symlinkSync(join(root, "masked"), join(root, "intel-rapl:0"));
    assert.match(reason(), /intel-rapl:0\/name is missing.*container/);
  });

  it("when a package's range is missing, though another is whole", () => {
    packageDomain(0, 0);
    packageDomain(1, 0);
    rmSync(join(root, "intel-rapl:1", "max_energy_range_uj"));
    assert.match(reason(), /intel-rapl:1\/max_energy_range_uj is missing/);
  });

  it("when a file holds no number, or a range of 0", () => {
    packageDomain(0, 0);
    setEnergy(0, "nonsense");
    assert.match(reason(), /energy_uj holds "nonsense"/);
    packageDomain(0, 0, 0);
    assert.match(reason(), /max_energy_range_uj holds 0/);
  });

  it("to a user who may not read the counter, with the command that changes it", (context) => {
    packageDomain(0, 0);
    for (const path of [folder, root, join(root, "intel-rapl:0")]) chmod(path, 0o755);
    chmod(join(root, "intel-rapl:0", "energy_uj"), 0o000);
    const asOther = withoutRoot(context, () => surveyRapl(root, "linux"));
    if (asOther === undefined) return;
    assert.ok(!asOther.available);
    assert.match(asOther.reason, /intel-rapl:0\/energy_uj is not readable.*CVE-2020-8694/);
    assert.match(asOther.remedy, /sudo chmod a\+r .*intel-rapl:\*\/energy_uj/);
  });
});
