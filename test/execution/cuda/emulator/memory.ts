/**
 * Device memory that is watched: every access must lie in a live allocation, below the end
 * of what its owner asked for, be aligned, and read nothing that was never written. What a
 * piece of work touched is written down for the race check (order.ts).
 *
 * The bytes are those of the fake driver; this holds no data of its own but what was written.
 */

import { brainBits, halfBits, widenBrains, widenHalves } from "./numbers.ts";

/** An i64 is only a place: its words are read `as` i32. */
export const ELEMENT_BYTES = { bf16: 2, fp16: 2, fp32: 4, i32: 4, i64: 8 } as const;
export type Element = keyof typeof ELEMENT_BYTES;

/** Addresses from `begin` up to, and not with, `end`. */
export interface Span {
  begin: number;
  end: number;
}

/** What a piece of work touched. Atomics do not race with each other. */
export class Accesses {
  readonly reads: Span[] = [];
  readonly writes: Span[] = [];
  readonly atomics: Span[] = [];

  static add(spans: Span[], begin: number, end: number): void {
    const last = spans.at(-1);
    if (last !== undefined && begin <= last.end && end >= last.begin) {
      last.begin = Math.min(last.begin, begin);
      last.end = Math.max(last.end, end);
    } else {
      spans.push({ begin, end });
    }
  }

  /** Sorts and joins what overlaps. */
  settle(): this {
    for (const spans of [this.reads, this.writes, this.atomics]) {
      const sorted = spans.splice(0).sort((a, b) => a.begin - b.begin);
      for (const { begin, end } of sorted) Accesses.add(spans, begin, end);
    }
    return this;
  }
}

interface Region {
  readonly begin: number;
  readonly bytes: ArrayBuffer;
  /** Bytes that its present owner asked for: blocks are larger and are used again. */
  length: number;
  /** A 1 for every byte that was written; undefined for host memory, which the host writes. */
  readonly written: Uint8Array | undefined;
}

export class WatchedMemory {
  /** By address. */
  readonly #regions: Region[] = [];
  /** Where accesses are noted at present. */
  accesses = new Accesses();

  /** @param device whether only the device writes there */
  add(address: bigint, bytes: ArrayBuffer, device: boolean): void {
    this.#regions.push({
      begin: Number(address),
      bytes,
      length: bytes.byteLength,
      written: device ? new Uint8Array(bytes.byteLength) : undefined,
    });
    this.#regions.sort((a, b) => a.begin - b.begin);
  }

  remove(address: bigint): void {
    const at = this.#regions.findIndex(({ begin }) => begin === Number(address));
    this.#regions.splice(at, 1);
  }

  /** The bytes there, whoever asks; undefined if they are not all in one allocation. */
  find(address: number, length: number): Uint8Array<ArrayBuffer> | undefined {
    const region = this.#regionOf(address);
    if (region === undefined || address + length > region.begin + region.bytes.byteLength) {
      return undefined;
    }
    return new Uint8Array(region.bytes, address - region.begin, length);
  }

  /**
   * Zeroing a block from its beginning is how the device hands it to its next owner: what
   * lies behind is nobody's from then on.
   */
  handOut(address: number, length: number): void {
    const region = this.#regionOf(address);
    if (region?.begin !== address || region.written === undefined) return;
    region.length = Math.min(length, region.bytes.byteLength);
    region.written.fill(0);
  }

  /** A staging block is not zeroed; what is copied to its beginning may be longer than its last owner's. */
  stage(address: number, length: number): void {
    const region = this.#regionOf(address);
    if (region?.begin === address && length > region.length) this.handOut(address, length);
  }

  read(address: number, length: number): Uint8Array<ArrayBuffer> {
    const { region, offset } = this.#check("read", address, length);
    const missing = region.written?.subarray(offset, offset + length).indexOf(0) ?? -1;
    if (missing >= 0) {
      throw new Error(`Byte ${hex(address + missing)} is read and was never written.`);
    }
    Accesses.add(this.accesses.reads, address, address + length);
    return new Uint8Array(region.bytes, offset, length);
  }

  write(address: number, length: number): Uint8Array<ArrayBuffer> {
    const { region, offset } = this.#check("write", address, length);
    region.written?.fill(1, offset, offset + length);
    Accesses.add(this.accesses.writes, address, address + length);
    return new Uint8Array(region.bytes, offset, length);
  }

  /** A word to be changed atomically: read, and written at once. */
  atomic(address: number): Int32Array {
    if (address % 4 !== 0) throw new Error(`An atomic at ${hex(address)} is not aligned.`);
    const { region, offset } = this.#check("atomic", address, 4);
    if (region.written?.subarray(offset, offset + 4).includes(0) === true) {
      throw new Error(`The word at ${hex(address)} is changed and was never written.`);
    }
    Accesses.add(this.accesses.atomics, address, address + 4);
    return new Int32Array(region.bytes, offset, 1);
  }

  #check(what: string, address: number, length: number): { region: Region; offset: number } {
    const region = this.#regionOf(address);
    if (region === undefined) {
      throw new Error(`There is no memory at ${hex(address)} (${what} of ${length} bytes).`);
    }
    const offset = address - region.begin;
    if (offset + length > region.length) {
      throw new Error(
        `A ${what} of ${length} bytes at byte ${offset} of the block at ${hex(region.begin)} goes beyond its ${region.length} bytes.`,
      );
    }
    return { region, offset };
  }

  #regionOf(address: number): Region | undefined {
    let low = 0;
    let high = this.#regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#regions[middle] as Region).begin <= address) low = middle + 1;
      else high = middle;
    }
    const region = this.#regions[low - 1];
    return region !== undefined && address < region.begin + region.bytes.byteLength
      ? region
      : undefined;
  }
}

/** A typed pointer of a kernel; indices are elements. */
export class Pointer {
  readonly memory: WatchedMemory;
  readonly address: number;
  readonly element: Element;
  readonly #bytes: number;

  constructor(memory: WatchedMemory, address: number, element: Element) {
    this.memory = memory;
    this.address = address;
    this.element = element;
    this.#bytes = ELEMENT_BYTES[element];
  }

  get isNull(): boolean {
    return this.address === 0;
  }

  /** To elements of another type at the same place. */
  as(element: Element): Pointer {
    return new Pointer(this.memory, this.address, element);
  }

  /** Floats, widened. */
  load(first: number, count: number): Float32Array {
    if (count === 0) return new Float32Array(0);
    const { buffer, byteOffset } = this.memory.read(this.#at(first), count * this.#bytes);
    switch (this.element) {
      case "bf16":
        return widenBrains(new Uint16Array(buffer, byteOffset, count));
      case "fp16":
        return widenHalves(new Uint16Array(buffer, byteOffset, count));
      case "fp32":
        return new Float32Array(buffer, byteOffset, count).slice();
      case "i32":
      case "i64":
        throw new Error("Integers are loaded as floats.");
    }
  }

  loadInts(first: number, count: number): Int32Array {
    if (count === 0) return new Int32Array(0);
    this.#require("i32");
    const { buffer, byteOffset } = this.memory.read(this.#at(first), count * 4);
    return new Int32Array(buffer, byteOffset, count).slice();
  }

  float(index: number): number {
    return this.load(index, 1)[0] as number;
  }

  int(index: number): number {
    return this.loadInts(index, 1)[0] as number;
  }

  /** Floats, rounded to the element type. */
  store(first: number, values: Float32Array): void {
    const { length } = values;
    if (length === 0) return;
    const { buffer, byteOffset } = this.memory.write(this.#at(first), length * this.#bytes);
    if (this.element === "fp32") {
      new Float32Array(buffer, byteOffset, length).set(values);
      return;
    }
    if (this.element !== "bf16" && this.element !== "fp16") {
      throw new Error("Floats are stored as integers.");
    }
    const round = this.element === "bf16" ? brainBits : halfBits;
    const target = new Uint16Array(buffer, byteOffset, length);
    for (let i = 0; i < length; i++) target[i] = round(values[i] as number);
  }

  storeInts(first: number, values: ArrayLike<number>): void {
    if (values.length === 0) return;
    this.#require("i32");
    const { buffer, byteOffset } = this.memory.write(this.#at(first), values.length * 4);
    new Int32Array(buffer, byteOffset, values.length).set(values);
  }

  /** The word at an index, to be changed in place as an atomic does. */
  atomic(index: number): Int32Array {
    this.#require("i32");
    return this.memory.atomic(this.#at(index));
  }

  #at(index: number): number {
    const address = this.address + index * this.#bytes;
    if (address % this.#bytes !== 0) {
      throw new Error(`An access to ${this.element} at ${hex(address)} is not aligned.`);
    }
    return address;
  }

  #require(element: Element): void {
    if (this.element !== element) throw new Error(`A ${this.element} is used as ${element}.`);
  }
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
