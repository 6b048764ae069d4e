/**
 * What every checked call needs: the bound functions, a place for their results, and
 * an error for a code that is not success.
 *
 * Results go to a few slots of native memory, allocated once, and not to arrays of
 * JavaScript: a call without a result allocates nothing, one that makes a handle
 * makes one bigint. All calls share the slots. That is safe because calls are
 * synchronous and each caller reads its results before the next call.
 */

import type { NativeLibrary } from "../../native/library.ts";
import { CudaError, SUCCESS } from "./errors.ts";
import type { DriverCalls, RequiredCalls } from "./ffi.ts";
import { KERNEL_NODE_PARAMS } from "./structs.ts";

const SLOT_BYTES = 8;
const SLOTS = 3;
const TWO_POW_32 = 2 ** 32;

export class Checked {
  readonly calls: DriverCalls;
  readonly cu: RequiredCalls;
  readonly library: NativeLibrary;
  /** Addresses of the slots. */
  readonly first: bigint;
  readonly second: bigint;
  readonly third: bigint;
  /** A CUDA_KERNEL_NODE_PARAMS and its address. */
  readonly node: DataView;
  readonly nodeAddress: bigint;
  readonly #slots: DataView;

  constructor(calls: DriverCalls) {
    this.calls = calls;
    this.cu = calls.required;
    this.library = calls.library;
    const slots = calls.library.allocate(SLOTS * SLOT_BYTES);
    this.#slots = new DataView(slots.bytes);
    this.first = slots.address;
    this.second = slots.address + BigInt(SLOT_BYTES);
    this.third = slots.address + BigInt(2 * SLOT_BYTES);
    const node = calls.library.allocate(KERNEL_NODE_PARAMS.size);
    this.node = new DataView(node.bytes);
    this.nodeAddress = node.address;
  }

  /** @throws CudaError unless `code` is success */
  check(call: string, code: number): void {
    if (code !== SUCCESS) throw this.error(call, code);
  }

  error(call: string, code: number, detail?: string): CudaError {
    const known = this.cu.cuGetErrorName(code, this.first) === SUCCESS;
    const name = known ? this.library.stringAt(this.first) : null;
    return new CudaError(call, code, name ?? "an unknown code", detail);
  }

  // What the last call left in a slot (0, 1 or 2).

  handle(slot: number): bigint {
    return this.#slots.getBigUint64(slot * SLOT_BYTES, true);
  }

  /** A size_t, without the bigint. */
  size(slot: number): number {
    const at = slot * SLOT_BYTES;
    return this.#slots.getUint32(at, true) + this.#slots.getUint32(at + 4, true) * TWO_POW_32;
  }

  int32(slot: number): number {
    return this.#slots.getInt32(slot * SLOT_BYTES, true);
  }

  float32(slot: number): number {
    return this.#slots.getFloat32(slot * SLOT_BYTES, true);
  }

  setInt32(slot: number, value: number): void {
    this.#slots.setInt32(slot * SLOT_BYTES, value, true);
  }

  /** The driver's own handle of a device. */
  device(ordinal: number): number {
    this.check("cuDeviceGet", this.cu.cuDeviceGet(this.first, ordinal));
    return this.int32(0);
  }
}
