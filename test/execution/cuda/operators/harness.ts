/**
 * A device for encoding operators without a GPU: buffers at made-up addresses, the
 * kernels of made-bundle.ts, and a record of what was uploaded.
 */

import { after } from "node:test";
import { BesideProjection } from "../../../../src/execution/cuda/beside-projection.ts";
import type { CudaBuffer } from "../../../../src/execution/cuda/buffer.ts";
import { KernelSet } from "../../../../src/execution/cuda/bundle/kernel-set.ts";
import type { DenseTensorMap, DeviceFacts } from "../../../../src/execution/cuda/driver/driver.ts";
import { LaunchArena } from "../../../../src/execution/cuda/launch/arena.ts";
import type { OperatorContext } from "../../../../src/execution/cuda/operators/context.ts";
import { encodeOperator } from "../../../../src/execution/cuda/operators/encode.ts";
import type { OwnedOperator } from "../../../../src/execution/cuda/operators/encoder.ts";
import { PackedProjection } from "../../../../src/execution/cuda/packed-projection.ts";
import { PlainProjection } from "../../../../src/execution/cuda/plain-projection.ts";
import type {
  ProjectionOwner,
  WeightTransfers,
} from "../../../../src/execution/cuda/projection.ts";
import type { TensorMapEncoder } from "../../../../src/execution/cuda/tensor-maps.ts";
import type { KernelWork, Work } from "../../../../src/execution/cuda/work.ts";
import type { ProjectionSpec } from "../../../../src/execution/device.ts";
import type { Operator } from "../../../../src/execution/operators.ts";
import { FakeModules, facts } from "../bundle/fake-modules.ts";
import { writeBundle } from "../bundle/made-bundle.ts";
import { NativeHeap, type ParameterValue } from "../launch/native-heap.ts";

const bundle = writeBundle();
after(() => bundle.remove());

export class FakeBuffer implements CudaBuffer {
  readonly owner: object;
  readonly address: bigint;
  readonly byteLength: number;
  readonly label: string;
  readonly mirror?: { readonly address: bigint; readonly bytes: Uint8Array };
  readonly attached: Disposable[] = [];
  closed = false;

  constructor(owner: object, address: bigint, byteLength: number, label: string, mirrored = false) {
    this.owner = owner;
    this.address = address;
    this.byteLength = byteLength;
    this.label = label;
    if (mirrored) {
      this.mirror = { address: address + 0x1_0000_0000_0000n, bytes: new Uint8Array(byteLength) };
    }
  }

  attach(child: Disposable): void {
    this.attached.push(child);
  }

  [Symbol.dispose](): void {
    this.closed = true;
    for (const child of this.attached) child[Symbol.dispose]();
  }
}

export const addressOf = (buffer: unknown): bigint => (buffer as FakeBuffer).address;

/** A kernel's work as the GPU would see it. */
export interface SeenKernel {
  readonly name: string;
  readonly values: Record<string, ParameterValue>;
  readonly grid: { readonly x: number; readonly y: number; readonly z: number };
  readonly work: KernelWork;
}

export class FakeDevice {
  readonly heap = new NativeHeap();
  readonly arena = new LaunchArena(this.heap.grow);
  readonly uploads: { address: bigint; data: ArrayBufferView }[] = [];
  readonly scratches: FakeBuffer[] = [];
  readonly maps: DenseTensorMap[] = [];
  readonly context: OperatorContext;
  readonly owner = {};
  readonly projectionOwner: ProjectionOwner;
  /** What `uploadAndRun` was asked for: the bytes, where they are staged, the work. */
  readonly staged: { bytes: Uint8Array; address: bigint; kernels: SeenKernel[] }[] = [];
  /** What `runKernel` was asked for. */
  readonly ran: SeenKernel[] = [];
  /** What the word holds that a projection reads. */
  word = 0;
  #next = 0x10_0000_0000n;

  static async open(
    overrides: Partial<DeviceFacts> = {},
    float32: "ieee" | "tf32" = "ieee",
    modules = new FakeModules(),
    directory = bundle.directory,
  ): Promise<FakeDevice> {
    const own = facts(overrides);
    const kernels = await KernelSet.open(modules.driver, own, directory);
    return new FakeDevice(kernels, own, float32);
  }

  constructor(kernels: KernelSet, own: DeviceFacts, float32: "ieee" | "tf32") {
    const { arena, owner } = this;
    const scratch = (bytes: number, label: string) => {
      const buffer = this.buffer(bytes, label);
      this.scratches.push(buffer);
      return buffer;
    };
    const upload = (address: bigint, data: ArrayBufferView) => {
      this.uploads.push({ address, data: data as Int32Array });
    };
    const driver: TensorMapEncoder["driver"] = {
      encodeTensorMap: (target, map) => {
        this.maps.push(map);
        this.heap.at(target).setUint32(0, this.maps.length, true);
      },
    };
    const shared = { owner, kernels, arena, driver, facts: own, scratch, upload };
    this.context = { ...shared, float32, fault: { device: 0xfa00n, host: 0xfb00n } };
    const transfers: WeightTransfers = {
      upload,
      uploadAndRun: async (chunk, makeWork) => {
        const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength).slice();
        const address = 0x55_0000_0000n;
        const work = makeWork(address);
        this.staged.push({ bytes, address, kernels: this.kernels(work) });
        await null;
      },
      runKernel: async (work) => {
        this.ran.push(...this.kernels([work]));
        work.launch[Symbol.dispose]();
        await null;
      },
      read: async (_, target) => {
        (target as Int32Array)[0] = this.word;
        await null;
      },
    };
    this.projectionOwner = { ...shared, transfers };
  }

  buffer(bytes: number, label = "buffer", mirrored = false): FakeBuffer {
    const address = this.#next;
    this.#next += BigInt(Math.ceil((bytes + 1) / 256) * 256);
    return new FakeBuffer(this.owner, address, bytes, label, mirrored);
  }

  projection(spec: Partial<ProjectionSpec> = {}): PlainProjection {
    return new PlainProjection(this.projectionOwner, this.#full(spec), "weights");
  }

  packed(spec: Partial<ProjectionSpec> = {}): PackedProjection {
    const full = this.#full({ ...spec, packed: true });
    return new PackedProjection(this.projectionOwner, full, "weights");
  }

  /** Filled, so that packed weights are as the plain ones. */
  async beside(spec: Partial<ProjectionSpec> = {}): Promise<BesideProjection> {
    const full = this.#full({ ...spec, packed: "beside" });
    const projection = new BesideProjection(this.projectionOwner, full, "weights");
    await projection.fill(1, 0.1);
    return projection;
  }

  #full(spec: Partial<ProjectionSpec>): ProjectionSpec {
    return {
      count: 4,
      inputs: 100,
      outputs: 72,
      dtype: "bfloat16",
      input: "bfloat16",
      output: "rows",
      gated: false,
      bias: false,
      ...spec,
    };
  }

  encode(operator: Operator): OwnedOperator {
    return encodeOperator(operator, this.context);
  }

  /** The kernels among the work, as they would be launched. */
  kernels(work: readonly Work[]): SeenKernel[] {
    return work
      .filter((each) => each.kind === "kernel")
      .map((each) => {
        const { manifest, architecture } = this.context.kernels;
        const entry = manifest.kernels.find(
          ({ name, arch }) => name === each.name && arch === architecture,
        );
        if (entry === undefined) throw new Error(`no kernel ${each.name}`);
        const values = this.heap.parameters(entry, each.launch);
        return { name: each.name, values, grid: { ...each.launch.grid }, work: each };
      });
  }

  /** The only kernel of an operator. */
  kernel(operator: Operator): SeenKernel {
    const [kernel, ...others] = this.kernels(this.encode(operator).work);
    if (kernel === undefined || others.length > 0) throw new Error("not one kernel");
    return kernel;
  }
}
