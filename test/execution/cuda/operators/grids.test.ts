import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { KernelEntry } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { persistentGrid } from "../../../../src/execution/cuda/operators/grids.ts";

const entryOf = (covers?: boolean) =>
  ({
    name: "made up",
    grid: {
      rule: "persistent",
      blocks_per_multiprocessor: 2,
      columns_per_block: 64,
      ...(covers !== undefined && { covers }),
    },
  }) as KernelEntry;

describe("the grid of a persistent kernel", () => {
  it("is what the multiprocessors hold, and no more than there are pieces", () => {
    const { blocks } = persistentGrid(entryOf(), 100, 130, 132);
    assert.deepEqual([1, 131, 132, 1000].map(blocks), [2, 262, 264, 300]);
  });

  it("covers all pieces with the whole device, where the kernel does, and keeps to any smaller budget", () => {
    const { blocks, persistent } = persistentGrid(entryOf(true), 100, 130, 132);
    assert.deepEqual([1, 131, 132].map(blocks), [2, 262, 300]);
    assert.equal(persistent, true, "it follows budgets");
    assert.equal(persistentGrid(entryOf(true), 1, 10, 132).blocks(132), 1);
  });

  it("covers nothing where the size of the device is not told", () => {
    assert.equal(persistentGrid(entryOf(true), 100, 130).blocks(132), 264);
  });
});
