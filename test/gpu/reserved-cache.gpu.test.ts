/**
 * Cache that is reserved for slices, on the GPU: same bits with persisting L2 and access-policy windows as
 * without, replays after reservations change, and nothing set aside any more once the device is closed.
 */

import assert from "node:assert/strict";
import { openDriver } from "../../src/execution/cuda/driver/native-driver.ts";
import { gpuTest, openGpu } from "./gpu.ts";
import { persistingL2Reader } from "./persisting-l2.ts";
import { checkReservedCache } from "./reserved-cache.ts";

for (const realisation of ["shared", "partitioned"] as const) {
  gpuTest(`cache reserved for slices, ${realisation}`, async ({ properties }, t) => {
    for (const needed of [properties.enforces.cache, properties.realisations[realisation]]) {
      if (!needed.available) return t.skip(needed.reason);
    }
    const opened = openDriver();
    assert.ok("driver" in opened);
    const setAside = persistingL2Reader(opened.driver);
    const before = setAside();
    // Beside the device of the file, in the same context.
    const device = await openGpu();
    try {
      const bytes = await checkReservedCache(device, realisation, setAside);
      t.diagnostic(`set aside: ${before} bytes, and in turn ${bytes.join(", ")}`);
    } finally {
      await device.close();
    }
    assert.equal(setAside(), before, "after the device was closed");
  });
}
