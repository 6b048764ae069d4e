/** What operators need of the device that runs them: an interface, so that they can be encoded without a GPU. */

import type { CudaBuffer } from "../buffer.ts";
import type { KernelSet } from "../bundle/kernel-set.ts";
import type { DeviceFacts } from "../driver/driver.ts";
import type { TensorMapEncoder } from "../tensor-maps.ts";

export interface OperatorContext extends TensorMapEncoder {
  /** What buffers and projections must belong to. */
  readonly owner: object;
  readonly kernels: KernelSet;
  readonly facts: DeviceFacts;
  /** How float32 rows are multiplied: as they are, or rounded to tf32 for the tensor cores. */
  readonly float32: "ieee" | "tf32";
  /**
   * The int32 that `route` lowers to the first row without finite weights, on the device and in
   * page-locked memory. NO_FAULT (route.ts) when there is none, which is what it must hold at first.
   */
  readonly fault: { readonly device: bigint; readonly host: bigint };
  /** Device memory of the device's own, all zero. */
  scratch(bytes: number, label: string): CudaBuffer;
  /** Writes device memory now; work enqueued later finds it there. */
  upload(address: bigint, data: ArrayBufferView): void;
}
