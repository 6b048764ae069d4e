import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ExpertProfiler } from "../../../src/control/profiler.ts";
import { SliceManager } from "../../../src/control/slices/manager.ts";
import { StaticPolicy } from "../../../src/control/slices/policies/static.ts";
import { placeByHeat, type SlicePolicy } from "../../../src/control/slices/policy.ts";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { gpu } from "../loads.ts";

const load = (...counts: number[]) => ({ counts: Int32Array.from(counts) });

describe("static", () => {
  test("ranks the first load that tells experts apart, and never moves again", () => {
    const manager = new SliceManager({ device: gpu(), policy: "static" });
    manager.allocate(load(1, 1, 1, 1, 1, 1, 1, 1));
    const first = manager.allocate(load(1, 2, 3, 4, 50, 60, 70, 80));
    assert.deepEqual(first.slices.A.experts, [6, 7]);
    assert.deepEqual(first.slices.B.experts, [4, 5]);
    assert.deepEqual(first.slices.C.experts, [0, 1, 2, 3]);
    assert.match(first.explain(7).reason, /is number 1 of 8 in the fixed ranking/);
    assert.match(first.explain(7).reason, /its fixed share/);
    const later = manager.allocate(load(900, 60, 50, 40, 4, 3, 2, 1));
    assert.equal(later.budgetKey, first.budgetKey);
    assert.deepEqual(later.slices.A.experts, [6, 7]);
    assert.equal(later.explain(0).heat, "hot");
  });

  test("takes a ranking from the start", () => {
    const policy = new StaticPolicy({ ranking: [3, 1, 0, 2] });
    const plan = new SliceManager({ device: gpu(), policy }).allocate(load(9, 1, 1, 1));
    assert.deepEqual(plan.slices.A.experts, [3]);
    assert.deepEqual(plan.slices.B.experts, [1]);
    assert.deepEqual(plan.slices.C.experts, [0, 2]);
  });

  test("a limit on experts goes by the ranking", () => {
    const policy = new StaticPolicy({ ranking: [7, 6, 5, 4, 3, 2, 1, 0] });
    const manager = new SliceManager({ device: gpu(), policy, maxExperts: { A: 1 } });
    assert.deepEqual(manager.allocate(load(9, 9, 9, 9, 9, 9, 90, 1)).slices.A.experts, [7]);
  });

  test("refuses what is no ranking, or one of other experts", () => {
    for (const ranking of [
      [0, 0],
      [0, 2],
      [-1, 0],
      [0.5, 1],
    ]) {
      assert.throws(() => new StaticPolicy({ ranking }), InvalidArgumentError);
    }
    const policy = new StaticPolicy({ ranking: [0, 1] });
    const manager = new SliceManager({ device: gpu(), policy });
    assert.throws(() => manager.allocate(load(1, 2, 3)), /names 2 experts but the load has 3/);
  });
});

describe("dynamic and proportional", () => {
  // Experts 0 and 1 were hot; this batch is mostly for expert 7.
  const profiler = new ExpertProfiler({ experts: 8 });
  for (let i = 0; i < 50; i++) {
    profiler.observe({ ...load(512, 256, 128, 64, 40, 12, 8, 4), seconds: 0.01 });
  }
  const batch = load(10, 10, 10, 10, 10, 10, 10, 700);

  test("dynamic divides by recent use", () => {
    const { slices } = new SliceManager({ device: gpu() }).allocate(batch, profiler);
    assert.ok(slices.A.budget.computeUnits > 4 * slices.C.budget.computeUnits);
  });

  test("proportional divides by this batch", () => {
    const manager = new SliceManager({ device: gpu(), policy: "proportional" });
    const plan = manager.allocate(batch, profiler);
    assert.deepEqual(plan.slices.A.experts, [0, 1]);
    // D has 16.5; of the other 115.5, A's 20, B's 10 and C's 740 tokens of 770 get their parts.
    const units = [3, 1.5, 111, 16.5];
    (["A", "B", "C", "D"] as const).forEach((slice, i) => {
      const got = plan.slices[slice].budget.computeUnits;
      assert.ok(Math.abs(got - (units[i] as number)) <= 2, `${slice}: ${got}`);
    });
    assert.match(plan.explain(7).reason, /in proportion to this batch's tokens/);
  });

  test("proportional falls back on recent use for a batch without tokens", () => {
    const manager = new SliceManager({ device: gpu(), policy: "proportional" });
    const plan = manager.allocate(load(0, 0, 0, 0, 0, 0, 0, 0), profiler);
    assert.ok(plan.slices.A.budget.computeUnits > 80);
    assert.match(plan.explain(0).reason, /as this batch has no tokens/);
  });
});

test("a policy of one's own is as good as the built-in ones", () => {
  const seen: number[] = [];
  const policy: SlicePolicy = {
    name: "halves",
    place: placeByHeat,
    divide: () => ({
      weights: { A: 1, B: 1, C: 1, D: 1 },
      holdSmallChanges: false,
      why: "an equal part",
    }),
    observe: (_, { seconds }) => seen.push(seconds),
  };
  const manager = new SliceManager({ device: gpu(), policy });
  const plan = manager.allocate(load(9, 3, 1, 3));
  assert.equal(plan.policy, "halves");
  assert.deepEqual(
    Object.values(plan.slices).map((slice) => slice.budget.computeUnits),
    [34, 34, 32, 32, 0, 0],
  );
  assert.match(plan.explain(0).reason, /an equal part/);
  manager.observe({ plan, seconds: 0.5, tokens: 1, joules: null });
  assert.deepEqual(seen, [0.5]);
});
