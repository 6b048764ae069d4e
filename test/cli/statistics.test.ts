/** Order statistics, and timing two ways in turns. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { timeInTurns, timeOne } from "../../src/cli/bench/timing.ts";
import { mean, median, quantile } from "../../src/cli/statistics.ts";

test("quantiles lie between neighbours in proportion", () => {
  const values = [4, 1, 3, 2];
  assert.equal(quantile(values, 0), 1);
  assert.equal(quantile(values, 1), 4);
  assert.equal(quantile(values, 0.25), 1.75);
  assert.equal(median(values), 2.5);
  assert.equal(median([7]), 7);
  assert.equal(mean(values), 2.5);
  assert.deepEqual(values, [4, 1, 3, 2], "the values stay as they are");
});

test("two ways take turns, each first every other time, as often as asked", async () => {
  const calls: string[] = [];
  const progress: number[] = [];
  const call = (name: string) => async (turn: number) => calls.push(`${name}${turn}`);
  const [a, b] = await timeInTurns(call("a"), call("b"), { repeat: 3 }, (done) =>
    progress.push(done),
  );
  assert.deepEqual(calls, ["a0", "b0", "b1", "a1", "a2", "b2"]);
  assert.deepEqual([a.samples.length, b.samples.length], [3, 3]);
  assert.deepEqual(progress, [0, 1 / 3, 2 / 3]);
});

test("with a time to fill, both fill it and give five samples at least", async () => {
  const spin = (milliseconds: number) => async () => {
    const until = performance.now() + milliseconds;
    while (performance.now() < until);
  };
  const quick = await timeInTurns(spin(1), spin(2), { minimumSeconds: 0.03 }, () => {});
  assert.ok(quick[0].samples.reduce((sum, each) => sum + each, 0) >= 0.03);
  assert.ok(quick[0].median >= 0.001 && quick[1].median >= 0.002);
  const slow = await timeInTurns(spin(5), spin(5), { minimumSeconds: 0.001 }, () => {});
  assert.equal(slow[0].samples.length, 5);
  assert.equal((await timeOne(spin(5), { minimumSeconds: 0.001 })).samples.length, 5);
});
