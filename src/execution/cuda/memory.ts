/**
 * Device memory as its users hold it: buffers over blocks of the caching allocator,
 * some with a mirror in page-locked host memory.
 *
 * A closed buffer's memory goes back only when everything submitted before is over,
 * so neither the GPU nor a copy to the host can touch what somebody else was given.
 */

import type { CudaBuffer, HostMirror } from "./buffer.ts";
import type { DeviceBlock } from "./driver/allocator.ts";
import type { PinnedPiece } from "./driver/pinned.ts";

/** What a buffer needs of the device it belongs to. */
export interface BufferOwner {
  readonly closed: boolean;
  /** Takes a buffer's memory back once no submitted work can touch it any more. */
  retire(buffer: GpuBuffer): void;
}

export class GpuBuffer implements CudaBuffer {
  readonly owner: BufferOwner;
  readonly byteLength: number;
  readonly label: string;
  readonly address: bigint;
  readonly block: DeviceBlock;
  readonly pinned: PinnedPiece | undefined;
  readonly mirror?: HostMirror;
  /** Whether the mirror holds what the buffer does; not so after the host wrote to the buffer alone. */
  mirrorCurrent: boolean;
  readonly #attached: Disposable[] = [];
  #closed = false;

  /** @param block what it holds; @param pinned where the mirror lies, which holds the same */
  constructor(
    owner: BufferOwner,
    block: DeviceBlock,
    byteLength: number,
    label: string,
    pinned: PinnedPiece | undefined,
  ) {
    this.owner = owner;
    this.block = block;
    this.address = block.address;
    this.byteLength = byteLength;
    this.label = label;
    this.pinned = pinned;
    this.mirrorCurrent = pinned !== undefined;
    if (pinned !== undefined) {
      this.mirror = { address: pinned.address, bytes: pinned.bytes.subarray(0, byteLength) };
    }
  }

  get closed(): boolean {
    return this.#closed || this.owner.closed;
  }

  attach(child: Disposable): void {
    this.#attached.push(child);
  }

  [Symbol.dispose](): void {
    if (this.closed) return;
    this.#closed = true;
    for (const child of this.#attached) child[Symbol.dispose]();
    this.owner.retire(this);
  }
}
