/**
 * The fake driver with a GPU in it: kernels of the bundle do what their Triton sources do,
 * on memory whose every access is checked, and work that nothing orders must not meet in it.
 *
 * What goes wrong inside of a kernel ends the context, as on a GPU, and is also kept in
 * `violations`, since a device that is being closed has nobody left to tell.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { CudaBuffer } from "../../../../src/execution/cuda/buffer.ts";
import {
  type KernelEntry,
  type Manifest,
  parameterBytes,
  parseManifest,
} from "../../../../src/execution/cuda/bundle/manifest.ts";
import { type CudaDevice, openOnDriver } from "../../../../src/execution/cuda/device.ts";
import type { DenseTensorMap, DeviceFacts } from "../../../../src/execution/cuda/driver/driver.ts";
import { shareOut, shareOutNearly } from "../../../../src/execution/cuda/driver/partitions.ts";
import { LAUNCH_CONFIG } from "../../../../src/execution/cuda/driver/structs.ts";
import { BYTES_PER_ELEMENT } from "../../../../src/tensor.ts";
import { FakeDriver, type FakeLaunch } from "../fake-driver.ts";
import type { NodeLaunch, Parameter } from "../fake-streams.ts";
import { KernelCall, writeTensorMap } from "./call.ts";
import { KERNELS } from "./kernels/index.ts";
import { Accesses, WatchedMemory } from "./memory.ts";
import { Order, type OrderedNode, type Tick } from "./order.ts";

const SHORT = { bfloat16: "bf16", float16: "fp16", float32: "fp32", int32: "i32" } as const;

let shipped: Manifest | undefined;

/** The manifest of the bundle that ships. */
export function shippedManifest(): Manifest {
  if (shipped === undefined) {
    // Compiled tests lie one folder deeper than their sources.
    const file = new URL("../../../../../kernels/bundle/manifest.json", import.meta.url);
    shipped = parseManifest(readFileSync(file, "utf8"), file.pathname);
  }
  return shipped;
}

interface Transfer {
  readonly name: string;
  readonly reads: readonly [bigint, number][];
  readonly writes: readonly [bigint, number][];
  /** What has to be known of the memory before. */
  readonly before?: () => void;
}

export class EmulatedDriver extends FakeDriver {
  readonly memory = new WatchedMemory();
  readonly order = new Order();
  /** What was done wrong, in words. */
  readonly violations: string[] = [];
  /** Launches of each kernel, by its name in the manifest. */
  readonly ran = new Map<string, number>();
  readonly #images = new Map<bigint, Uint8Array>();
  readonly #entries = new Map<bigint, KernelEntry>();
  readonly #byHash: ReadonlyMap<string, KernelEntry>;
  /** What the copy or fill that is being handed over will touch, or the name of the kernel. */
  #next: Transfer | undefined;
  /** The launch of a graph whose nodes run at present. */
  #replay: Tick | undefined;

  constructor(facts: Partial<DeviceFacts> = {}) {
    super(facts);
    this.#byHash = new Map(shippedManifest().kernels.map((entry) => [entry.image.sha256, entry]));
    this.parametersOf = (image) => this.#entryOf(image).args.map(parameterBytes);
    this.onKernel = (launch) => this.#emulate(launch);
  }

  // Memory

  override allocate(bytes: number): bigint {
    const address = super.allocate(bytes);
    this.memory.add(address, super.bytesAt(address, bytes).buffer, true);
    return address;
  }

  override free(address: bigint): void {
    super.free(address);
    this.memory.remove(address);
  }

  override allocatePinned(bytes: number): { address: bigint; bytes: ArrayBuffer } {
    const made = super.allocatePinned(bytes);
    this.memory.add(made.address, made.bytes, false);
    return made;
  }

  override freePinned(address: bigint): void {
    super.freePinned(address);
    this.memory.remove(address);
  }

  override bytesAt(address: bigint, length: number): Uint8Array<ArrayBuffer> {
    return this.memory.find(Number(address), length) ?? super.bytesAt(address, length);
  }

  override copyToDevice(
    target: bigint,
    source: bigint | ArrayBufferView,
    bytes: number,
    stream: bigint,
  ): void {
    this.#next = {
      name: "copy to device",
      writes: [[target, bytes]],
      reads: typeof source === "bigint" ? [[source, bytes]] : [],
      before: () => this.memory.stage(Number(target), bytes),
    };
    super.copyToDevice(target, source, bytes, stream);
  }

  override copyToHost(target: bigint, source: bigint, bytes: number, stream: bigint): void {
    this.#next = { name: "copy to host", reads: [[source, bytes]], writes: [[target, bytes]] };
    super.copyToHost(target, source, bytes, stream);
  }

  override copyOnDevice(target: bigint, source: bigint, bytes: number, stream: bigint): void {
    this.#next = { name: "copy on device", reads: [[source, bytes]], writes: [[target, bytes]] };
    super.copyOnDevice(target, source, bytes, stream);
  }

  override fillBytes(target: bigint, value: number, bytes: number, stream: bigint): void {
    this.#next = {
      name: "fill of bytes",
      reads: [],
      writes: [[target, bytes]],
      before: () => this.memory.handOut(Number(target), bytes),
    };
    super.fillBytes(target, value, bytes, stream);
  }

  override fillWords(target: bigint, value: number, words: number, stream: bigint): void {
    this.#next = { name: "fill of words", reads: [], writes: [[target, words * 4]] };
    super.fillWords(target, value, words, stream);
  }

  // Streams, events, graphs: the order of things

  override recordEvent(event: bigint, stream: bigint): void {
    super.recordEvent(event, stream);
    this.order.record(event, stream);
  }

  override waitEvent(stream: bigint, event: bigint): void {
    super.waitEvent(stream, event);
    this.order.wait(stream, event);
  }

  override eventDone(event: bigint): boolean {
    const done = super.eventDone(event);
    if (done) this.order.hostSaw(event);
    return done;
  }

  override beginCapture(stream: bigint): void {
    super.beginCapture(stream);
    this.order.beginCapture(stream);
  }

  override endCapture(stream: bigint): bigint {
    try {
      return super.endCapture(stream);
    } finally {
      this.order.endCapture(stream);
    }
  }

  override launchGraph(exec: bigint, stream: bigint): void {
    const tick = this.order.tick(stream);
    super.enqueue(stream, () => {
      this.#replay = tick;
    });
    super.launchGraph(exec, stream);
    super.enqueue(stream, () => {
      this.#replay = undefined;
      this.order.over(tick);
    });
  }

  protected override enqueue(
    stream: bigint,
    run: (launch: NodeLaunch) => void,
    launch?: NodeLaunch,
    freeze?: (params: bigint) => Parameter,
  ): void {
    const transfer = this.#next;
    this.#next = undefined;
    if (this.order.capturing(stream)) {
      const node = this.order.node(stream);
      const inGraph = (actual: NodeLaunch): void => {
        if (this.#replay === undefined) throw new Error("A node runs outside of its graph.");
        this.#run(transfer, this.#replay, node, () => run(actual));
      };
      super.enqueue(stream, inGraph, launch, freeze);
      return;
    }
    const tick = this.order.tick(stream);
    const alone = (actual: NodeLaunch): void => {
      this.#run(transfer, tick, undefined, () => run(actual));
      this.order.over(tick);
    };
    super.enqueue(stream, alone, launch, freeze);
  }

  // Kernels

  override loadModule(image: Uint8Array): bigint {
    const module = super.loadModule(image);
    this.#images.set(module, image);
    return module;
  }

  override getFunction(module: bigint, name: string): bigint {
    const fn = super.getFunction(module, name);
    const entry = this.#entryOf(this.#images.get(module) as Uint8Array);
    if (entry.entry !== name) throw new Error(`${entry.name} has no function ${name}.`);
    this.#entries.set(fn, entry);
    return fn;
  }

  override encodeTensorMap(target: bigint, map: DenseTensorMap): void {
    super.encodeTensorMap(target, map);
    const { shape, box, swizzle } = map;
    const element = SHORT[map.element];
    const { buffer, byteOffset } = this.bytesAt(target, 128);
    if (map.address % 16n !== 0n || target % 64n !== 0n) {
      throw new Error("A tensor map or its memory is not aligned.");
    }
    if (!isEncodable(map)) {
      throw new Error(`There is no tensor map of [${shape}] in boxes of [${box}].`);
    }
    const length = shape.reduce((a, b) => a * b) * BYTES_PER_ELEMENT[map.element];
    if (this.memory.find(Number(map.address), length) === undefined) {
      throw new Error("A tensor map reaches past the memory there is.");
    }
    writeTensorMap(new DataView(buffer, byteOffset, 128), {
      address: Number(map.address),
      element,
      shape,
      box,
      swizzle,
    });
  }

  /** Also holds block and shared memory against the manifest. */
  override launchKernel(config: bigint, fn: bigint, params: bigint): void {
    const entry = this.#entries.get(fn);
    if (entry === undefined) throw new Error("A function is launched that was never looked up.");
    const bytes = this.bytesAt(config, LAUNCH_CONFIG.size);
    const view = new DataView(bytes.buffer, bytes.byteOffset, LAUNCH_CONFIG.size);
    const at = (offset: number) => view.getUint32(offset, true);
    const { blockX, blockY, blockZ, sharedBytes } = LAUNCH_CONFIG;
    const block = [at(blockX), at(blockY), at(blockZ), at(sharedBytes)];
    const wanted = [32 * entry.num_warps, 1, 1, entry.shared];
    if (block.join() !== wanted.join()) {
      throw new Error(`${entry.name} is launched with [${block}] and was built for [${wanted}].`);
    }
    this.#next = { name: entry.name, reads: [], writes: [] };
    super.launchKernel(config, fn, params);
  }

  protected override freeze(fn: bigint, params: bigint): Parameter {
    const { args } = this.#entries.get(fn) as KernelEntry;
    const table = this.bytesAt(params, args.length * 8);
    const addresses = new DataView(table.buffer, table.byteOffset);
    const values = args.map((argument, index) => {
      const address = addresses.getBigUint64(index * 8, true);
      const bytes = this.bytesAt(address, parameterBytes(argument)).slice();
      return new DataView(bytes.buffer);
    });
    return (index) => values[index] as DataView;
  }

  /** As the real driver's cuts of an H200 are divided: groups of 8 and some over, or of 2. */
  protected override dealOut(sizes: readonly number[]): readonly number[] {
    const { multiprocessors } = this.facts;
    const over = 8 + (multiprocessors % 8);
    const usual = { groupSize: 8, groups: (multiprocessors - over) / 8, remainder: over };
    const fine = { groupSize: 2, groups: multiprocessors / 2, remainder: 0 };
    for (const [split, shares] of [
      [usual, shareOut(usual, sizes)],
      [fine, shareOut(fine, sizes) ?? shareOutNearly(fine, sizes)],
    ] as const) {
      if (shares === null) continue;
      return shares.map(
        ({ count, remainder }) => count * split.groupSize + (remainder ? split.remainder : 0),
      );
    }
    return super.dealOut(sizes);
  }

  #emulate({ fn, grid, parameter }: FakeLaunch): void {
    const entry = this.#entries.get(fn) as KernelEntry;
    const kernel = KERNELS[entry.entry];
    if (kernel === undefined) throw new Error(`Nobody wrote ${entry.entry} for the emulator.`);
    this.ran.set(entry.name, (this.ran.get(entry.name) ?? 0) + 1);
    kernel(new KernelCall(entry, grid, this.memory, (index) => parameter(index, 0)));
  }

  #run(
    transfer: Transfer | undefined,
    tick: Tick,
    node: OrderedNode | undefined,
    body: () => void,
  ): void {
    const name = transfer?.name ?? "work";
    const accesses = new Accesses();
    this.memory.accesses = accesses;
    try {
      transfer?.before?.();
      for (const [address, bytes] of transfer?.reads ?? [])
        this.memory.read(Number(address), bytes);
      for (const [address, bytes] of transfer?.writes ?? []) {
        this.memory.write(Number(address), bytes);
      }
      body();
      this.order.ran(name, tick, node, accesses.settle());
    } catch (cause) {
      const message = `${name}: ${cause instanceof Error ? cause.message : String(cause)}`;
      this.violations.push(message);
      throw new Error(message, { cause });
    }
  }

  #entryOf(image: Uint8Array): KernelEntry {
    const found =
      this.#byHash.get(sha256(image)) ?? this.#byHash.get(sha256(image.subarray(0, -1)));
    if (found === undefined) throw new Error("An image is loaded that is not in the bundle.");
    return found;
  }
}

/** What cuTensorMapEncodeTiled takes, of shapes and boxes. */
function isEncodable({ shape, box, element, swizzle }: DenseTensorMap): boolean {
  const bytes = BYTES_PER_ELEMENT[element];
  const boxRow = (box.at(-1) ?? 0) * bytes;
  // Swizzle 3 mixes rows of 128 bytes, 2 of 64, 1 of 32.
  const widest = swizzle === 0 ? Number.POSITIVE_INFINITY : 16 * 2 ** swizzle;
  return (
    shape.length === box.length &&
    shape.length <= 5 &&
    shape.every((size) => size >= 1 && size <= 2 ** 32) &&
    box.every((size) => size >= 1 && size <= 256) &&
    boxRow % 16 === 0 &&
    boxRow <= widest &&
    // All other strides are multiples of the first.
    ((shape.at(-1) ?? 0) * bytes) % 16 === 0
  );
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

export interface EmulatedDevice {
  readonly driver: EmulatedDriver;
  readonly device: CudaDevice;
}

/** A CUDA device on an emulated GPU. */
export async function openEmulated(
  facts: Partial<DeviceFacts> = {},
  options: { readonly float32?: "ieee" | "tf32" } = {},
): Promise<EmulatedDevice> {
  const driver = new EmulatedDriver(facts);
  const device = await openOnDriver(driver, options);
  const allocate = device.allocate.bind(device);
  device.allocate = (bytes, label, special) => {
    const buffer = allocate(bytes, label, special) as CudaBuffer;
    // Where nothing is zeroed the driver cannot tell that a block has a new owner.
    if (special?.zeroed === false) driver.memory.handOut(Number(buffer.address), bytes);
    return buffer;
  };
  return { driver, device };
}
