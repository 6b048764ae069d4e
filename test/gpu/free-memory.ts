/** How much memory the driver says the GPU has left; sees what the device's own books do not. */

import { openDriver } from "../../src/execution/cuda/driver/native-driver.ts";

/** The GPU that is opened where nobody asks for another. */
const ORDINAL = 0;

let read: (() => number) | undefined;

/** Bytes of free memory. From the first call on the GPU's context stays, so that closing a device does not free that too. */
export function freeDeviceBytes(): number {
  read ??= reader();
  return read();
}

function reader(): () => number {
  const opened = openDriver();
  if ("reason" in opened) throw new Error(opened.reason);
  const { driver } = opened;
  const context = driver.retainContext(ORDINAL);
  return () => {
    driver.setCurrent(context);
    return driver.memoryInfo().freeBytes;
  };
}
