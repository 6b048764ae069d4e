/** From compute budgets to shares and worker sets. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { equalShares, workerShares } from "../../../src/execution/cpu/budgets.ts";
import { cpuProperties } from "../../../src/execution/cpu/properties.ts";
import type { Realisation } from "../../../src/execution/device.ts";
import { between, randomFor } from "../../support/seed.ts";

const properties = (threads: number) => cpuProperties(threads, 2 ** 32, "simd");

/** The groups in a bit set. */
const groups = (set: number) => [0, 1, 2, 3, 4, 5, 6, 7].filter((g) => (set >> g) & 1);

describe("workerShares", () => {
  it("lets every worker serve every group when shared", () => {
    const { bound, shares, serves } = workerShares(
      { realisation: "shared", units: [1.5, 0.5] },
      properties(2),
    );
    assert.equal(bound, false);
    // Without a budget a group has the whole device.
    assert.deepEqual([...shares], [24, 8, 32, 32, 32, 32, 32, 32]);
    assert.deepEqual([...serves], [255, 255]);
    assert.deepEqual(equalShares(2).serves, serves);
  });

  it("gives whole units workers of their own and pools the rest", () => {
    const { bound, serves } = workerShares(
      { realisation: "partitioned", units: [2.5, 1, 0.25, 0.25] },
      properties(6),
    );
    assert.equal(bound, true);
    const unbudgeted = [4, 5, 6, 7];
    assert.deepEqual(Array.from(serves, groups), [
      [0, ...unbudgeted],
      [0, ...unbudgeted],
      [1, ...unbudgeted],
      [0, 2, 3, ...unbudgeted],
      unbudgeted,
      unbudgeted,
    ]);
  });

  it("finds every group a worker, whatever budgets the device has room for", () => {
    const random = randomFor("partitions");
    for (let round = 0; round < 2000; round++) {
      const workers = between(random, 2, 9);
      let left = workers * 16;
      const units = Array.from({ length: between(random, 0, 8) }, () => {
        const share = random.integer(Math.min(left, 40) + 1);
        left -= share;
        return share / 16;
      });
      const { serves } = workerShares({ realisation: "partitioned", units }, properties(workers));
      for (let group = 0; group < 8; group++) {
        const count = serves.filter((set) => (set >> group) & 1).length;
        const budget = units[group] ?? 0;
        assert.ok(count >= 1, `group ${group} of ${units} has no worker`);
        const pool = Math.ceil(units.reduce((sum, u) => sum + (u % 1), 0));
        const most = Math.floor(budget) + (budget % 1 > 0 ? pool : 0);
        assert.equal(count, budget > 0 ? most : workers, `group ${group} of ${units}`);
      }
    }
  });

  it("refuses what the device cannot give, and says why", () => {
    const attempt = (realisation: string, units: number[], threads = 2) =>
      workerShares({ realisation: realisation as Realisation, units }, properties(threads));
    const refused = (pattern: RegExp, ...args: Parameters<typeof attempt>) =>
      assert.throws(
        () => attempt(...args),
        (e) => e instanceof InvalidArgumentError && pattern.test(e.message),
      );
    refused(/2\.5 compute units together, and the device has 2/, "shared", [2, 0.5]);
    refused(/Group 1 asks for 0\.1/, "shared", [1, 0.1]);
    refused(/Group 0 asks for -1/, "shared", [-1]);
    refused(/Group 0 asks for NaN/, "shared", [Number.NaN]);
    refused(/at most 8 groups, got 9/, "shared", new Array(9).fill(0));
    refused(/NVIDIA/, "mig", [1]);
    refused(/One worker thread cannot be divided/, "partitioned", [1], 1);
    refused(/Unknown realisation "exclusive"/, "exclusive", [1]);
  });
});
