/**
 * One kernel launch as the kernel sees it: its parameters by name, read from the bytes that
 * were handed to the driver in the order and with the types of the manifest, and its grid.
 * What the compiler was promised (multiples, alignment) is checked here.
 */

import {
  isPointer,
  type KernelArgument,
  type KernelEntry,
} from "../../../../src/execution/cuda/bundle/manifest.ts";
import type { Extent } from "../../../../src/execution/cuda/driver/driver.ts";
import { ELEMENT_BYTES, type Element, Pointer, type WatchedMemory } from "./memory.ts";

/** What the emulated driver leaves in a tensor map. */
export interface TensorMapFields {
  readonly address: number;
  readonly element: Element;
  /** From the outermost dimension on, like the box. */
  readonly shape: readonly number[];
  readonly box: readonly number[];
  readonly swizzle: number;
}

const MARK = 0x7e45_0a9d;
const ELEMENTS = ["bf16", "fp16", "fp32", "i32"] as const;
/** Where the shape and the box are, with room for five dimensions each. */
const SHAPE = 24;
const BOX = 44;

export function writeTensorMap(view: DataView, map: TensorMapFields): void {
  for (let at = 0; at < 128; at += 4) view.setUint32(at, 0, true);
  view.setUint32(0, MARK, true);
  view.setUint32(4, ELEMENTS.indexOf(map.element as (typeof ELEMENTS)[number]), true);
  view.setFloat64(8, map.address, true);
  view.setUint32(16, map.swizzle, true);
  view.setUint32(20, map.shape.length, true);
  for (const [i, size] of map.shape.entries()) view.setUint32(SHAPE + 4 * i, size, true);
  for (const [i, size] of map.box.entries()) view.setUint32(BOX + 4 * i, size, true);
}

function readTensorMap(view: DataView): TensorMapFields {
  if (view.getUint32(0, true) !== MARK) throw new Error("A tensor map was never encoded.");
  const sizes = (at: number) =>
    Array.from({ length: view.getUint32(20, true) }, (_, i) => view.getUint32(at + 4 * i, true));
  return {
    element: ELEMENTS[view.getUint32(4, true)] as Element,
    address: view.getFloat64(8, true),
    swizzle: view.getUint32(16, true),
    shape: sizes(SHAPE),
    box: sizes(BOX),
  };
}

export class KernelCall {
  readonly entry: KernelEntry;
  readonly grid: Extent;
  readonly #memory: WatchedMemory;
  readonly #numbers = new Map<string, number>();
  readonly #pointers = new Map<string, Pointer>();
  readonly #maps = new Map<string, TensorMapFields>();

  constructor(
    entry: KernelEntry,
    grid: Extent,
    memory: WatchedMemory,
    parameter: (index: number) => DataView,
  ) {
    this.entry = entry;
    this.grid = grid;
    this.#memory = memory;
    for (const [index, argument] of entry.args.entries()) this.#read(argument, parameter(index));
  }

  /** A constant that the kernel was compiled with. */
  constant(name: string): number {
    return Number(this.entry.constants[name]);
  }

  flag(name: string): boolean {
    return this.entry.constants[name] === true;
  }

  number(name: string): number {
    return this.#numbers.get(name) ?? this.#missing(name);
  }

  pointer(name: string): Pointer {
    return this.#pointers.get(name) ?? this.#missing(name);
  }

  has(name: string): boolean {
    return this.#numbers.has(name) || this.#pointers.has(name) || this.#maps.has(name);
  }

  tensorMap(name: string): TensorMapFields | undefined {
    return this.#maps.get(name);
  }

  /** A pointer to what a tensor map describes. */
  mapped({ address, element }: TensorMapFields): Pointer {
    return new Pointer(this.#memory, address, element);
  }

  #read({ name, type, divisible_by }: KernelArgument, view: DataView): void {
    if (type === "tensormap") {
      this.#maps.set(name, readTensorMap(view));
      return;
    }
    const value = isPointer(type) ? Number(view.getBigUint64(0, true)) : scalar(type, view);
    if (divisible_by !== null && value % divisible_by !== 0) {
      throw new Error(`${this.entry.name}: ${name} is ${value}, no multiple of ${divisible_by}.`);
    }
    if (!isPointer(type)) {
      this.#numbers.set(name, value);
      return;
    }
    const element = type.slice(1);
    // Triton's own scratch pointers are bytes that nobody reads.
    if (element in ELEMENT_BYTES) {
      this.#pointers.set(name, new Pointer(this.#memory, value, element as Element));
    } else if (value !== 0) {
      throw new Error(`${this.entry.name}: ${name} is not null.`);
    }
  }

  #missing(name: string): never {
    throw new Error(`${this.entry.name} has no parameter ${name} of that kind.`);
  }
}

function scalar(type: "i32" | "i64" | "fp32" | "fp64", view: DataView): number {
  switch (type) {
    case "i32":
      return view.getInt32(0, true);
    case "i64":
      return Number(view.getBigInt64(0, true));
    case "fp32":
      return view.getFloat32(0, true);
    case "fp64":
      return view.getFloat64(0, true);
  }
}
