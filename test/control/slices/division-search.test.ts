/** The search for a division by itself: which moves are tried, and what makes it start again. */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Arm } from "../../../src/control/slices/policies/arm.ts";
import { DivisionSearch } from "../../../src/control/slices/policies/division-search.ts";
import type { LoadView, WorkBySlice } from "../../../src/control/slices/policy.ts";
import { randomFor } from "../../support/seed.ts";

const SLICES = ["A", "B", "C", "D"] as const;
const TOKENS = 1024;

const viewOf = (quanta: number): LoadView => ({
  experts: 8,
  counts: new Int32Array(8).fill(1),
  shares: new Float64Array(8).fill(1 / 8),
  heats: new Array(8).fill("warm"),
  basis: "made up",
  quanta,
  realisations: ["shared"],
  mayUndivide: false,
});

/** Slices with these shares of the tokens; without a share they have no experts. */
function workOf(A: number, B: number, C: number): WorkBySlice {
  const slice = (share: number) => {
    const experts = share > 0 ? 2 : 0;
    return { experts, tokens: share * TOKENS, share, weightReads: experts };
  };
  return { A: slice(A), B: slice(B), C: slice(C) };
}

function searchOf(quanta: number, work: WorkBySlice) {
  const random = randomFor("division search");
  const search = new DivisionSearch(() => random.uniform());
  search.look(viewOf(quanta), work);
  return search;
}

/** Runs steps, all of one cost unless told otherwise, until the search rests; returns the divisions tried. */
function untilResting(search: DivisionSearch, secondsOf: (arm: Arm) => number = () => 1): Arm[] {
  const tried = new Set<Arm>();
  for (let step = 0; step < 10_000 && !search.resting; step++) {
    const arm = search.next();
    tried.add(arm);
    search.observe(arm, secondsOf(arm), TOKENS);
  }
  assert.ok(search.resting);
  return [...tried];
}

/** As much of the device as two divisions differ in. */
const distance = (a: Arm, b: Arm) =>
  SLICES.reduce((sum, slice) => sum + Math.abs(a.weights[slice] - b.weights[slice]) / 2, 0);

function observeTimes(search: DivisionSearch, times: number, secondsAt: (i: number) => number) {
  for (let i = 0; i < times; i++) search.observe(search.next(), secondsAt(i), TOKENS);
}

test("moves get smaller down to one quantum, and leave every slice in use a quantum", () => {
  const search = searchOf(16, workOf(0.5, 0.3, 0.2));
  const { incumbent } = search;
  const tried = untilResting(search);
  const sizes = new Set(tried.map((arm) => Math.round(distance(arm, incumbent) * 64) / 64));
  assert.deepEqual([...sizes].sort(), [0, 1 / 16, 1 / 8]);
  for (const { weights } of tried) {
    for (const slice of SLICES) assert.ok(weights[slice] * 16 >= 1, JSON.stringify(weights));
  }
});

test("a trial starts even: what the incumbent took before does not count", () => {
  const search = searchOf(64, workOf(0.5, 0.3, 0.2));
  search.observe(search.next(), 1, TOKENS);
  assert.equal(search.incumbent.samples, 0);
});

test("it starts again, with large moves, when a fifth of the tokens has moved, and not before", () => {
  const search = searchOf(64, workOf(0.5, 0.5, 0));
  untilResting(search);
  search.look(viewOf(64), workOf(0.35, 0.65, 0));
  assert.equal(search.resting, true);
  search.look(viewOf(64), workOf(0.29, 0.71, 0));
  assert.equal(search.resting, false);
  const { incumbent } = search;
  search.observe(incumbent, 1, TOKENS);
  const both = [search.next(), search.next()].map((arm) => distance(arm, incumbent));
  assert.equal(Math.max(...both), 1 / 8);
});

test("it starts again when a slice that had no experts has a twentieth of the tokens", () => {
  const search = searchOf(64, workOf(0.5, 0.5, 0));
  search.look(viewOf(64), workOf(0.48, 0.48, 0.04));
  assert.equal(search.incumbent.weights.C, 0);
  search.look(viewOf(64), workOf(0.47, 0.47, 0.06));
  assert.ok(search.incumbent.weights.C > 0);
});

test("measurements of divisions that are out of the running begin nothing", () => {
  const search = searchOf(64, workOf(0.5, 0.5, 0));
  const old = search.next();
  search.look(viewOf(64), workOf(0.1, 0.9, 0));
  search.observe(old, 1, TOKENS);
  for (let i = 0; i < 4; i++) assert.equal(search.next(), search.incumbent);
});

test("while it rests it starts again when steps are dearer beyond the noise", () => {
  const rested = () => {
    const search = searchOf(64, workOf(0.5, 0.5, 0));
    untilResting(search);
    observeTimes(search, 32, () => 1);
    return search;
  };
  const dearer = rested();
  observeTimes(dearer, 32, () => 1.4);
  assert.equal(dearer.resting, false);
  const noisy = rested();
  observeTimes(noisy, 32, (i) => 1.4 * Math.exp(i % 2 === 0 ? 2 : -2));
  assert.equal(noisy.resting, true);
});

test("while it rests the first batches of another size are what later ones are held against", () => {
  const search = searchOf(64, workOf(0.5, 0.5, 0));
  untilResting(search);
  for (const seconds of [8, 16]) {
    for (let i = 0; i < 32; i++) search.observe(search.next(), seconds, 8 * TOKENS);
    assert.equal(search.resting, seconds === 8);
  }
});
