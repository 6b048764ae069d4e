/**
 * One kernel launch as bytes: a CUlaunchConfig, its attributes, the parameters, and
 * the table of their addresses, side by side in one slot of the arena. The driver
 * is handed two addresses and reads the rest.
 *
 * Stream, width of the grid, cache window, whether the kernel may start early, and parameters
 * are changed in place: launching what is written down allocates nothing.
 */

import { InvalidArgumentError } from "../../../errors.ts";
import type { Kernel } from "../bundle/kernel-set.ts";
import {
  isPointer,
  type KernelArgument,
  type KernelEntry,
  parameterBytes,
} from "../bundle/manifest.ts";
import type { AccessWindow, Extent } from "../driver/driver.ts";
import {
  ACCESS_PROPERTY,
  ACCESS_WINDOW,
  LAUNCH_ATTRIBUTE,
  LAUNCH_ATTRIBUTE_ID,
  LAUNCH_CONFIG,
  TENSOR_MAP,
} from "../driver/structs.ts";
import type { PreparedLaunch } from "../work.ts";
import type { Slot } from "./arena.ts";

/** A pointer as an address or null, a number, or the bytes of a tensor map. */
export type KernelValue = bigint | number | null | Uint8Array;

/** By parameter name. Names that the kernel does not have are passed over: variants differ in what they take. */
export type KernelValues = Readonly<Record<string, KernelValue>>;

/** Room for a cache window and for dependent launch, of every launch: a window can come later. */
const MOST_ATTRIBUTES = 2;

const THREADS_PER_WARP = 32;
/** Triton's own parameters, which end every list; see the manifest's scratch sizes. */
const SCRATCH = ["global_scratch", "profile_scratch"];

const ATTRIBUTES_AT = LAUNCH_CONFIG.size;
const TABLE_AT = ATTRIBUTES_AT + MOST_ATTRIBUTES * LAUNCH_ATTRIBUTE.size;

export class Launch implements PreparedLaunch, Disposable {
  readonly config: bigint;
  readonly fn: bigint;
  readonly params: bigint;
  readonly grid: Extent;
  readonly #grid: { x: number; y: number; z: number };
  readonly #slot: Slot;
  readonly #view: DataView;
  readonly #fixedAttributes: number;
  readonly #entry: KernelEntry;
  /** Where each parameter is in the slot, in their order. */
  readonly #offsets: readonly number[];

  /** @param allocate gives 128-byte aligned slots */
  static write(
    allocate: (bytes: number) => Slot,
    kernel: Kernel,
    values: KernelValues,
    grid: Extent,
  ): Launch {
    const { entry } = kernel;
    // Before a slot is taken, so that a bad image or value leaves none behind.
    const { fn } = kernel;
    const given = entry.args.map((argument) =>
      checkedValue(entry, argument, values[argument.name]),
    );
    let end = TABLE_AT + entry.args.length * 8;
    const offsets = entry.args.map((argument) => {
      const alignment = argument.type === "tensormap" ? TENSOR_MAP.alignment : 8;
      const offset = Math.ceil(end / alignment) * alignment;
      end = offset + parameterBytes(argument);
      return offset;
    });
    const slot = allocate(end);
    for (const [index, argument] of entry.args.entries()) {
      const offset = offsets[index] as number;
      slot.view.setBigUint64(TABLE_AT + index * 8, slot.address + BigInt(offset), true);
      writeValue(slot.view, offset, argument, given[index] as KernelValue);
    }
    return new Launch(slot, fn, entry, offsets, grid);
  }

  private constructor(
    slot: Slot,
    fn: bigint,
    entry: KernelEntry,
    offsets: readonly number[],
    { x, y, z }: Extent,
  ) {
    const { view, address } = slot;
    this.#slot = slot;
    this.#entry = entry;
    this.#offsets = offsets;
    this.#view = view;
    this.fn = fn;
    this.config = address;
    this.params = address + BigInt(TABLE_AT);
    this.#grid = { x, y, z };
    this.grid = this.#grid;
    for (let at = 0; at < TABLE_AT; at += 4) view.setUint32(at, 0, true);
    view.setUint32(LAUNCH_CONFIG.gridX, x, true);
    view.setUint32(LAUNCH_CONFIG.gridY, y, true);
    view.setUint32(LAUNCH_CONFIG.gridZ, z, true);
    view.setUint32(LAUNCH_CONFIG.blockX, THREADS_PER_WARP * entry.num_warps, true);
    view.setUint32(LAUNCH_CONFIG.blockY, 1, true);
    view.setUint32(LAUNCH_CONFIG.blockZ, 1, true);
    view.setUint32(LAUNCH_CONFIG.sharedBytes, entry.shared, true);
    view.setBigUint64(LAUNCH_CONFIG.attributes, address + BigInt(ATTRIBUTES_AT), true);
    this.#fixedAttributes = entry.launch_pdl ? 1 : 0;
    if (entry.launch_pdl) {
      view.setUint32(ATTRIBUTES_AT, LAUNCH_ATTRIBUTE_ID.programmaticStreamSerialization, true);
    }
    view.setUint32(LAUNCH_CONFIG.attributeCount, this.#fixedAttributes, true);
  }

  /** Whether it may start while the kernel in front of it on the stream runs; one that does not wait for it never does. */
  setDependent(dependent: boolean): void {
    if (this.#fixedAttributes === 0) return;
    this.#view.setInt32(ATTRIBUTES_AT + LAUNCH_ATTRIBUTE.value, dependent ? 1 : 0, true);
  }

  setStream(stream: bigint): void {
    this.#view.setBigUint64(LAUNCH_CONFIG.stream, stream, true);
  }

  setBlocks(x: number): void {
    this.#grid.x = x;
    this.#view.setUint32(LAUNCH_CONFIG.gridX, x, true);
  }

  /** Other values for these parameters. @throws InvalidArgumentError for a value that is not of the parameter's type */
  setValues(values: KernelValues): void {
    const { args } = this.#entry;
    const given = args.map((argument) => {
      const value = values[argument.name];
      return value === undefined ? undefined : checkedValue(this.#entry, argument, value);
    });
    for (const [index, value] of given.entries()) {
      if (value === undefined) continue;
      const argument = args[index] as KernelArgument;
      writeValue(this.#view, this.#offsets[index] as number, argument, value);
    }
  }

  /** Its parameters that are pointers, with their names. */
  pointers(): readonly (readonly [string, bigint])[] {
    return this.#entry.args.flatMap(({ name, type }, index) => {
      if (!isPointer(type)) return [];
      return [[name, this.#view.getBigUint64(this.#offsets[index] as number, true)] as const];
    });
  }

  /** What this launch reads of the range stays in the L2 longest; null: no such wish. */
  setWindow(window: AccessWindow | null): void {
    const view = this.#view;
    view.setUint32(
      LAUNCH_CONFIG.attributeCount,
      this.#fixedAttributes + (window === null ? 0 : 1),
      true,
    );
    if (window === null) return;
    const attribute = ATTRIBUTES_AT + this.#fixedAttributes * LAUNCH_ATTRIBUTE.size;
    const value = attribute + LAUNCH_ATTRIBUTE.value;
    view.setUint32(attribute + LAUNCH_ATTRIBUTE.id, LAUNCH_ATTRIBUTE_ID.accessPolicyWindow, true);
    view.setBigUint64(value + ACCESS_WINDOW.address, window.address, true);
    // In halves: a launch makes no bigints.
    view.setUint32(value + ACCESS_WINDOW.bytes, window.bytes % 2 ** 32, true);
    view.setUint32(value + ACCESS_WINDOW.bytes + 4, Math.floor(window.bytes / 2 ** 32), true);
    view.setFloat32(value + ACCESS_WINDOW.hitRatio, window.hitRatio, true);
    view.setUint32(value + ACCESS_WINDOW.hitProperty, ACCESS_PROPERTY.persisting, true);
    view.setUint32(value + ACCESS_WINDOW.missProperty, ACCESS_PROPERTY.streaming, true);
  }

  /** Gives the memory back; harmless when repeated. The launch must not be used any more. */
  [Symbol.dispose](): void {
    this.#slot[Symbol.dispose]();
  }
}

/** The checked value of a parameter. */
function checkedValue(
  entry: KernelEntry,
  argument: KernelArgument,
  given: KernelValue | undefined,
): KernelValue {
  const { name, type, divisible_by } = argument;
  if (given === undefined) {
    if (SCRATCH.includes(name)) return null;
    // A descriptor's shape and strides are passed a second time; these kernels do not read them.
    if (repeatsDescriptor(entry, name)) return 0;
    return refuse(entry, name, "has no value", "Give every parameter one.");
  }
  if (!fits(type, given)) {
    const shown = given instanceof Uint8Array ? `${given.length} bytes` : String(given);
    return refuse(entry, name, `is ${shown}`, `It takes ${described(type)}.`);
  }
  const odd =
    divisible_by !== null &&
    ((typeof given === "number" && given % divisible_by !== 0) ||
      (typeof given === "bigint" && given % BigInt(divisible_by) !== 0n));
  if (!odd) return given;
  return refuse(
    entry,
    name,
    `is ${String(given)}`,
    `The kernel is compiled for multiples of ${divisible_by}.`,
  );
}

function refuse(entry: KernelEntry, parameter: string, what: string, remedy: string): never {
  throw new InvalidArgumentError(`Kernel ${entry.name}: parameter ${parameter} ${what}. ${remedy}`);
}

function repeatsDescriptor({ args }: KernelEntry, name: string): boolean {
  const repeated = /^(.+)_(?:shape|stride)\d$/.exec(name)?.[1];
  return args.some((other) => other.name === repeated && other.type === "tensormap");
}

function fits(type: KernelArgument["type"], value: KernelValue): boolean {
  if (isPointer(type)) return value === null || (typeof value === "bigint" && value >= 0n);
  switch (type) {
    case "i32":
      return typeof value === "number" && Number.isInteger(value) && value === (value | 0);
    case "i64":
      return typeof value === "number" && Number.isSafeInteger(value);
    case "fp32":
    case "fp64":
      return typeof value === "number";
    case "tensormap":
      return value instanceof Uint8Array && value.length === TENSOR_MAP.size;
  }
}

function described(type: KernelArgument["type"]): string {
  if (isPointer(type)) return "an address or null";
  return {
    i32: "a whole number of 32 bits",
    i64: "a whole number",
    fp32: "a number",
    fp64: "a number",
    tensormap: "the 128 bytes of a tensor map",
  }[type];
}

function writeValue(
  view: DataView,
  offset: number,
  { type }: KernelArgument,
  value: KernelValue,
): void {
  if (value instanceof Uint8Array) {
    new Uint8Array(view.buffer, view.byteOffset + offset, value.length).set(value);
  } else if (isPointer(type)) {
    view.setBigUint64(offset, value === null ? 0n : (value as bigint), true);
  } else if (type === "i64") {
    view.setBigInt64(offset, BigInt(value as number), true);
  } else if (type === "i32") {
    view.setInt32(offset, value as number, true);
  } else if (type === "fp32") {
    view.setFloat32(offset, value as number, true);
  } else {
    view.setFloat64(offset, value as number, true);
  }
}
