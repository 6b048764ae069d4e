/**
 * What holds for every plan, whatever the load, the device, the policy and the
 * demands: the promises that the rest of the system builds on.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BUDGETED_SLICE_IDS, EXPERT_SLICE_IDS, type Plan } from "../../../src/control/plan.ts";
import { ExpertProfiler } from "../../../src/control/profiler.ts";
import { POLICY_NAMES, SliceManager } from "../../../src/control/slices/manager.ts";
import type { PlanningDevice } from "../../../src/control/slices/planning-device.ts";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { Random } from "../../../src/workload/random.ts";
import { between, chance, pick } from "../../support/seed.ts";
import { cpu, gpu, zipfCounts } from "../loads.ts";

function anyDevice(random: Random): PlanningDevice {
  if (chance(random, 0.5)) return cpu(between(random, 1, 16));
  return gpu({
    computeUnits: between(random, 32, 160),
    computeUnitGranularity: pick(random, [1, 2, 8]),
    cacheBytes: chance(random, 0.8) ? between(random, 0, 60_000_000) : null,
  });
}

function anyLoad(random: Random, experts: number): Int32Array {
  const busiest = random.permutation(experts);
  const counts = zipfCounts(random, experts, between(random, 0, 300), random.uniform() * 2.5);
  return Int32Array.from(busiest, (rank) => counts[rank] as number);
}

/** Asks for something at random; a refusal is as good an answer as any. */
function anyDemand(random: Random, manager: SliceManager, device: PlanningDevice, experts: number) {
  const slice = pick(random, BUDGETED_SLICE_IDS);
  const expertSlice = pick(random, EXPERT_SLICE_IDS);
  const { computeUnits, computeUnitGranularity: step, cacheBytes } = device;
  const units = step * between(random, 0, Math.floor(computeUnits / step));
  try {
    switch (between(random, 0, 5)) {
      case 0:
        manager.reserve(slice, { computeUnits: units / 2 - ((units / 2) % step) });
        break;
      case 1:
        manager.reserve(slice, { cacheBytes: between(random, 0, cacheBytes ?? 1) });
        break;
      case 2:
        manager.resize(slice, units);
        break;
      case 3:
        manager.resize(slice, null);
        break;
      case 4:
        manager.migrate(between(random, 0, experts - 1), expertSlice);
        break;
      case 5:
        manager.release(between(random, 0, experts - 1));
    }
  } catch (error) {
    assert.ok(error instanceof InvalidArgumentError, String(error));
  }
}

function checkPlan(plan: Plan, counts: Int32Array, device: PlanningDevice): void {
  const { computeUnits, computeUnitGranularity: step, cacheBytes } = device;
  const slices = Object.values(plan.slices);
  const sum = (of: (slice: (typeof slices)[number]) => number) =>
    slices.reduce((total, slice) => total + of(slice), 0);

  assert.ok(sum((slice) => slice.budget.computeUnits) <= computeUnits, plan.budgetKey);
  assert.ok(sum((slice) => slice.budget.bandwidthShare) <= 1);
  for (const { budget } of slices) {
    assert.ok(budget.computeUnits >= 0 && Number.isInteger(budget.computeUnits / step));
    assert.ok(budget.bandwidthShare >= 0);
    assert.equal(budget.cacheBytes === null, cacheBytes === null);
    assert.ok(budget.cacheBytes === null || budget.cacheBytes >= 0);
  }
  assert.ok(sum((slice) => slice.budget.cacheBytes ?? 0) <= (cacheBytes ?? 0));

  const seen = new Int32Array(counts.length);
  for (const slice of slices) {
    let tokens = 0;
    let last = -1;
    for (const expert of slice.experts) {
      assert.ok(expert > last, "ascending");
      last = expert;
      seen[expert] = (seen[expert] as number) + 1;
      tokens += counts[expert] as number;
      assert.equal(plan.placements[expert]?.slice, slice.id);
      assert.equal(plan.placements[expert]?.tokens, counts[expert]);
    }
    if (slice.experts.length > 0) {
      assert.ok(slice.budget.computeUnits > 0 && slice.budget.bandwidthShare > 0);
    }
    if (tokens > 0) assert.equal(slice.state, "active");
    if (["E", "F"].includes(slice.id)) assert.equal(slice.experts.length, 0);
  }
  assert.ok(
    seen.every((times) => times === 1),
    "every expert is on one slice",
  );
  assert.ok(plan.slices.D.budget.computeUnits > 0);
  assert.ok(Object.isFrozen(plan) && Object.isFrozen(plan.slices.A.budget));
}

const seeds = fc.integer({ min: 0, max: 2 ** 31 - 1 });

test("property: every plan fits the device and serves every expert, whatever was demanded", () => {
  fc.assert(
    fc.property(seeds, fc.constantFrom(...POLICY_NAMES), (seed, policy) => {
      const random = new Random(seed);
      const device = anyDevice(random);
      const experts = between(random, 1, 40);
      const manager = new SliceManager({
        device,
        policy,
        ...(chance(random, 0.5) && {
          maxExperts: { A: between(random, 0, 5), B: between(random, 0, 9) },
        }),
        ...(chance(random, 0.5) && { expertBytes: between(random, 1, 9_000_000) }),
      });
      const profiler = chance(random, 0.7) ? new ExpertProfiler({ experts }) : undefined;
      for (let i = 0; i < 12; i++) {
        if (chance(random, 0.4)) anyDemand(random, manager, device, experts);
        const counts = anyLoad(random, experts);
        const plan = manager.allocate({ counts }, profiler);
        checkPlan(plan, counts, device);
        for (let j = 0; j < 5; j++) {
          profiler?.observe({ counts, seconds: 0.01 });
          const tokens = between(random, 0, 50);
          manager.observe({ plan, seconds: random.uniform(), tokens, joules: null });
        }
      }
    }),
    { numRuns: 300 },
  );
});

test("property: the whole device is handed out unless people asked for less", () => {
  fc.assert(
    fc.property(seeds, fc.constantFrom(...POLICY_NAMES), (seed, policy) => {
      const random = new Random(seed);
      const device = anyDevice(random);
      const manager = new SliceManager({ device, policy });
      const { computeUnits, computeUnitGranularity: step } = device;
      const experts = between(random, 1, 40);
      for (let i = 0; i < 6; i++) {
        const plan = manager.allocate({ counts: anyLoad(random, experts) });
        const units = Object.values(plan.slices).map((slice) => slice.budget.computeUnits);
        assert.equal(
          units.reduce((a, b) => a + b, 0),
          Math.floor(computeUnits / step) * step,
        );
      }
    }),
    { numRuns: 200 },
  );
});

test("property: nobody is short of what was demanded while a lower priority has more than its minimum", () => {
  fc.assert(
    fc.property(seeds, (seed) => {
      const random = new Random(seed);
      const device = gpu();
      const [A, B, C, D] = random.permutation(4) as [number, number, number, number];
      const manager = new SliceManager({ device, priorities: { A, B, C, D } });
      const wanted: Partial<Record<string, number>> = {};
      for (const slice of BUDGETED_SLICE_IDS) {
        const units = 2 * between(random, 1, 63);
        if (chance(random, 0.6)) {
          manager.resize(slice, units);
          wanted[slice] = units;
        }
      }
      // Hot, warm and cold experts, so that the minimum of each slice is one step.
      const { slices } = manager.allocate({ counts: Int32Array.of(90, 30, 1, 1, 1, 30, 30, 30) });
      for (const slice of BUDGETED_SLICE_IDS) {
        const { budget, priority } = slices[slice];
        if (wanted[slice] === undefined || budget.computeUnits >= wanted[slice]) continue;
        for (const other of BUDGETED_SLICE_IDS) {
          if (slices[other].priority >= priority) continue;
          assert.equal(slices[other].budget.computeUnits, 2, `${other} before ${slice}`);
        }
      }
    }),
    { numRuns: 300 },
  );
});

test("property: experts handed down are the least loaded of their slice, and pins stay", () => {
  fc.assert(
    fc.property(seeds, (seed) => {
      const random = new Random(seed);
      const experts = between(random, 4, 40);
      const most = { A: between(random, 0, 4), B: between(random, 0, 6) };
      const counts = anyLoad(random, experts);
      const free = new SliceManager({ device: cpu() }).allocate({ counts });
      const manager = new SliceManager({ device: cpu(), maxExperts: most });
      const pinned = between(random, 0, experts - 1);
      if (most.A > 0) manager.migrate(pinned, "A");
      const { slices } = manager.allocate({ counts });
      if (most.A > 0) assert.ok(slices.A.experts.includes(pinned));
      assert.ok(slices.A.experts.length <= most.A && slices.B.experts.length <= most.B);
      const wantedA = free.slices.A.experts.filter((e) => most.A === 0 || e !== pinned);
      const stayed = wantedA.filter((e) => slices.A.experts.includes(e));
      for (const kept of stayed) {
        for (const gone of wantedA) {
          if (slices.A.experts.includes(gone)) continue;
          assert.ok((counts[kept] as number) >= (counts[gone] as number), `${kept} and ${gone}`);
        }
      }
      const room = most.A - (most.A > 0 ? 1 : 0);
      assert.equal(stayed.length, Math.min(room, wantedA.length));
    }),
    { numRuns: 300 },
  );
});

test("property: the same loads give the same plans", () => {
  fc.assert(
    fc.property(seeds, fc.constantFrom(...POLICY_NAMES), (seed, policy) => {
      const history = () => {
        const random = new Random(seed);
        const manager = new SliceManager({ device: gpu(), policy });
        return Array.from({ length: 30 }, () => {
          const plan = manager.allocate({ counts: anyLoad(random, 12) });
          for (let i = 0; i < 4; i++) {
            manager.observe({ plan, seconds: random.uniform(), tokens: 64, joules: null });
          }
          return JSON.stringify(plan);
        });
      };
      assert.deepEqual(history(), history());
    }),
    { numRuns: 30 },
  );
});
