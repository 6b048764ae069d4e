/** Native memory made up of array buffers, and the reading of launches out of it as the driver would. */

import type { KernelEntry } from "../../../../src/execution/cuda/bundle/manifest.ts";
import type { NativeMemory } from "../../../../src/execution/cuda/launch/arena.ts";
import type { PreparedLaunch } from "../../../../src/execution/cuda/work.ts";

export type ParameterValue = bigint | number | Uint8Array;

export class NativeHeap {
  readonly chunks: NativeMemory[] = [];

  /** What an arena grows by. */
  readonly grow = (bytes: number): NativeMemory => {
    const address = 0x7f00_0000_0000n + BigInt(this.chunks.length) * 0x1000_0000n;
    const chunk = { address, bytes: new ArrayBuffer(bytes) };
    // What memory holds before it is written is anybody's guess.
    new Uint8Array(chunk.bytes).fill(0xa5);
    this.chunks.push(chunk);
    return chunk;
  };

  /** The memory from an address on. */
  at(address: bigint): DataView {
    const chunk = this.chunks.find(
      (each) => address >= each.address && address < each.address + BigInt(each.bytes.byteLength),
    );
    if (chunk === undefined) throw new Error(`nothing lies at ${address.toString(16)}`);
    return new DataView(chunk.bytes, Number(address - chunk.address));
  }

  /** Parameters of a launch by name, read through its table of addresses. */
  parameters(entry: KernelEntry, launch: PreparedLaunch): Record<string, ParameterValue> {
    const table = this.at(launch.params);
    return Object.fromEntries(
      entry.args.map(({ name, type }, index) => {
        const view = this.at(table.getBigUint64(index * 8, true));
        switch (type) {
          case "i32":
            return [name, view.getInt32(0, true)];
          case "i64":
            return [name, Number(view.getBigInt64(0, true))];
          case "fp32":
            return [name, view.getFloat32(0, true)];
          case "fp64":
            return [name, view.getFloat64(0, true)];
          case "tensormap":
            return [name, new Uint8Array(view.buffer, view.byteOffset, 128).slice()];
          default:
            return [name, view.getBigUint64(0, true)];
        }
      }),
    );
  }
}
