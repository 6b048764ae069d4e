/** A block of device memory as its owner holds it: an address, a label, and whether it is still there. */

import type { DeviceBuffer } from "../device.ts";
import type { Block } from "./memory.ts";

/** What a buffer needs of the device it belongs to. */
export interface BufferOwner {
  readonly closed: boolean;
  /** Takes a block back once no submitted program can touch it any more. */
  retireBlock(block: Block): void;
}

export class CpuBuffer implements DeviceBuffer {
  readonly owner: BufferOwner;
  readonly byteLength: number;
  readonly label: string;
  readonly address: number;
  /** Whether it is read as it is, whatever runs. */
  readonly mirrored: boolean;
  readonly #block: Block;
  readonly #attached: CpuBuffer[] = [];
  #closed = false;

  constructor(
    owner: BufferOwner,
    block: Block,
    byteLength: number,
    label: string,
    mirrored: boolean,
  ) {
    this.owner = owner;
    this.#block = block;
    this.address = block.address;
    this.byteLength = byteLength;
    this.label = label;
    this.mirrored = mirrored;
  }

  /** Room in 32-bit elements, which is all that operators know. */
  get elements(): number {
    return Math.floor(this.byteLength / 4);
  }

  get closed(): boolean {
    return this.#closed || this.owner.closed;
  }

  /** Lets a buffer of the device's own go when this one goes. */
  attach(buffer: CpuBuffer): void {
    this.#attached.push(buffer);
  }

  [Symbol.dispose](): void {
    if (this.closed) return;
    this.#closed = true;
    for (const buffer of this.#attached) buffer[Symbol.dispose]();
    this.owner.retireBlock(this.#block);
  }
}
