import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Kernel } from "../../../../src/execution/cuda/bundle/kernel-set.ts";
import type { KernelEntry } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { LaunchArena } from "../../../../src/execution/cuda/launch/arena.ts";
import type { KernelValues } from "../../../../src/execution/cuda/launch/launch.ts";
import { between, randomFor } from "../../../support/seed.ts";
import { NativeHeap } from "./native-heap.ts";

function kernel(args: [string, string, number?][], overrides: Partial<KernelEntry> = {}): Kernel {
  const entry = {
    name: "some_kernel",
    arch: "sm_90a",
    entry: "some",
    image: { offset: 0, bytes: 1, sha256: "" },
    num_warps: 8,
    shared: 229408,
    args: args.map(([name, type, divisible_by = null]) => ({ name, type, divisible_by })),
    tensordesc_meta: [],
    grid: { rule: "cover", blocks_per_multiprocessor: 1 },
    selects: {},
    constants: {},
    launch_pdl: false,
    ...overrides,
  } as unknown as KernelEntry;
  return { entry, fn: 0xf00n };
}

const ALL_KINDS: [string, string, number?][] = [
  ["x", "*bf16", 16],
  ["w", "tensormap"],
  ["w_shape0", "i32"],
  ["w_stride1", "i64"],
  ["bias", "*fp32", 16],
  ["n", "i32", 16],
  ["stride", "i64"],
  ["scale", "fp32"],
  ["capacity", "fp64"],
  ["global_scratch", "*i8"],
  ["profile_scratch", "*i8"],
];

const GRID = { x: 132, y: 3, z: 1 };

function setUp() {
  const heap = new NativeHeap();
  return { heap, arena: new LaunchArena(heap.grow) };
}

describe("a launch", () => {
  it("holds every kind of parameter where its table says", () => {
    const { heap, arena } = setUp();
    const map = Uint8Array.from({ length: 128 }, (_, i) => i);
    const it = kernel(ALL_KINDS);
    const launch = arena.prepare(
      it,
      {
        x: 0x7fff_1234_5678_9ab0n,
        w: map,
        bias: null,
        n: -64,
        stride: -(2 ** 40),
        scale: Number.POSITIVE_INFINITY,
        capacity: 1.1,
        unknown: 5,
      },
      GRID,
    );
    assert.equal(launch.fn, 0xf00n);
    assert.deepEqual(heap.parameters(it.entry, launch), {
      x: 0x7fff_1234_5678_9ab0n,
      w: map,
      w_shape0: 0,
      w_stride1: 0,
      bias: 0n,
      n: -64,
      stride: -(2 ** 40),
      scale: Number.POSITIVE_INFINITY,
      capacity: 1.1,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    const table = heap.at(launch.params);
    const addresses = it.entry.args.map((_, i) => table.getBigUint64(i * 8, true));
    assert.equal((addresses[1] as bigint) % 64n, 0n, "a tensor map is 64-byte aligned");
    for (const address of addresses) assert.equal(address % 8n, 0n);
    assert.equal(new Set(addresses).size, addresses.length);
  });

  it("is a CUlaunchConfig, byte by byte", () => {
    const { heap, arena } = setUp();
    const launch = arena.prepare(kernel([["n", "i32"]]), { n: 1 }, GRID);
    launch.setStream(0x1234_5678_9abc_def0n);
    const view = heap.at(launch.config);
    const words = Array.from({ length: 14 }, (_, i) => view.getUint32(i * 4, true));
    const attributes = launch.config + 56n;
    assert.deepEqual(words, [
      132,
      3,
      1,
      256,
      1,
      1,
      229408,
      0,
      0x9abcdef0,
      0x12345678,
      Number(attributes & 0xffffffffn),
      Number(attributes >> 32n),
      0,
      0,
    ]);
    assert.deepEqual(launch.grid, GRID);
  });

  it("changes stream and blocks in place", () => {
    const { heap, arena } = setUp();
    const launch = arena.prepare(kernel([["n", "i32"]]), { n: 1 }, GRID);
    launch.setBlocks(7);
    launch.setStream(9n);
    assert.deepEqual(launch.grid, { x: 7, y: 3, z: 1 });
    const view = heap.at(launch.config);
    assert.deepEqual(
      [view.getUint32(0, true), view.getUint32(4, true), view.getBigUint64(32, true)],
      [7, 3, 9n],
    );
    assert.equal(heap.chunks.length, 1);
  });

  it("takes other values for some parameters, as checked as the first ones", () => {
    const { heap, arena } = setUp();
    const it = kernel([
      ["n", "i32", 16],
      ["p", "*i32"],
      ["x", "fp32"],
    ]);
    const launch = arena.prepare(it, { n: 16, p: null, x: 2 }, GRID);
    const parameter = (index: number) =>
      heap.at(heap.at(launch.params).getBigUint64(8 * index, true));
    launch.setValues({ n: 48, p: 7n, unknown: 1 });
    assert.deepEqual(
      [
        parameter(0).getInt32(0, true),
        parameter(1).getBigUint64(0, true),
        parameter(2).getFloat32(0, true),
      ],
      [48, 7n, 2],
    );
    assert.throws(
      () => launch.setValues({ p: 8n, n: 17 }),
      /parameter n is 17. The kernel is compiled for multiples of 16/,
    );
    assert.equal(parameter(1).getBigUint64(0, true), 7n, "all or none");
    assert.equal(heap.chunks.length, 1);
  });

  it("has the attributes for dependent launch and for a cache window", () => {
    const { heap, arena } = setUp();
    const window = { address: 0xabc000n, bytes: 5 * 2 ** 20, hitRatio: 0.75 };
    for (const launch_pdl of [false, true]) {
      const launch = arena.prepare(kernel([["n", "i32"]], { launch_pdl }), { n: 1 }, GRID);
      const first = launch_pdl ? 1 : 0;
      const view = heap.at(launch.config);
      const count = () => view.getUint32(48, true);
      assert.equal(count(), first);
      for (const dependent of [true, false]) {
        launch.setDependent(dependent);
        if (!launch_pdl) continue;
        assert.deepEqual(
          [view.getUint32(56, true), view.getInt32(64, true)],
          [6, dependent ? 1 : 0],
        );
      }
      launch.setWindow(window);
      assert.equal(count(), first + 1);
      const at = 56 + 72 * first;
      assert.equal(view.getUint32(at, true), 1);
      assert.equal(view.getBigUint64(at + 8, true), window.address);
      assert.equal(view.getBigUint64(at + 16, true), BigInt(window.bytes));
      assert.equal(view.getFloat32(at + 24, true), 0.75);
      assert.deepEqual([view.getUint32(at + 28, true), view.getUint32(at + 32, true)], [2, 1]);
      launch.setWindow(null);
      assert.equal(count(), first);
    }
  });

  const refuses = (args: [string, string, number?][], values: KernelValues, message: RegExp) => {
    const { heap, arena } = setUp();
    assert.throws(() => arena.prepare(kernel(args), values, GRID), {
      name: "InvalidArgumentError",
      message,
    });
    assert.equal(heap.chunks.length, 0, "no memory was taken");
  };

  it("refuses a value that is missing", () => {
    refuses([["n", "i32"]], {}, /^Kernel some_kernel: parameter n has no value\. /);
    // Not a descriptor's: there is none called v.
    refuses([["v_shape0", "i32"]], {}, /parameter v_shape0 has no value/);
  });

  it("refuses what is no multiple of what the kernel was compiled for", () => {
    refuses([["n", "i32", 16]], { n: 65 }, /parameter n is 65\. .* multiples of 16/);
    refuses([["x", "*bf16", 16]], { x: 24n }, /parameter x is 24\. /);
  });

  it("refuses what does not fit its type", () => {
    for (const value of [2 ** 31, 1.5, Number.NaN, null, 1n]) {
      refuses(
        [["n", "i32"]],
        { n: value },
        /parameter n is .*\. It takes a whole number of 32 bits/,
      );
    }
    refuses([["n", "i64"]], { n: 2 ** 60 }, /It takes a whole number\./);
    refuses([["n", "fp32"]], { n: null }, /It takes a number/);
    refuses([["n", "fp64"]], { n: 1n }, /It takes a number/);
    for (const value of [5, -1n]) refuses([["x", "*bf16"]], { x: value }, /an address or null/);
    refuses(
      [["w", "tensormap"]],
      { w: new Uint8Array(64) },
      /is 64 bytes\. It takes the 128 bytes/,
    );
  });
});

describe("the arena", () => {
  it("hands a freed slot out again, once however often it is freed", () => {
    const { heap, arena } = setUp();
    const it = kernel(ALL_KINDS.slice(4));
    const values = { bias: 16n, n: 0, stride: 0, scale: 0, capacity: 0 };
    const first = arena.prepare(it, values, GRID);
    first[Symbol.dispose]();
    first[Symbol.dispose]();
    const second = arena.prepare(it, values, GRID);
    const third = arena.prepare(it, values, GRID);
    assert.equal(second.config, first.config);
    assert.notEqual(third.config, second.config);
    // The old owner has nothing left to free.
    first[Symbol.dispose]();
    assert.notEqual(arena.prepare(it, values, GRID).config, second.config);
    assert.equal(heap.chunks.length, 1);
  });

  it("keeps slots apart, aligned, and grows only for what is in use", () => {
    const { heap, arena } = setUp();
    const random = randomFor("arena");
    const held = new Map<bigint, { bytes: number; free: () => void }>();
    let chunks = 0;
    for (let round = 0; round < 4000; round++) {
      if (held.size < 200 && random.uniform() < 0.6) {
        const bytes = between(random, 1, 3000);
        const slot = arena.allocate(bytes);
        assert.equal(slot.address % 128n, 0n);
        assert.ok(slot.view.byteLength >= bytes);
        for (const [address, other] of held) {
          assert.ok(
            slot.address >= address + BigInt(other.bytes) ||
              slot.address + BigInt(bytes) <= address,
          );
        }
        heap.at(slot.address).setUint8(bytes - 1, 1);
        held.set(slot.address, { bytes, free: () => slot[Symbol.dispose]() });
      } else {
        const [address, slot] = [...held][random.integer(Math.max(1, held.size))] ?? [];
        slot?.free();
        if (address !== undefined) held.delete(address);
      }
      if (round === 2000) chunks = heap.chunks.length;
    }
    // 24 sizes of at most 200 slots each; in practice it settles long before.
    assert.ok(heap.chunks.length <= chunks * 2, `${chunks} chunks, then ${heap.chunks.length}`);
    const large = arena.allocate(1_000_000);
    assert.ok(large.view.byteLength >= 1_000_000);
  });
});
