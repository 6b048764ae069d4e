/** In which order the bucket kernel lists tiles. The emulated layers prove nothing of it: no order is wrong for them. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { KernelEntry } from "../../../../src/execution/cuda/bundle/manifest.ts";
import type { Random } from "../../../../src/workload/random.ts";
import { between, pick, randomFor } from "../../../support/seed.ts";
import { type ByHand, callByHand } from "./by-hand.ts";
import type { KernelCall } from "./call.ts";
import { shippedManifest } from "./driver.ts";
import { bucket, mark } from "./kernels/buckets.ts";

/** The least of tiles on lists with busy experts in front. */
const HEIGHT = 128;
const QUARTER = HEIGHT / 4;
type Quadruple = readonly [number, number, number, number];

/** Most tiles of a group. */
const TOGETHER = 3;

interface Tile {
  readonly expert: number;
  /** Of the expert's rows the first. */
  readonly done: number;
  readonly rows: number;
  /** Its place in its group, and how many tiles that has. */
  readonly group: readonly [number, number];
}

function entryOf(name: string): KernelEntry {
  return shippedManifest().kernels.find((each) => each.name === name) as KernelEntry;
}

/** Runs a kernel over host memory: integers by the name of the parameter. */
function run(
  kernel: (call: KernelCall) => void,
  launch: Pick<ByHand, "entry" | "programs">,
  buffers: ByHand["buffers"],
  numbers: ByHand["numbers"],
): void {
  kernel(callByHand({ ...launch, buffers, numbers }));
}

interface List {
  readonly tiles: readonly Tile[];
  /** So many in front are of busy experts. */
  readonly busyTiles: number;
}

/** One list, of tokens that choose an expert each. */
function listFor(rowsOf: readonly number[], height = HEIGHT): List {
  const experts = rowsOf.length;
  const tokens = rowsOf.reduce((a, b) => a + b, 0);
  const ids = Int32Array.from(rowsOf.flatMap((rows, e) => Array<number>(rows).fill(e)));
  const entry = entryOf(`bucket_experts${experts <= 32 ? 32 : 128}`);
  const padded = Number(entry.constants["EXPERTS"]);
  const words = Math.ceil(tokens / 32);
  const ints = (length: number) => new Int32Array(length);
  const given = { ids, tokens: Int32Array.of(tokens), sets: ints(words * padded) };
  const sizes = { experts, top_k: 1, most_tokens: tokens };
  const marks = entryOf("mark");
  const programs = Math.ceil(tokens / Number(marks.constants["BLOCK"]));
  run(mark, { entry: marks, programs }, given, { ...sizes, padded_experts: padded });
  const tiles = ints(4 * (Math.floor(tokens / height) + experts)).fill(-1);
  const [offsets, tileCounts] = [ints(experts + 1), ints(4).fill(-1)];
  run(
    bucket,
    { entry, programs: 1 + (entry.grid.shares_of_a_list ?? 1) },
    {
      ...given,
      offsets,
      tiles,
      tile_counts: tileCounts,
      lane_of: ints(experts),
      lists: Int32Array.of(height, 2 ** 31 - 1, 0, TOGETHER),
      counts: ints(experts),
      order: ints(tokens),
      inverse: ints(tokens),
    },
    { ...sizes, capacity_factor: Number.POSITIVE_INFINITY, lanes: 1, classes: 1, fill_programs: 1 },
  );
  const [count, busyTiles, ...begun] = tileCounts as unknown as Quadruple;
  assert.deepEqual(begun, [0, 0]);
  assert.ok(tiles.subarray(4 * count).every((word) => word === -1));
  const found = Array.from({ length: count }, (_, i): Tile => {
    const [expert, first, rows, word] = tiles.subarray(4 * i) as unknown as Quadruple;
    const done = first - (offsets[expert] as number);
    return { expert, done, rows, group: [word & 0xffff, word >> 16] };
  });
  return { tiles: found, busyTiles };
}

/** Every tile once, expert after expert, in groups as even and as few as can be. */
function inOrder(rowsOf: readonly number[], height = HEIGHT): Tile[] {
  return rowsOf.flatMap((rows, expert) => {
    const tiles = Math.ceil(rows / height);
    const size = Math.ceil(tiles / Math.ceil(tiles / TOGETHER));
    return Array.from({ length: tiles }, (_, i): Tile => {
      const begin = i - (i % size);
      return {
        expert,
        done: i * height,
        rows: Math.min(rows - i * height, height),
        group: [i - begin, Math.min(size, tiles - begin)],
      };
    });
  });
}

/** The experts in the order of the list; each is there once. */
function expertsOf(tiles: readonly Tile[]): number[] {
  const all = tiles.map(({ expert }) => expert);
  const order = all.filter((expert, i) => expert !== all[i - 1]);
  assert.equal(new Set(order).size, order.length, "tiles of an expert are neighbours");
  return order;
}

function quarters(...tiles: readonly number[]): number[] {
  return tiles.map((each) => each * QUARTER);
}

/** Rows of each expert, some with many times those of the others. */
function skewed(random: Random): number[] {
  const power = pick(random, [0.5, 1, 1.5, 2.5]);
  const most = between(random, 8, 200);
  const rows = Array.from({ length: between(random, 3, 40) }, (_, i) =>
    Math.floor(QUARTER * (most / (i + 1) ** power + 3 * random.uniform())),
  );
  return random.permutation(rows.length).map((i) => rows[i] as number);
}

/** Holds the order of a list against what it should be. @returns the experts in front of it */
function checkOrder(rowsOf: readonly number[]): number[] {
  const { tiles: found, busyTiles } = listFor(rowsOf);
  const wanted = inOrder(rowsOf);
  // All of them, and those of an expert in order: no sort moves what is equal.
  assert.deepEqual(
    found.toSorted((a, b) => a.expert - b.expert),
    wanted,
  );
  const tiles = rowsOf.map((rows) => Math.ceil(rows / HEIGHT));
  const used = tiles.filter((each) => each > 0).length;
  const mean = wanted.length / used;
  const busy = [...tiles.keys()].filter((e) => (tiles[e] as number) / mean > 1.5);
  const ofBusy = busy.reduce((all, e) => all + (tiles[e] as number), 0);
  const front = 5 * wanted.length > 8 * used && ofBusy >= wanted.length / 8 ? busy : [];
  assert.equal(busyTiles, front.length === 0 ? 0 : ofBusy);
  const others = [...tiles.keys()].filter((e) => tiles[e] !== 0 && !front.includes(e));
  assert.deepEqual(expertsOf(found), [...front, ...others]);
  return front;
}

describe("the order of tiles on a list", () => {
  it("has busy experts in front, and keeps the tiles of each together", () => {
    const random = randomFor("order of tiles");
    let mixed = 0;
    for (let round = 0; round < 60; round++) {
      if (checkOrder(skewed(random)).length > 1) mixed++;
    }
    assert.ok(mixed > 10, `${mixed} lists with several busy experts`);
  });

  it("is this one", () => {
    // Of 8 experts with 3.25 tiles on average 1 and 4 are busy.
    assert.deepEqual(checkOrder(quarters(4, 40, 3, 2, 38, 1, 4, 4)), [1, 4]);
  });

  it("is that of the experts if they have few tiles on average, or busy ones have hardly any", () => {
    const ones = Array<number>(8).fill(HEIGHT);
    assert.deepEqual(checkOrder([HEIGHT, 7 * HEIGHT, ...ones]), []);
    assert.deepEqual(checkOrder([HEIGHT, 7 * HEIGHT + 1, ...ones]), [1]);
    const even = Array<number>(60).fill(3 * HEIGHT);
    assert.deepEqual(checkOrder([5 * HEIGHT, ...even]), []);
    assert.deepEqual(checkOrder([27 * HEIGHT, ...even]), [0]);
    // An eighth exactly.
    assert.deepEqual(checkOrder([12 * HEIGHT, ...even.slice(0, 28)]), [0]);
    assert.deepEqual(checkOrder([12 * HEIGHT, ...even.slice(0, 29)]), []);
  });

  it("is that of the experts if none is busy", () => {
    const random = randomFor("order of even tiles");
    const even = (rows: number) => Array<number>(40).fill(rows);
    const oneOrTwo = even(0).map(() => between(random, 1, 2 * HEIGHT));
    for (const rowsOf of [
      even(1),
      even(HEIGHT),
      even(7 * HEIGHT + 1),
      oneOrTwo,
      [0, 1600, 0],
      [1600, 1599],
      [1],
    ]) {
      assert.deepEqual(listFor(rowsOf), { tiles: inOrder(rowsOf), busyTiles: 0 });
    }
  });

  it("is that of the experts if tiles are low", () => {
    const rowsOf = quarters(4, 40, 3, 2, 38, 1, 4, 4);
    for (const height of [16, 32, 64]) {
      const inTheirs = { tiles: inOrder(rowsOf, height), busyTiles: 0 };
      assert.deepEqual(listFor(rowsOf, height), inTheirs, `${height} rows`);
    }
    assert.deepEqual(checkOrder(rowsOf), [1, 4]);
  });
});
