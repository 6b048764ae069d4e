/** How much of a GPU's L2 is set aside for lines that persist, as the driver says; Nexus itself never asks it. */

import assert from "node:assert/strict";
import type { Driver } from "../../src/execution/cuda/driver/driver.ts";
import type { NativeLibrary } from "../../src/execution/native/library.ts";

/** The GPU that is opened where nobody asks for another. */
const ORDINAL = 0;
const LIMIT_PERSISTING_L2 = 6;

/** @returns reads the limit, in bytes. The GPU's context stays from here on, so that closing a device does not end it. */
export function persistingL2Reader(driver: Driver, library: NativeLibrary): () => number {
  const getLimit = library.find("cuCtxGetLimit", ["void *", "int32_t"]);
  assert.ok(getLimit !== null, `${library.path} has no cuCtxGetLimit`);
  const context = driver.retainContext(ORDINAL);
  const bytes = new BigUint64Array(1);
  return () => {
    driver.setCurrent(context);
    assert.equal(getLimit(bytes, LIMIT_PERSISTING_L2), 0, "cuCtxGetLimit");
    return Number(bytes[0]);
  };
}
