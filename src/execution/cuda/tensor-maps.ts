/**
 * Tensor maps, through which kernels read matrices with the copy engine: each encoded
 * when a kernel first asks for it, found again by what it says, kept in memory of the
 * arena until what it describes is closed. Launches have the bytes themselves.
 */

import type { CudaBuffer } from "./buffer.ts";
import type { KernelEntry } from "./bundle/manifest.ts";
import type { DenseTensorMap, Driver } from "./driver/driver.ts";
import { TENSOR_MAP } from "./driver/structs.ts";
import type { LaunchArena, Slot } from "./launch/arena.ts";

/** What tensor maps need of the device they are for. */
export interface TensorMapEncoder {
  readonly driver: Pick<Driver, "encodeTensorMap">;
  readonly arena: LaunchArena;
}

/** A descriptor's argument and box, as the manifest has them. */
export type TensorMapMeta = KernelEntry["tensordesc_meta"][number];

/** What lies at the address. */
export type Mapped = Pick<DenseTensorMap, "element" | "shape">;

/** The tensor maps of one address. */
export class TensorMaps implements Disposable {
  readonly #device: TensorMapEncoder;
  readonly #address: bigint;
  readonly #slots = new Map<string, Slot>();

  constructor(device: TensorMapEncoder, address: bigint) {
    this.#device = device;
    this.#address = address;
  }

  /** The bytes of the map of this tensor in such boxes. */
  of(
    { element, shape }: Mapped,
    { block_size, swizzle, l2_promotion }: Omit<TensorMapMeta, "argument">,
  ): Uint8Array {
    const key = [element, shape, block_size, swizzle, l2_promotion].join(" ");
    let slot = this.#slots.get(key);
    if (slot === undefined) {
      slot = this.#device.arena.allocate(TENSOR_MAP.size);
      try {
        this.#device.driver.encodeTensorMap(slot.address, {
          address: this.#address,
          element,
          shape,
          box: block_size,
          swizzle,
          l2Promotion: l2_promotion,
        });
      } catch (error) {
        slot[Symbol.dispose]();
        throw error;
      }
      this.#slots.set(key, slot);
    }
    return new Uint8Array(slot.view.buffer, slot.view.byteOffset, TENSOR_MAP.size);
  }

  /** Harmless when repeated. */
  [Symbol.dispose](): void {
    for (const slot of this.#slots.values()) slot[Symbol.dispose]();
    this.#slots.clear();
  }
}

const ofBuffers = new WeakMap<CudaBuffer, TensorMaps>();

/** The tensor maps of what lies in a buffer; they go when it is closed. */
export function tensorMapsOf(buffer: CudaBuffer, device: TensorMapEncoder): TensorMaps {
  const known = ofBuffers.get(buffer);
  if (known !== undefined) return known;
  const maps = new TensorMaps(device, buffer.address);
  buffer.attach(maps);
  ofBuffers.set(buffer, maps);
  return maps;
}
