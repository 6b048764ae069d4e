/** A profiler written down, and one made from that. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ExpertProfiler } from "../../src/control/profiler.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { between, randomFor } from "../support/seed.ts";
import { randomStep, step } from "./observations.ts";

function withEnergy(good: { energy: object }, change: object): object {
  return { ...good, energy: { ...good.energy, ...change } };
}

function emptied(good: { options: object }): object {
  const none = new ExpertProfiler({ experts: 1 }).snapshot();
  return {
    ...none,
    options: { ...good.options, experts: 0 },
    averageShares: [],
    heats: [],
    stepsInHeat: [],
    energy: { ...none.energy, pendingTokens: [], pendingReads: [], pendingTicks: [] },
  };
}

test("a restored profiler goes on exactly as the other one", () => {
  const random = randomFor("restored profiler");
  for (const stepsBefore of [0, 1, 5, 40]) {
    const experts = between(random, 1, 12);
    const original = new ExpertProfiler({ experts, window: 6, halfLife: 3.5, minimumDwell: 3 });
    for (let i = 0; i < stepsBefore; i++) original.observe(randomStep(random, experts));
    const text = JSON.stringify(original.snapshot());
    const restored = ExpertProfiler.restore(JSON.parse(text));
    assert.equal(JSON.stringify(restored.snapshot()), text);
    for (let i = 0; i < 40; i++) {
      const next = randomStep(random, experts);
      original.observe(next);
      restored.observe(next);
      assert.deepEqual(restored.report(), original.report());
      assert.deepEqual(restored.snapshot(), original.snapshot());
    }
  }
});

test("a snapshot is not touched by later steps", () => {
  const profiler = new ExpertProfiler({ experts: 2 });
  profiler.observe(step([1, 1], { joules: 1 }));
  const snapshot = profiler.snapshot();
  const text = JSON.stringify(snapshot);
  profiler.observe(step([9, 0], { joules: 1 }));
  assert.equal(JSON.stringify(snapshot), text);
});

test("anything else is refused, naming the field", () => {
  const profiler = new ExpertProfiler({ experts: 2, window: 4 });
  for (let i = 0; i < 3; i++) profiler.observe(step([1, 2], { joules: 1 }));
  const good = JSON.parse(JSON.stringify(profiler.snapshot()));
  assert.doesNotThrow(() => ExpertProfiler.restore(good));
  const bad: [RegExp, unknown][] = [
    [/the value itself/, null],
    [/the value itself/, "profile"],
    [/format/, { ...good, format: "other" }],
    [/version/, { ...good, version: 1 }],
    [/averageShares has 1 entries for 2 experts/, { ...good, averageShares: [1] }],
    [/averageShares\.0/, { ...good, averageShares: [null, 1] }],
    [/heats\.1/, { ...good, heats: ["hot", "lukewarm"] }],
    [/stepsInHeat has 3/, { ...good, stepsInHeat: [1, 1, 1] }],
    [/counts has 2 rows instead of 3/, { ...good, counts: good.counts.slice(1) }],
    [/counts\.1 has 1 entries/, { ...good, counts: [[1, 1], [1], [1, 1]] }],
    [/ticks\.0\.0/, { ...good, ticks: [[0.5, 1], ...good.ticks.slice(1)] }],
    [/totals/, { ...good, totals: [[1, 2, 3], ...good.totals.slice(1)] }],
    [/energy has 5 readings/, withEnergy(good, { microjoules: new Array(5).fill([1, 1]) })],
    [/energy\.tokens has 1 rows/, withEnergy(good, { tokens: [[1, 1]] })],
    [/energy\.microjoulesByReads has 0/, withEnergy(good, { microjoulesByReads: [] })],
    [/energy\.timed\.1 has 2/, withEnergy(good, { timed: [[0], [0, 1], [0]] })],
    [/energy\.timed\.0\.0/, withEnergy(good, { timed: [[2], [0], [0]] })],
    [/energy\.pendingReads has 1/, withEnergy(good, { pendingReads: [1] })],
    [/energy\.pendingTicks has 0/, withEnergy(good, { pendingTicks: [] })],
    [/stepsWithTokens is 9/, { ...good, stepsWithTokens: 9 }],
    [/steps/, { ...good, steps: -1 }],
    [/extra/, { ...good, extra: 1 }],
    [/experts is 0/, emptied(good)],
  ];
  for (const [message, value] of bad) {
    assert.throws(
      () => ExpertProfiler.restore(value),
      (error: unknown) => {
        assert.ok(error instanceof InvalidArgumentError, String(error));
        assert.match(error.message, message);
        return true;
      },
    );
  }
});
