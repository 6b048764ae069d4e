import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ExpertProfiler } from "../../../src/control/profiler.ts";
import { SliceManager } from "../../../src/control/slices/manager.ts";
import { placeByHeat, type SlicePolicy } from "../../../src/control/slices/policy.ts";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { cpu, gpu, load, SKEWED, unitsOf } from "../loads.ts";

describe("a policy that says what cannot be", () => {
  const sound: SlicePolicy = {
    name: "mine",
    place: placeByHeat,
    divide: () => ({
      weights: { A: 1, B: 1, C: 1, D: 1 },
      holdSmallChanges: false,
      why: "as I say",
    }),
  };
  const placing = (more: object): SlicePolicy => ({
    ...sound,
    place: (view) => ({ ...placeByHeat(view), ...more }),
  });
  const dividing = (more: object): SlicePolicy => ({
    ...sound,
    divide: (view, work) => ({ ...sound.divide(view, work), ...more }),
  });
  const weighing = (more: object) => dividing({ weights: { A: 1, B: 1, C: 1, D: 1, ...more } });
  const eight = (value: unknown, last: unknown) => [...new Array(7).fill(value), last];

  const wrong: readonly [SlicePolicy, RegExp][] = [
    [{ ...sound, place: () => undefined as never }, /slices from place\(\) is undefined/],
    [placing({ slices: ["A"] }), /slices from place\(\) is \[ 'A' \]; .* 8 slices, one per expert/],
    [placing({ slices: eight("A", "Z") }), /slices\[7\] from place\(\) is "Z"; .*"A", "B" or "C"/],
    [placing({ slices: eight("A", "D") }), /slices\[7\] from place\(\) is "D"/],
    [placing({ worth: undefined }), /worth from place\(\) is undefined; .* 8 numbers/],
    [placing({ worth: eight(1, Number.NaN) }), /worth\[7\] from place\(\) is NaN; .*0 or more/],
    [placing({ worth: eight(1, -1) }), /worth\[7\] from place\(\) is -1/],
    [placing({ why: "so" }), /why from place\(\) is "so"; .*a function/],
    [{ ...sound, divide: () => null as never }, /weights\.A from divide\(\) is undefined/],
    [dividing({ weights: { A: 1, B: 1, C: 1 } }), /weights\.D from divide\(\) is undefined/],
    [weighing({ A: Number.NaN }), /weights\.A from divide\(\) is NaN; .*0 or more/],
    [weighing({ B: -1 }), /weights\.B from divide\(\) is -1/],
    [weighing({ C: "1" }), /weights\.C from divide\(\) is "1"/],
    [weighing({ D: Number.POSITIVE_INFINITY }), /weights\.D from divide\(\) is Infinity/],
    [weighing({ A: 1e308, B: 1e308 }), /weights from divide\(\) is .*add up to a finite/],
    [
      dividing({ realisation: { kind: "green", reason: "so" } }),
      /realisation\.kind from divide\(\) is "green"; .*one of shared, partitioned, or no realisation/,
    ],
    [dividing({ realisation: null }), /realisation\.kind from divide\(\) is undefined/],
  ];
  for (const [policy, message] of wrong) {
    test(`is refused by name: ${message.source}`, () => {
      const manager = new SliceManager({ device: gpu(), policy, maxExperts: { A: 2 } });
      assert.throws(
        () => manager.allocate(load(SKEWED)),
        (error) => {
          assert.ok(error instanceof InvalidArgumentError, String(error));
          assert.match(error.message, /^Policy "mine": /);
          assert.match(error.message, message);
          return true;
        },
      );
    });
  }

  test("may weigh nothing at all, and have an opinion on partitions", () => {
    for (const policy of [
      sound,
      weighing({ A: 0, B: 0, C: 0, D: 0 }),
      dividing({ realisation: { kind: "partitioned", reason: "Why not." } }),
    ]) {
      const plan = new SliceManager({ device: gpu(), policy }).allocate(load(SKEWED));
      for (const units of unitsOf(plan)) assert.ok(units >= 0 && units <= 132, `${units}`);
    }
  });
});

describe("errors", () => {
  test("loads and profiles that do not fit are refused", () => {
    const manager = new SliceManager({ device: cpu() });
    assert.throws(
      () => manager.allocate({ counts: [1] as unknown as Int32Array }),
      InvalidArgumentError,
    );
    assert.throws(() => manager.allocate(load([])), InvalidArgumentError);
    assert.throws(() => manager.allocate(load([1, -2])), /counts\[1\] is -2/);
    manager.allocate(load(SKEWED));
    assert.throws(() => manager.allocate(load([1, 2])), /2 experts .* plans for 8/);
    const profiler = new ExpertProfiler({ experts: 4 });
    assert.throws(() => manager.allocate(load(SKEWED), profiler), /profile is of 4 experts/);
  });

  test("options out of range are refused", () => {
    const wrong: [RegExp, ConstructorParameters<typeof SliceManager>[0]][] = [
      [/no slice policy "greedy"; choose one of static, dynamic/, { policy: "greedy" as "static" }],
      [/no realisation "green"/, { realisation: "green" as "shared" }],
      [/priority NaN/, { priorities: { A: Number.NaN } }],
      [/maxExperts\.A is -1/, { maxExperts: { A: -1 } }],
      [/maxExperts\.C is 2/, { maxExperts: { C: 2 } as object }],
      [/expertBytes is 0/, { expertBytes: 0 }],
      [/granularity of 0\.1/, { device: cpu(2, { computeUnitGranularity: 0.1 }) }],
      [/granularity of 0;/, { device: cpu(2, { computeUnitGranularity: 0 }) }],
      [
        /3 compute units in steps of 1; .* need 4/,
        { device: cpu(3, { computeUnitGranularity: 1 }) },
      ],
    ];
    for (const [message, options] of wrong) {
      assert.throws(() => new SliceManager(options), { name: "InvalidArgumentError", message });
    }
  });

  test("measurements that cannot be, or of another manager's plan, are refused", () => {
    const manager = new SliceManager({ device: cpu() });
    const plan = manager.allocate(load(SKEWED));
    const good = { plan, seconds: 0.01, tokens: 10, joules: null };
    assert.doesNotThrow(() => manager.observe(good));
    for (const wrong of [
      { seconds: -1 },
      { seconds: Number.NaN },
      { tokens: -1 },
      { joules: -1 },
    ]) {
      assert.throws(() => manager.observe({ ...good, ...wrong }), InvalidArgumentError);
    }
    const other = new SliceManager({ device: cpu() }).allocate(load(SKEWED));
    assert.throws(
      () => manager.observe({ ...good, plan: other }),
      /not made by this slice manager/,
    );
  });
});
