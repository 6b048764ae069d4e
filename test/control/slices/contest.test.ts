import assert from "node:assert/strict";
import { test } from "node:test";
import { Contest } from "../../../src/control/slices/policies/contest.ts";
import { RecentMean } from "../../../src/control/slices/recent-mean.ts";
import { randomFor } from "../../support/seed.ts";
import { normalNumber } from "../loads.ts";

/** Steps of both in turn, those undivided at so much of the divided ones' cost. */
function run(contest: Contest, steps: number, undivided: number, { tokens = 64, level = 1 } = {}) {
  for (let i = 0; i < steps; i++) {
    contest.addTime("divided", level * (1 + 0.001 * (i % 3)), tokens);
    contest.addTime("undivided", level * undivided * (1 + 0.001 * (i % 2)), tokens);
  }
}

test("dividing leads until not dividing was measured to be cheaper, and the other way round", () => {
  const contest = new Contest();
  assert.equal(contest.leader, "divided");
  run(contest, 14, 0.9);
  assert.equal(contest.leader, "divided", "too few");
  run(contest, 5, 0.9);
  assert.equal(contest.leader, "undivided");
  assert.ok(Math.abs((contest.gainOf("undivided")?.gain ?? 0) + Math.log(0.9)) < 0.01);
  run(contest, 60, 0.99);
  assert.equal(contest.leader, "undivided", "a saving that is not worth it changes nothing");
  run(contest, 60, 1.1);
  assert.equal(contest.leader, "divided");
});

test("the one behind has none of the plans at first, then half, then what may be lost to it", () => {
  const contest = new Contest();
  assert.equal(contest.share, 0, "there is nothing to hold it against");
  for (let i = 0; i < 8; i++) contest.addTime("divided", 1, 64);
  assert.equal(contest.share, 1 / 2);
  run(contest, 30, 1.05);
  assert.equal(contest.share, 1 / 16);
  run(contest, 100, 3);
  assert.ok(Math.abs(contest.share - 0.01 / 2) < 5e-4, `${contest.share}`);
  // A leader that has become as dear as the other was may have been overtaken.
  for (let i = 0; i < 60; i++) contest.addTime("divided", 3, 64);
  assert.equal(contest.share, 1 / 16);
  run(contest, 60, 1, { tokens: 4096 });
  for (let i = 0; i < 300; i++) contest.addTime("divided", 1, 16);
  assert.equal(contest.share, 1 / 2, "batches of a size that is not known yet");
});

test("a load that costs more or less is no difference between the two", () => {
  const random = randomFor("contest load");
  const contest = new Contest();
  for (let phase = 0; phase < 200; phase++) {
    const level = Math.exp(0.1 * Math.sin(phase));
    for (let step = 0; step < 300; step++) {
      const way = random.uniform() < 1 / 16 ? "undivided" : "divided";
      const seconds = level * (way === "divided" ? 1 : 1.05);
      contest.addTime(way, seconds * Math.exp(0.03 * normalNumber(random)), 256);
      if (phase > 2) assert.equal(contest.leader, "divided", `phase ${phase}`);
    }
  }
});

test("of equals in time the one that costs fewer joules leads", () => {
  const contest = new Contest();
  for (let i = 0; i < 40; i++) {
    contest.addEnergy("divided", 2 + 0.01 * (i % 3), 64);
    contest.addEnergy("undivided", 1 + 0.01 * (i % 2), 64);
    run(contest, 1, 1);
  }
  assert.equal(contest.leader, "undivided");
});

test("a mean with a memory forgets, and knows how certain it is", () => {
  const random = randomFor("recent mean");
  const [all, recent] = [new RecentMean(), new RecentMean(16)];
  const errors: number[] = [];
  for (let i = 0; i < 20_000; i++) {
    const value = 5 + normalNumber(random);
    for (const mean of [all, recent]) mean.add(value);
    if (i > 100) errors.push((recent.mean - 5) ** 2);
  }
  assert.equal(all.n, 20_000);
  assert.equal(recent.n, 31);
  assert.ok(Math.abs(all.mean - 5) < 0.04 && Math.abs(all.error * 20_000 - 1) < 0.1);
  const found = errors.reduce((a, b) => a + b, 0) / errors.length;
  assert.ok(Math.abs(found * 31 - 1) < 0.2, `${found * 31}`);
  for (let i = 0; i < 64; i++) recent.add(9);
  assert.ok(Math.abs(recent.mean - 9) < 0.2);
  assert.equal(new RecentMean().error, Number.POSITIVE_INFINITY);
});

test("a batch size that comes no more says nothing, of time or of energy, however long it has been away", () => {
  const contest = new Contest();
  for (let i = 0; i < 40; i++) {
    run(contest, 1, 1.2);
    contest.addEnergy("divided", 1, 64);
    contest.addEnergy("undivided", 1.2, 64);
  }
  assert.equal(contest.leader, "divided");
  // Of the new size no window of energy is of the one behind alone.
  for (let i = 0; i < 30_000; i++) {
    contest.addTime("divided", 1, 4096);
    contest.addEnergy("divided", 1, 4096);
    if (i % 16 === 0) contest.addTime("undivided", 1.1 + 0.001 * (i % 3), 4096);
  }
  assert.ok(Math.abs((contest.gainOf("divided")?.gain ?? 0) - Math.log(1.1)) < 0.01);
  run(contest, 100, 0.5, { tokens: 4096 });
  assert.equal(contest.leader, "undivided");
});

test("equal sides are left at that, whatever batch sizes come", () => {
  const random = randomFor("contest sizes");
  const contest = new Contest();
  let open = 0;
  for (let step = 0; step < 20_000; step++) {
    const tokens = 2 ** Math.floor(3 * random.uniform());
    const way = random.uniform() < contest.share ? "undivided" : "divided";
    contest.addTime(way, tokens * Math.exp(0.15 * normalNumber(random)), tokens);
    if (step > 1000 && !contest.settled) open++;
  }
  assert.ok(open < 20, `open ${open} times`);
});
