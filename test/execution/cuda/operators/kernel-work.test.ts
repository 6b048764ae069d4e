/** Which kernels may start beside the end of the one in front of them. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { KernelEntry } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { fixedGrid, type Grid } from "../../../../src/execution/cuda/operators/grids.ts";
import {
  kernelWork,
  type WorkOptions,
} from "../../../../src/execution/cuda/operators/kernel-work.ts";
import type { KernelWork } from "../../../../src/execution/cuda/work.ts";
import { FakeDevice } from "./harness.ts";
import { combineOf } from "./operators.ts";

const MULTIPROCESSORS = 10;

async function isEarly(
  each: number,
  grid: Grid,
  options: WorkOptions = {},
  { multiprocessors = MULTIPROCESSORS, front = "bucket" } = {},
): Promise<boolean> {
  const device = await FakeDevice.open({ multiprocessors: MULTIPROCESSORS });
  const context = { arena: device.arena, facts: device.context.facts };
  const workOf = (operator: string) => {
    const entry = {
      name: "some",
      num_warps: 4,
      shared: 0,
      launch_pdl: true,
      args: [],
      grid: { rule: "cover", blocks_per_multiprocessor: each },
      selects: { operator },
    } as unknown as KernelEntry;
    const work = kernelWork(context, { entry, fn: 1n }, {}, grid, options);
    work.launch[Symbol.dispose]();
    return work;
  };
  return workOf("some").early(grid.blocks(multiprocessors), workOf(front));
}

/** Blocks that go through so many pieces. */
function persistent(blocks: number, pieces: number): Grid {
  return { blocks: () => blocks, persistent: true, y: 1, pieces };
}

describe("a kernel may start early", () => {
  it("if its blocks fill the device, or cannot crowd on one multiprocessor", async () => {
    assert.equal(await isEarly(4, fixedGrid(39)), false);
    assert.equal(await isEarly(4, fixedGrid(40)), true);
    assert.equal(await isEarly(4, fixedGrid(8, 5)), true);
    assert.equal(await isEarly(1, fixedGrid(3)), true);
  });

  it("unless it is persistent and each block has many pieces", async () => {
    assert.equal(await isEarly(2, persistent(20, 240)), true);
    assert.equal(await isEarly(2, persistent(20, 241)), false);
    assert.equal(await isEarly(1, persistent(10, 121)), false);
    assert.equal(await isEarly(4, fixedGrid(100_000)), true);
  });

  it("with the blocks that a budget leaves it, as with those of the device", async () => {
    const grid: Grid = { blocks: (share) => 2 * share, persistent: true, y: 1, pieces: 100 };
    assert.equal(await isEarly(2, grid), true);
    assert.equal(await isEarly(2, grid, {}, { multiprocessors: 9 }), false);
  });

  it("or as its operator has it", async () => {
    assert.equal(await isEarly(4, fixedGrid(1), { early: true }), true);
    assert.equal(await isEarly(4, fixedGrid(100), { early: false }), false);
  });

  it("behind products only, if it reads lists before it waits", async () => {
    for (const [front, wanted] of [
      ["project", true],
      ["decode_first", false],
      ["bucket", false],
      ["route", false],
      ["combine", false],
    ] as const) {
      const options = { early: true, behindProducts: true };
      assert.equal(await isEarly(4, fixedGrid(1), options, { front }), wanted, front);
    }
    const device = await FakeDevice.open();
    const work = (mode: "sum" | "concat") =>
      device.encode(combineOf(device, { mostTokens: 512, mode })).work[0] as KernelWork;
    const [sum, concat] = [work("sum"), work("concat")];
    assert.deepEqual([sum.early(1, sum), concat.early(1, sum)], [false, true]);
    assert.equal(sum.early(1, { ...sum, product: true }), true);
  });
});
