import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { SliceManager } from "../../../src/control/slices/manager.ts";
import { cpu, expertsOf, gpu, load, SKEWED, unitsOf } from "../loads.ts";

describe("demands", () => {
  test("a reservation is paid for by the lowest priority first", () => {
    const manager = new SliceManager({ device: gpu() });
    const before = manager.allocate(load(SKEWED));
    assert.deepEqual(unitsOf(before), [88, 14, 14, 16, 0, 0]);
    manager.reserve("D", { computeUnits: 40 });
    assert.deepEqual(unitsOf(manager.allocate(load(SKEWED))), [88, 2, 2, 40, 0, 0]);
    assert.deepEqual(unitsOf(before), [88, 14, 14, 16, 0, 0]);
    manager.reserve("D", {});
    assert.deepEqual(unitsOf(manager.allocate(load(SKEWED))), [88, 14, 14, 16, 0, 0]);
  });

  test("priorities decide who pays", () => {
    const priorities = { A: 1, B: 5, C: 6 };
    const manager = new SliceManager({ device: gpu(), priorities });
    manager.reserve("D", { computeUnits: 40 });
    const plan = manager.allocate(load(SKEWED));
    assert.deepEqual(unitsOf(plan), [64, 14, 14, 40, 0, 0]);
    assert.equal(plan.slices.C.priority, 6);
  });

  test("a slice without experts keeps its reservation", () => {
    const manager = new SliceManager({ device: cpu() });
    manager.reserve("A", { computeUnits: 0.5 });
    const plan = manager.allocate(load(new Array(8).fill(1)));
    assert.deepEqual(unitsOf(plan), [0.5, 1.25, 0, 0.25, 0, 0]);
    assert.equal(plan.slices.A.state, "idle");
  });

  test("resize sets a slice's units and shares the rest, until it is taken back", () => {
    const manager = new SliceManager({ device: gpu() });
    const before = manager.allocate(load(SKEWED));
    manager.resize("A", 40);
    const resized = manager.allocate(load(SKEWED));
    assert.equal(resized.slices.A.budget.computeUnits, 40);
    assert.equal(
      unitsOf(resized).reduce((a, b) => a + b, 0),
      132,
    );
    assert.match(resized.explain(0).reason, /40 of 132 compute units \(as resized\)/);
    manager.reserve("A", { computeUnits: 40 });
    manager.reserve("A", {});
    manager.resize("A", null);
    assert.equal(manager.allocate(load(SKEWED)).budgetKey, before.budgetKey);
  });

  test("targets that do not all fit give by priority", () => {
    const manager = new SliceManager({ device: gpu() });
    manager.resize("A", 100);
    manager.resize("B", 60);
    manager.resize("C", 20);
    const plan = manager.allocate(load(SKEWED));
    assert.deepEqual(unitsOf(plan), [100, 28, 2, 2, 0, 0]);
    assert.match(plan.explain(0).reason, /100 of 132 compute units \(as resized\)/);
    const short = /28 of 132 compute units \(resized to 60, but what other slices .* leaves fewer/;
    const onB = plan.slices.B.experts[0] as number;
    assert.match(plan.explain(onB).reason, short);
  });

  test("migrate pins an expert from the next plan on, release frees it", () => {
    const manager = new SliceManager({ device: cpu(), maxExperts: { A: 1 } });
    manager.migrate(7, "A");
    const pinned = manager.allocate(load(SKEWED));
    assert.deepEqual(expertsOf(pinned, "A"), [7]);
    assert.match(pinned.explain(7).reason, /Expert 7 is pinned to slice A/);
    manager.migrate(7, "A");
    manager.release(7);
    assert.deepEqual(expertsOf(pinned, "A"), [7]);
    assert.deepEqual(expertsOf(manager.allocate(load(SKEWED)), "A"), [0]);
  });

  test("what cannot be is refused with the numbers and changes nothing", () => {
    const manager = new SliceManager({ device: gpu(), maxExperts: { A: 1 } });
    manager.reserve("B", { computeUnits: 50, cacheBytes: 10_000_000 });
    manager.resize("C", 10);
    manager.migrate(1, "A");
    const before = manager.allocate(load(SKEWED));
    const wrong: [RegExp, () => void][] = [
      [
        /reserve 90 .* at least 54, and a GPU has 132\. Reserve 78 at most/,
        () => manager.reserve("A", { computeUnits: 90 }),
      ],
      [/reserve 12 .* resized to 10/, () => manager.reserve("C", { computeUnits: 12 })],
      [
        /reserve\("A"\) was given 3 .* multiples of 2/,
        () => manager.reserve("A", { computeUnits: 3 }),
      ],
      [/given -2/, () => manager.reserve("A", { computeUnits: -2 })],
      [/given NaN/, () => manager.reserve("A", { computeUnits: Number.NaN })],
      [
        /41000000 bytes .* 10000000 are reserved .* 50000000/,
        () => manager.reserve("A", { cacheBytes: 41_000_000 }),
      ],
      [/-1 bytes/, () => manager.reserve("A", { cacheBytes: -1 })],
      [/"E" has no budget; choose one of A, B, C, D/, () => manager.reserve("E" as "A", {})],
      [/resized to 80 .* 2 to 78 of the 132/, () => manager.resize("A", 80)],
      [/resized to 48 .* 50 to/, () => manager.resize("B", 48)],
      [/resized to 0 /, () => manager.resize("A", 0)],
      [/multiples of 2/, () => manager.resize("A", 7)],
      [/"F" has no budget/, () => manager.resize("F" as "A", 2)],
      [/no expert 8/, () => manager.migrate(8, "A")],
      [/Expert -1/, () => manager.migrate(-1, "A")],
      [/Expert 1.5/, () => manager.release(1.5)],
      [/"D" takes no experts/, () => manager.migrate(0, "D" as "A")],
      [/2 pinned experts .* the 1 that maxExperts/, () => manager.migrate(2, "A")],
    ];
    for (const [message, act] of wrong) {
      assert.throws(act, { name: "InvalidArgumentError", message });
    }
    const after = manager.allocate(load(SKEWED));
    assert.equal(after.budgetKey, before.budgetKey);
    assert.deepEqual(after.explain(), before.explain());
  });

  test("cache cannot be reserved where its size is unknown", () => {
    const manager = new SliceManager({ device: cpu(2, { cacheBytes: null }) });
    assert.throws(() => manager.reserve("A", { cacheBytes: 1 }), /does not tell the size/);
    manager.reserve("A", { computeUnits: 1 });
    assert.ok(manager.allocate(load(SKEWED)).slices.A.budget.computeUnits >= 1);
  });

  test("a pin beyond the experts is found out by the first load", () => {
    const manager = new SliceManager({ device: cpu() });
    manager.migrate(8, "A");
    assert.throws(
      () => manager.allocate(load(SKEWED)),
      /Expert 8 .* 8 experts\. Call release\(8\)/,
    );
    manager.release(8);
    assert.doesNotThrow(() => manager.allocate(load(SKEWED)));
  });
});
