/** A block of GPU memory, as the parts of the CUDA device know it. */

import type { DeviceBuffer } from "../device.ts";

/** Device memory that `Device.allocate` gave, or scratch memory of the device's own. */
export interface CudaBuffer extends DeviceBuffer {
  /** The device core it belongs to; buffers of another device are refused. */
  readonly owner: object;
  readonly address: bigint;
  /** Where its contents are brought to by whoever writes it; absent unless allocated `mirrored`. */
  readonly mirror?: HostMirror;
  /** Has `child` closed when this buffer is: work lists and other memory that makes no sense without it. */
  attach(child: Disposable): void;
}

/** Page-locked host memory that a launch copies a buffer to. */
export interface HostMirror {
  readonly address: bigint;
  readonly bytes: Uint8Array;
}
