/** A launch that a test makes itself, without a device: over host memory, where only bounds and alignment are checked. */

import type {
  KernelArgument,
  KernelEntry,
} from "../../../../src/execution/cuda/bundle/manifest.ts";
import { KernelCall, type TensorMapFields, writeTensorMap } from "./call.ts";
import { WatchedMemory } from "./memory.ts";

export interface ByHand {
  readonly entry: KernelEntry;
  readonly programs: number;
  /** By the names of pointers and tensor maps; others are null. */
  readonly buffers: Readonly<Record<string, NodeJS.TypedArray<ArrayBuffer>>>;
  readonly numbers: Readonly<Record<string, number>>;
  /** Tensor maps, of the buffers of their names. */
  readonly maps?: Readonly<Record<string, Omit<TensorMapFields, "address">>>;
}

export function callByHand({ entry, programs, buffers, numbers, maps }: ByHand): KernelCall {
  const memory = new WatchedMemory();
  const addresses = new Map<string, bigint>();
  for (const [i, [name, { buffer }]] of Object.entries(buffers).entries()) {
    const address = BigInt(i + 1) << 32n;
    memory.add(address, buffer, false);
    addresses.set(name, address);
  }
  const value = ({ name, type }: KernelArgument): DataView => {
    const view = new DataView(new ArrayBuffer(128));
    const address = addresses.get(name) ?? 0n;
    const number = numbers[name] as number;
    const map = maps?.[name];
    if (map !== undefined) writeTensorMap(view, { ...map, address: Number(address) });
    else if (type === "fp64") view.setFloat64(0, number, true);
    else if (type === "fp32") view.setFloat32(0, number, true);
    else if (type === "i32") view.setInt32(0, number, true);
    else view.setBigUint64(0, address, true);
    return view;
  };
  const grid = { x: programs, y: 1, z: 1 };
  return new KernelCall(entry, grid, memory, (index) => value(entry.args[index] as KernelArgument));
}
