/**
 * Substitutes for a graph that holds on to its addresses: their bytes are copied around the run. How a device
 * copies and runs is its own; which way and in which order is here.
 */

import type { DeviceBuffer } from "./device.ts";
import type { OwnSubstitute } from "./substitute-checks.ts";

/**
 * Copies what is read, runs, and copies what was written.
 *
 * @param copy the first `bytes` of a buffer to another; called in the order in which copies must take effect around the run
 */
export function runBetweenCopies<Own extends DeviceBuffer>(
  substitutes: readonly OwnSubstitute<Own>[],
  copy: (target: Own, source: Own, bytes: number) => void,
  run: () => void,
): void {
  for (const { buffer, by, byteLength, access } of substitutes) {
    if (access === "read") copy(buffer, by, byteLength);
  }
  run();
  for (const { buffer, by, byteLength, access } of substitutes) {
    if (access === "write") copy(by, buffer, byteLength);
  }
}
