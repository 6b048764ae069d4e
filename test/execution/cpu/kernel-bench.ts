/**
 * A bench to put the kernels on: both builds that this runtime can run, bound to a
 * memory of their own, with an allocator that surrounds every array with guards.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import {
  instantiateKernels,
  type Kernels,
  MAXIMUM_PAGES,
  type WeightDType,
} from "../../../src/execution/cpu/kernels.ts";
import { float16ToNumber } from "../../../src/tensor.ts";

export const DTYPES: readonly WeightDType[] = ["float32", "bfloat16", "float16"];

/** Sizes of row groups that the loader chooses from. */
export const GROUP_ROWS = [4, 6] as const;

const GUARD_BYTES = 256;

export function readKernels(name: "simd" | "relaxed"): Uint8Array<ArrayBuffer> {
  const url = new URL(`../../../src/execution/cpu/kernels.${name}.wasm`, import.meta.url);
  return new Uint8Array(readFileSync(url));
}

/** The builds of the kernels that this runtime can run. */
export const VARIANTS = (["simd", "relaxed"] as const).filter((name) =>
  WebAssembly.validate(readKernels(name)),
);

export interface BenchOptions {
  /** Address of the first array. */
  readonly base?: number;
  readonly bytes?: number;
  readonly groupRows?: number;
}

export class KernelBench {
  /** What fresh memory holds: a NaN as float32, so that stray reads spoil results. */
  static readonly POISON = 0xffa5a5a5;

  readonly kernels: Kernels;
  readonly memory: WebAssembly.Memory;
  #top: number;
  readonly #guards: number[] = [];

  constructor(variant: "simd" | "relaxed", options: BenchOptions = {}) {
    const { base = 65536, bytes = 4 * 2 ** 20, groupRows } = options;
    const initial = Math.ceil((base + bytes) / 65536);
    this.memory = new WebAssembly.Memory({ initial, maximum: MAXIMUM_PAGES, shared: true });
    this.#top = base;
    new Uint32Array(this.memory.buffer, base, bytes / 4).fill(KernelBench.POISON);
    this.kernels = instantiateKernels(moduleOf(variant), this.memory, groupRows);
  }

  /** Address behind the last array. */
  get used(): number {
    return this.#top;
  }

  /** Poisoned memory, `alignment` bytes aligned, with guards on both sides. */
  allocate(byteLength: number, alignment = 16): number {
    // One step past the alignment asked for: an array that needs 4 gets an address that is no multiple of 8.
    const address = Math.ceil((this.#top + GUARD_BYTES) / 32) * 32 + (alignment % 32);
    this.#guards.push(address, byteLength);
    this.#top = address + byteLength;
    assert.ok(this.#top + GUARD_BYTES <= this.memory.buffer.byteLength, "bench memory too small");
    return address;
  }

  /** Zeros instead of poison. */
  clear(address: number, byteLength: number): number {
    new Uint8Array(this.memory.buffer, address, byteLength).fill(0);
    return address;
  }

  /** A copy of an array. */
  put(values: Float32Array | Uint16Array | Int32Array, alignment = 4): number {
    const address = this.allocate(values.byteLength, alignment);
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    new Uint8Array(this.memory.buffer).set(bytes, address);
    return address;
  }

  floats(address: number, length: number): Float32Array {
    return new Float32Array(this.memory.buffer.slice(address, address + 4 * length));
  }

  halves(address: number, length: number): Uint16Array {
    return new Uint16Array(this.memory.buffer.slice(address, address + 2 * length));
  }

  words(address: number, length: number): Uint32Array {
    return new Uint32Array(this.memory.buffer.slice(address, address + 4 * length));
  }

  /** Fails if anything was written between the arrays. */
  checkGuards(): void {
    const bytes = new Uint8Array(this.memory.buffer);
    const poison = new Uint8Array(Uint32Array.of(KernelBench.POISON).buffer);
    for (let i = 0; i < this.#guards.length; i += 2) {
      const [start, length] = this.#guards.slice(i, i + 2) as [number, number];
      for (let d = 1; d <= 64; d++) {
        for (const at of [start - d, start + length + d - 1]) {
          assert.equal(
            bytes[at],
            poison[at % 4],
            `guard of array at ${start} overwritten at ${at}`,
          );
        }
      }
    }
  }
}

const modules = new Map<string, WebAssembly.Module>();

function moduleOf(name: "simd" | "relaxed"): WebAssembly.Module {
  const module = modules.get(name) ?? new WebAssembly.Module(readKernels(name));
  modules.set(name, module);
  return module;
}

/** The value of a 16-bit element, as float64. */
export function decode(bits: number, dtype: WeightDType): number {
  if (dtype === "float16") return float16ToNumber(bits);
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0] as number;
}
