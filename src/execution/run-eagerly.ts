/** One eager run: enqueues and waits. What becomes a graph instead is the graph manager's business. */

import type { Device } from "./device.ts";

/**
 * Runs what `record` enqueues. When this is over, in success or failure, nothing of it is left
 * on the device, so that its buffers can be freed.
 *
 * @throws whatever recording or running throws
 */
export async function runEagerly(
  device: Pick<Device, "synchronize">,
  record: () => void,
): Promise<void> {
  try {
    record();
  } catch (error) {
    // What was enqueued before the error would run with the next work of anybody on the device.
    // Should that fail, too, the first error is the one to tell.
    await device.synchronize().catch(() => {});
    throw error;
  }
  await device.synchronize();
}
