/** How much of a GPU's L2 is set aside for lines that persist, as the driver says. */

import type { Driver } from "../../src/execution/cuda/driver/driver.ts";

/** The GPU that is opened where nobody asks for another. */
const ORDINAL = 0;

/** @returns reads the limit, in bytes. The GPU's context stays from here on, so that closing a device does not end it. */
export function persistingL2Reader(driver: Driver): () => number {
  const context = driver.retainContext(ORDINAL);
  return () => {
    driver.setCurrent(context);
    return driver.persistingL2Limit();
  };
}
