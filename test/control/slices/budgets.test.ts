/** Which budgets are kept as they are, and which follow the load and what was asked for. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { SliceManager } from "../../../src/control/slices/manager.ts";
import { dividingByUse } from "../../support/dividing-by-use.ts";
import { gpu, load, SKEWED } from "../loads.ts";

test("work of the auxiliary slice counts for whether dividing anew is worth it", () => {
  let D = 1;
  const policy = dividingByUse(() => ({ weights: { A: 4, B: 2, C: 2, D } }));
  const manager = new SliceManager({ device: gpu(), policy });
  const before = manager.allocate(load(SKEWED)).slices.D.budget.computeUnits;
  D = 8;
  assert.ok(manager.allocate(load(SKEWED)).slices.D.budget.computeUnits > 2 * before);
});

test("what is taken back holds no longer, though dividing anew saves little", () => {
  const manager = new SliceManager({ device: gpu() });
  const before = manager.allocate(load(SKEWED)).budgetKey;
  manager.resize("A", 84);
  assert.notEqual(manager.allocate(load(SKEWED)).budgetKey, before);
  manager.resize("A", null);
  assert.equal(manager.allocate(load(SKEWED)).budgetKey, before);
  manager.reserve("D", { computeUnits: 18 });
  assert.notEqual(manager.allocate(load(SKEWED)).budgetKey, before);
  manager.reserve("D", {});
  assert.equal(manager.allocate(load(SKEWED)).budgetKey, before);
});

test("bandwidth and cache stay while no slice's part moves by a tenth of the whole", () => {
  const manager = new SliceManager({ device: gpu() });
  const of = (counts: readonly number[]) => {
    const { A, B, C, D } = manager.allocate(load(counts)).slices;
    return [A, B, C, D].map(({ budget }) => [budget.bandwidthShare, budget.cacheBytes]);
  };
  const first = of([16, 8, 4, 2, 2, 1, 1, 1]);
  for (const near of [
    [17, 8, 4, 2, 2, 1, 1, 1],
    [16, 8, 4, 3, 2, 1, 1, 0],
  ]) {
    assert.deepEqual(of(near), first);
  }
  const moved = of([900, 9, 9, 9, 9, 9, 9, 9]);
  for (const column of [0, 1]) {
    const [now, before] = [moved, first].map((rows) => rows.map((row) => row[column]));
    assert.notDeepEqual(now, before);
  }
});

test("bandwidth goes to the experts that a batch of its size is expected to use", () => {
  const ofCold = (times: number) => {
    const counts = [16, 8, 4, 2, 2, 1, 1, 1].map((count) => count * times);
    return new SliceManager({ device: gpu() }).allocate(load(counts)).slices.C.budget;
  };
  assert.ok(ofCold(1).bandwidthShare < ofCold(64).bandwidthShare);
});

test("a reservation of cache is kept to, however little more it is than there was", () => {
  const manager = new SliceManager({ device: gpu() });
  const before = manager.allocate(load(SKEWED)).slices.B.budget.cacheBytes as number;
  manager.reserve("B", { cacheBytes: before + 1000 });
  assert.ok((manager.allocate(load(SKEWED)).slices.B.budget.cacheBytes ?? 0) >= before + 1000);
});
