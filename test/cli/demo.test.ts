/** `nexus demo` from the outside: what it shows, what its JSON holds, what a seed decides. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { printDemo } from "../../src/cli/demo/report.ts";
import { nexus } from "./nexus.ts";

const SEED = "42";

/** What the clock and the energy counter decide, and nothing else may. */
const MEASURED = ["throughput", "energy"];

test("the demo shows the whole system in 80 columns, without colour when piped", async () => {
  const started = performance.now();
  const { code, stdout, stderr } = await nexus(["demo", "--seed", SEED]);
  const seconds = (performance.now() - started) / 1000;
  assert.equal(stderr, "");
  assert.equal(code, 0);
  assert.ok(seconds < 20, `it took ${seconds} s`);
  assert.ok(!stdout.includes("\u001b"), "escape codes in a pipe");
  for (const line of stdout.split("\n")) {
    assert.ok([...line].length <= 80, `${[...line].length} columns: ${line}`);
    assert.equal(line, line.trimEnd(), "trailing spaces");
  }
  for (const expected of [
    /^Device +\S/m,
    /^Layer +32 experts, top-2/m,
    /^Workload +120 steps of 256 tokens/m,
    /expert +\d+ +█+.* \d+\.\d % +hot/,
    /warm/,
    /cold/,
    /Slice plan, before → after/,
    /A hot +\d/,
    /D auxiliary +\d/,
    /E backward +reserved/,
    /F MIG +absent/,
    /F is absent: \S/,
    /Experts on another slice than before/,
    /C → [AB] +experts \d/,
    /Expert \d+ is hot with /,
    /right after +█/,
    /^Graphs +\d+ steps replayed, \d+ captured/m,
    /^Energy +(not measured: \S|[\d.,]+ m?J)/m,
    /^Output +correct: relative error \d\.\de-\d+ against the float64 reference/m,
  ]) {
    assert.match(stdout, expected);
  }
});

test("the demo's JSON has everything, and only measurements differ between two runs", async () => {
  const run = async (seed: string) => {
    const { code, stdout, stderr } = await nexus(["demo", "--json", "--seed", seed]);
    assert.equal(stderr, "");
    assert.equal(code, 0);
    return JSON.parse(stdout);
  };
  const first = await run(SEED);
  assert.equal(first.command, "demo");
  assert.equal(first.seed, 42);
  assert.equal(first.correct, true);
  assert.equal(first.check.reference, "float64");
  assert.ok(first.check.relativeError > 0 && first.check.relativeError < first.check.bound);
  assert.equal(first.layer.spec.router.experts, 32);

  const slots = 256 * 60 * 2;
  for (const phase of [first.before, first.after]) {
    assert.equal(
      phase.counts.reduce((sum: number, count: number) => sum + count, 0),
      slots,
    );
    assert.equal(phase.plan.experts.length, 32);
    assert.deepEqual(
      phase.plan.slices.map((slice: { id: string }) => slice.id),
      ["A", "B", "C", "D", "E", "F"],
    );
    const units = phase.plan.slices.map(
      (slice: { budget: { computeUnits: number } }) => slice.budget.computeUnits,
    );
    const total = units.reduce((sum: number, each: number) => sum + each, 0);
    assert.ok(total <= first.device.computeUnits, `${total} of ${first.device.computeUnits} units`);
    for (const heat of ["hot", "warm", "cold"]) {
      assert.ok(
        phase.plan.experts.some((each: { heat: string }) => each.heat === heat),
        heat,
      );
    }
  }
  const busiest = (phase: { counts: number[] }) => phase.counts.indexOf(Math.max(...phase.counts));
  assert.notEqual(busiest(first.before), busiest(first.after));
  assert.equal(first.before.plan.experts[busiest(first.before)].heat, "hot");
  assert.equal(first.after.plan.experts[busiest(first.after)].heat, "hot");
  const moved = first.changes.moves.map((move: { expert: number }) => move.expert);
  assert.ok(moved.includes(busiest(first.before)) && moved.includes(busiest(first.after)));

  const { graphs, throughput, energy } = first;
  assert.equal(graphs.warmups + graphs.captures + graphs.replays, 120);
  assert.ok(graphs.replays > 60 && graphs.captures > 0);
  for (const each of Object.values<{ tokensPerSecond: number }>(throughput)) {
    assert.ok(each.tokensPerSecond > 0);
  }
  assert.ok(energy.available ? energy.joules > 0 : energy.reason.length > 0);

  const second = await run(SEED);
  for (const measured of MEASURED) {
    delete first[measured];
    delete second[measured];
  }
  assert.deepEqual(second, first);

  const other = await run("43");
  assert.notDeepEqual(other.before.counts, first.before.counts);
  assert.equal(other.correct, true);
});

test("with a single lane no slice is said to have units of its own", async (t) => {
  const { code, stdout } = await nexus(["demo", "--json", "--seed", SEED]);
  assert.equal(code, 0);
  const report = JSON.parse(stdout);
  assert.ok(report.after.plan.lanes > 1);
  report.after.plan.lanes = 1;
  const written: string[] = [];
  const write = t.mock.method(process.stdout, "write", (text: string) => written.push(text) > 0);
  printDemo(report);
  write.mock.restore();
  const text = written.join("");
  assert.match(text, /A hot +\d\S* → all /);
  assert.match(text, /C cold +\d\S* → all /);
  assert.match(text, /D auxiliary +\d/);
  assert.match(text, /single lane: their slices take turns with the whole device\./);
  assert.doesNotMatch(text, /Budgets are/);
});

test("one thread computes the same as all", async () => {
  const { code, stdout } = await nexus(["demo", "--json", "--seed", SEED, "--threads", "1"]);
  assert.equal(code, 0);
  const one = JSON.parse(stdout);
  assert.equal(one.device.computeUnits, 1);
  assert.equal(one.correct, true);
});
