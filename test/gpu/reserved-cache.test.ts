/** What the GPU test of reserved cache goes by, where there is no GPU: on an emulated one, and the driver's limit on a fake libcuda. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { buildFake } from "../execution/cuda/driver/fake-cuda.ts";
import type { EmulatedDriver } from "../execution/cuda/emulator/driver.ts";
import { withEmulated } from "../execution/cuda/emulator/harness.ts";
import { persistingL2Reader } from "./persisting-l2.ts";
import { checkReservedCache } from "./reserved-cache.ts";

const fake = buildFake();

describe("cache reserved for slices", () => {
  for (const realisation of ["shared", "partitioned"] as const) {
    it(`on an emulated GPU, ${realisation}`, async () => {
      const used = await withEmulated(async (device, driver): Promise<EmulatedDriver> => {
        await checkReservedCache(device, realisation, () => driver.persistingL2);
        assert.ok(driver.persistingL2 > 0);
        const windows = driver.launches.flatMap(({ window }) => (window ? [window] : []));
        assert.ok(new Set(windows.map(({ hitRatio }) => hitRatio)).size > 1, "no windows");
        return driver;
      });
      assert.equal(used.persistingL2, 0);
    });
  }

  it("is what the driver's limit says", { skip: typeof fake === "string" && fake }, () => {
    assert.ok(typeof fake !== "string");
    const driver = fake.driver();
    const setAside = persistingL2Reader(driver);
    for (const bytes of [3 << 20, 5 * 2 ** 30, 0]) {
      driver.setPersistingL2Limit(bytes);
      assert.equal(setAside(), bytes);
    }
    driver.releaseContext(0);
  });
});
