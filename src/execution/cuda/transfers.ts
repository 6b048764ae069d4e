/**
 * What passes between the host, buffers and weights, all of it on the launch stream
 * and so in the order of the calls: what is called or launched next comes after it. (Copies and reads
 * come after launches that wait for their turn, too; a copy then is waited for before that holds, and so is a read
 * before its buffer is written. Of several reads at once, all but two wait until one of these is over.)
 * Copies and small writes do not wait for the GPU; large writes wait until the driver has
 * read their source, and with them the event loop: they are no promises, as their source may change when they return. A GPU that reads pageable memory by itself does so only when it is the
 * copy's turn: there they are staged here, and only those that are more than LARGE_WRITE_BYTES
 * or that far ahead of the GPU wait for all that was handed over before. Reading waits by
 * promise. A mirrored buffer whose mirror is current is read without asking the GPU for anything.
 */

import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import { BYTES_PER_ELEMENT, type DType, sizeOf, type Tensor } from "../../tensor.ts";
import { type DeviceBuffer, type RowLayout, rowBytes } from "../device.ts";
import {
  checkHostMemory,
  checkLayout,
  checkRange,
  checkRowCount,
  checkRowSource,
} from "../memory-checks.ts";
import type { CachingAllocator } from "./driver/allocator.ts";
import type { Driver } from "./driver/driver.ts";
import type { EventPool } from "./driver/events.ts";
import { issueWork } from "./issue.ts";
import { type BufferOwner, GpuBuffer } from "./memory.ts";
import type { LaunchContext, OwnKernelWork } from "./operators/kernel-work.ts";
import { checkRows, rowsWork } from "./operators/pack.ts";
import { STAGING_BYTES, type WeightTransfers } from "./projection.ts";
import { roundedRows } from "./rounding.ts";
import { StagingSlots, WriteRing } from "./staging.ts";
import type { Work } from "./work.ts";

/** Counts, lane tables and the hidden states of a decode step are at most as large. */
export const SMALL_WRITE_BYTES = 16 * 1024;
/** Small writes that may be ahead of the GPU, which are to find room whatever large ones do. A step makes a handful. */
const SMALL_WRITES = 32;
/**
 * 1024 tokens of 2048 values in float32. Staged here, 4 MiB take a fifth longer than by the
 * driver, which sends the first part while it copies the next: so only where it does not.
 */
export const LARGE_WRITE_BYTES = 8 * 2 ** 20;

/** What transfers need of the device they belong to. */
export interface TransferOwner extends BufferOwner, LaunchContext {
  readonly driver: Driver;
  readonly events: EventPool;
  readonly allocator: CachingAllocator;
  readonly launchStream: bigint;
  requireOpen(): void;
  /** Resolves once everything handed to the launch stream so far is done. */
  reached(): Promise<void>;
  /** Puts something on the launch stream behind all that was submitted before; resolves when it is there. */
  inTurn(enqueue: () => void): Promise<void>;
  /** As `inTurn`, but resolves when it is done. */
  carriedOut(enqueue: () => void): Promise<void>;
  /** Does something once everything submitted so far is over. */
  afterwards(action: () => void): void;
}

/** Work of the device's own: kernels whose launches are to be given back, and copies. */
type OwnWork = readonly (Work | OwnKernelWork)[];

export class Transfers implements WeightTransfers {
  readonly #owner: TransferOwner;
  readonly #driver: Driver;
  readonly #stream: bigint;
  readonly #smallWrites: WriteRing;
  /** For a GPU that reads pageable memory. Made when it is needed first: locking its pages takes milliseconds. */
  #largeWrites: WriteRing | undefined;
  readonly #slots: StagingSlots;

  constructor(owner: TransferOwner) {
    this.#owner = owner;
    this.#driver = owner.driver;
    this.#stream = owner.launchStream;
    this.#smallWrites = this.#ring(SMALL_WRITES * SMALL_WRITE_BYTES);
    this.#slots = new StagingSlots(owner.driver, owner.allocator);
  }

  write(target: DeviceBuffer, source: ArrayBufferView, byteOffset: number): void {
    checkHostMemory("source", source);
    const buffer = this.#range(target, byteOffset, source.byteLength);
    buffer.mirrorCurrent = false;
    this.upload(at(buffer, byteOffset), source);
  }

  /** Writes device memory now; work enqueued later finds it there. The source may change right afterwards. */
  upload(address: bigint, source: ArrayBufferView): void {
    this.#owner.requireOpen();
    const { byteLength } = source;
    if (byteLength === 0) return;
    if (this.#ringFor(byteLength)?.write(address, bytesOf(source))) return;
    // Ordinary memory is staged by the driver, which has read all of it by the time it returns.
    this.#driver.copyToDevice(address, source, byteLength, this.#stream);
    // Unless the GPU can do without: then it is read when it is the copy's turn, which is waited for.
    if (this.#owner.facts.readsPageable) this.#driver.synchronizeStream(this.#stream);
  }

  async read(source: DeviceBuffer, target: ArrayBufferView, byteOffset: number): Promise<void> {
    checkHostMemory("target", target);
    const buffer = this.#range(source, byteOffset, target.byteLength);
    const bytes = bytesOf(target);
    if (buffer.mirrorCurrent && buffer.mirror !== undefined) {
      bytes.set(buffer.mirror.bytes.subarray(byteOffset, byteOffset + bytes.byteLength));
      return;
    }
    if (bytes.byteLength === 0) return;
    await this.#slots.with(async ({ host }) => {
      for (let done = 0; done < bytes.byteLength; done += STAGING_BYTES) {
        this.#require(buffer);
        const part = bytes.subarray(done, done + STAGING_BYTES);
        const from = at(buffer, byteOffset + done);
        await this.#owner.carriedOut(() => {
          this.#driver.copyToHost(host.address, from, part.byteLength, this.#stream);
        });
        part.set(host.bytes.subarray(0, part.byteLength));
      }
    });
  }

  async copy(target: DeviceBuffer, source: DeviceBuffer, byteLength: number): Promise<void> {
    const to = this.#range(target, 0, byteLength);
    const from = this.#range(source, 0, byteLength);
    if (byteLength === 0) return;
    await this.#owner.inTurn(() => {
      this.#outdate(to);
      this.#driver.copyOnDevice(to.address, from.address, byteLength, this.#stream);
    });
  }

  /**
   * A buffer's mirror is stale from here on. Work under way says that mirrors are current when it ends, so this is
   * said again after that.
   */
  #outdate(buffer: GpuBuffer): void {
    buffer.mirrorCurrent = false;
    if (buffer.mirror === undefined) return;
    this.#owner.afterwards(() => {
      buffer.mirrorCurrent = false;
    });
  }

  writeRows(target: DeviceBuffer, layout: RowLayout, source: Tensor): void {
    const buffer = this.#require(target);
    checkLayout(layout);
    checkRowSource(layout, source);
    const { data, dtype } = source;
    const rows = sizeOf(source.shape) / layout.width;
    const few = rowBytes(layout, rows) <= SMALL_WRITE_BYTES;
    if (few && data instanceof Float32Array && layout.dtype !== "float32") {
      checkRows(buffer, layout, rows);
      buffer.mirrorCurrent = false;
      this.upload(buffer.address, roundedRows(data, layout, rows));
      return;
    }
    const dense = dtype === layout.dtype && layout.pitch === layout.width;
    const staged = dense
      ? undefined
      : this.#owner.allocator.allocate(data.byteLength, "rows to write");
    let work: OwnWork = [];
    try {
      const from = staged?.address ?? buffer.address;
      work = rowsWork(this.#owner, buffer, layout, from, dtype, rows);
      buffer.mirrorCurrent = false;
      this.upload(from, data);
      if (!dense) this.#issue(work);
    } finally {
      dispose(work);
      if (staged !== undefined) this.#owner.afterwards(() => staged.close());
    }
  }

  async copyRows(
    target: DeviceBuffer,
    layout: RowLayout,
    source: DeviceBuffer,
    dtype: DType,
    rows: number,
  ): Promise<void> {
    const to = this.#require(target);
    const from = this.#require(source);
    checkLayout(layout);
    checkRowCount(rows);
    const work = rowsWork(this.#owner, to, layout, from.address, dtype, rows);
    try {
      this.#range(source, 0, rows * layout.width * BYTES_PER_ELEMENT[dtype]);
      this.#outdate(to);
      this.#issue(work);
    } finally {
      dispose(work);
    }
  }

  /** Runs a kernel of the device's own on all of it; its launch is given back. */
  async runKernel(work: OwnKernelWork): Promise<void> {
    try {
      this.#owner.requireOpen();
      this.#issue([work]);
    } finally {
      dispose([work]);
    }
    await this.#owner.reached();
  }

  async uploadAndRun(
    chunk: ArrayBufferView,
    makeWork: (stagedAddress: bigint) => readonly Work[],
  ): Promise<void> {
    this.#owner.requireOpen();
    await this.#slots.with(async ({ host, device }) => {
      this.#owner.requireOpen();
      // First, since it refuses what is closed by now: there may have been a wait for the slot.
      const work = makeWork(device.address);
      const bytes = bytesOf(chunk);
      host.bytes.set(bytes);
      this.#driver.copyToDevice(device.address, host.address, bytes.byteLength, this.#stream);
      this.#issue(work);
      await this.#owner.reached();
    });
  }

  close(): void {
    this.#smallWrites.close();
    this.#largeWrites?.close();
    this.#slots.close();
  }

  #ring(halfBytes: number): WriteRing {
    const { driver, events, launchStream } = this.#owner;
    return new WriteRing(driver, events, launchStream, halfBytes);
  }

  /** Undefined where the driver is to stage it, or it is too large for a ring. */
  #ringFor(byteLength: number): WriteRing | undefined {
    if (byteLength <= SMALL_WRITE_BYTES) return this.#smallWrites;
    if (!this.#owner.facts.readsPageable || byteLength > LARGE_WRITE_BYTES) return undefined;
    this.#largeWrites ??= this.#ring(LARGE_WRITE_BYTES);
    return this.#largeWrites;
  }

  /** The driver has read the launches when this returns: they can be given back. */
  #issue(work: readonly Work[]): void {
    for (const item of work) {
      issueWork(this.#driver, item, this.#stream, this.#owner.facts.multiprocessors);
    }
  }

  #require(buffer: DeviceBuffer): GpuBuffer {
    this.#owner.requireOpen();
    if (!(buffer instanceof GpuBuffer) || buffer.owner !== this.#owner) {
      throw new InvalidArgumentError("The buffer is not one of this device.");
    }
    if (buffer.closed) throw new DisposedError(`Buffer "${buffer.label}"`);
    return buffer;
  }

  /** A buffer that has bytes `begin` to `begin + length - 1`. */
  #range(buffer: DeviceBuffer, begin: number, length: number): GpuBuffer {
    const found = this.#require(buffer);
    checkRange(found, begin, length);
    return found;
  }
}

function at({ address }: GpuBuffer, byteOffset: number): bigint {
  return byteOffset === 0 ? address : address + BigInt(byteOffset);
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** Gives the launches back. */
function dispose(work: OwnWork): void {
  for (const item of work) if ("launch" in item) (item as OwnKernelWork).launch[Symbol.dispose]();
}
