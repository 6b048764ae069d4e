import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { StepObservation } from "../../src/control/observation.ts";
import type { Heat } from "../../src/control/plan.ts";
import { ExpertProfiler } from "../../src/control/profiler.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { Random } from "../../src/workload/random.ts";
import { between, randomFor } from "../support/seed.ts";
import { normalNumber, zipfCounts } from "./loads.ts";
import { step } from "./observations.ts";

describe("window", () => {
  test("tokens, shares and time are sums over the last steps only", () => {
    const profiler = new ExpertProfiler({ experts: 2, window: 2 });
    profiler.observe(step([100, 0], { busySeconds: Float64Array.of(1, 0), tokens: 50 }));
    profiler.observe(step([3, 1], { busySeconds: Float64Array.of(0.5, 0.25), tokens: 2 }));
    profiler.observe(step([1, 3], { busySeconds: Float64Array.of(0.25, 0.5), tokens: 2 }));
    const report = profiler.report();
    assert.equal(report.steps, 3);
    assert.equal(report.windowSteps, 2);
    assert.equal(report.tokens, 4);
    assert.equal(report.seconds, 0.02);
    const [first, second] = report.experts;
    assert.deepEqual([first?.tokens, second?.tokens], [4, 4]);
    assert.deepEqual([first?.share, second?.share], [0.5, 0.5]);
    assert.deepEqual([first?.seconds, second?.seconds], [0.75, 0.75]);
  });

  test("time is null where none was measured", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    profiler.observe(step([1, 1]));
    assert.equal(profiler.report().experts[0]?.seconds, null);
  });

  test("a fresh profiler reports zeros and nulls, and everything warm", () => {
    const { experts, steps, tokens } = new ExpertProfiler({ experts: 3 }).report();
    assert.deepEqual([steps, tokens], [0, 0]);
    for (const each of experts) {
      assert.deepEqual(
        [each.heat, each.tokens, each.share, each.averageShare, each.seconds, each.joules],
        ["warm", 0, 0, 0, null, null],
      );
    }
  });

  test("sums are exact after a million steps", () => {
    const random = randomFor("exact sums");
    const window = 7;
    const profiler = new ExpertProfiler({ experts: 2, window });
    const busySeconds = new Float64Array(2);
    const counts = new Int32Array(2);
    const ticks: number[] = [];
    const tokens: number[] = [];
    for (let i = 0; i < 1_000_000; i++) {
      const tick = between(random, 0, 40_000_000);
      busySeconds[0] = tick / 1e7;
      counts[0] = between(random, 0, 1_000_000);
      profiler.observe({ counts, busySeconds, seconds: 0.1 });
      if (i >= 1_000_000 - window) {
        ticks.push(tick);
        tokens.push(counts[0]);
      }
    }
    const [first] = profiler.report().experts;
    assert.equal(first?.seconds, ticks.reduce((a, b) => a + b, 0) / 1e7);
    assert.equal(
      first?.tokens,
      tokens.reduce((a, b) => a + b, 0),
    );
  });
});

describe("average share and heat", () => {
  test("the average of a share that jumps halves its distance with every half-life", () => {
    const profiler = new ExpertProfiler({ experts: 2, halfLife: 4 });
    for (let i = 0; i < 200; i++) profiler.observe(step([1, 0]));
    for (let i = 0; i < 4; i++) profiler.observe(step([0, 1]));
    assert.ok(Math.abs(profiler.averageShareOf(0) - 0.5) < 1e-9);
    for (let i = 0; i < 4; i++) profiler.observe(step([0, 1]));
    assert.ok(Math.abs(profiler.averageShareOf(0) - 0.25) < 1e-9);
  });

  test("the first steps are averaged evenly", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    for (const counts of [
      [4, 0],
      [0, 4],
      [4, 0],
      [0, 4],
    ]) {
      profiler.observe(step(counts));
    }
    assert.equal(profiler.averageShareOf(0), 0.5);
  });

  test("the first step with tokens decides heat at once", () => {
    const profiler = new ExpertProfiler({ experts: 4 });
    profiler.observe(step([0, 0, 0, 0]));
    profiler.observe(step([8, 3, 3, 0]));
    assert.deepEqual(
      [0, 1, 2, 3].map((e) => profiler.heatOf(e)),
      ["hot", "warm", "warm", "cold"],
    );
  });

  test("steps without tokens change neither average nor heat", () => {
    const profiler = new ExpertProfiler({ experts: 4 });
    profiler.observe(step([8, 3, 3, 0]));
    const before = profiler.averageShareOf(0);
    for (let i = 0; i < 500; i++) profiler.observe(step([0, 0, 0, 0]));
    assert.equal(profiler.averageShareOf(0), before);
    assert.equal(profiler.heatOf(0), "hot");
    assert.equal(profiler.report().experts[0]?.tokens, 0);
  });

  test("heat follows a skew that moves", () => {
    const profiler = new ExpertProfiler({ experts: 8 });
    const skewed = [40, 10, 5, 5, 1, 1, 1, 1];
    for (let i = 0; i < 100; i++) profiler.observe(step(skewed));
    assert.equal(profiler.heatOf(0), "hot");
    assert.equal(profiler.heatOf(7), "cold");
    for (let i = 0; i < 100; i++) profiler.observe(step([...skewed].reverse()));
    assert.equal(profiler.heatOf(0), "cold");
    assert.equal(profiler.heatOf(7), "hot");
  });

  test("a hot expert whose tokens stop is warm or cold within 45 steps", () => {
    const profiler = new ExpertProfiler({ experts: 100 });
    const even = new Array(100).fill(9);
    for (let i = 0; i < 300; i++) profiler.observe(step([99, ...even.slice(1)]));
    assert.ok(profiler.averageShareOf(0) > 0.099);
    for (let i = 0; i < 45; i++) profiler.observe(step([0, ...even.slice(1)]));
    assert.notEqual(profiler.heatOf(0), "hot");
  });

  test("by default a share counts half after 16 steps, and a class may change after 8", () => {
    const average = new ExpertProfiler({ experts: 2 });
    for (let i = 0; i < 200; i++) average.observe(step([1, 0]));
    for (let i = 0; i < 16; i++) average.observe(step([0, 1]));
    assert.ok(Math.abs(average.averageShareOf(0) - 0.5) < 1e-9);
    const heat = new ExpertProfiler({ experts: 4, halfLife: 0.1 });
    heat.observe(step([9, 0, 0, 0]));
    const heats = Array.from({ length: 8 }, () => {
      heat.observe(step([0, 9, 0, 0]));
      return heat.heatOf(0);
    });
    assert.deepEqual(heats, [...new Array(7).fill("hot"), "cold"]);
  });

  test("an expert on the border does not flap, while it would without hysteresis", () => {
    const random = randomFor("border");
    const border = [
      { even: 2, name: "hot" },
      { even: 0.5, name: "cold" },
    ];
    for (const { even, name } of border) {
      const profiler = new ExpertProfiler({ experts: 16 });
      const flapping = new ExpertProfiler({
        experts: 16,
        minimumDwell: 0,
        thresholds: { hotEnter: 2, hotLeave: 1.999999, coldEnter: 0.5, coldLeave: 0.500001 },
      });
      let changes = 0;
      let changesWithout = 0;
      const watch = (each: ExpertProfiler, counts: Int32Array): boolean => {
        const before = each.heatOf(0);
        each.observe({ counts, seconds: 0.01 });
        return each.heatOf(0) !== before;
      };
      for (let i = 0; i < 5000; i++) {
        // 1,600 tokens of which expert 0 has its border share, give or take sampling noise.
        const mine = Math.max(0, Math.round(100 * even + 10 * normalNumber(random)));
        const others = Math.round((1600 - mine) / 15);
        const counts = Int32Array.from({ length: 16 }, (_, e) => (e === 0 ? mine : others));
        if (watch(profiler, counts)) changes++;
        if (watch(flapping, counts)) changesWithout++;
      }
      assert.ok(changes <= 2, `${name}: ${changes} changes`);
      assert.ok(changesWithout > 50, `${name}: only ${changesWithout} changes without hysteresis`);
    }
  });

  test("property: classes last their dwell, and no class is left between its thresholds", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 20 }),
        fc.integer({ min: 1, max: 12 }),
        fc.integer(),
        (experts, minimumDwell, seed) => {
          const random = new Random(seed);
          const profiler = new ExpertProfiler({ experts, minimumDwell, halfLife: 2 });
          const changedAt = new Map<number, number>();
          let before: Heat[] | undefined;
          let first = true;
          for (let i = 0; i < 120; i++) {
            const counts = zipfCounts(
              random,
              experts,
              between(random, 1, 30),
              random.uniform() * 2,
            );
            profiler.observe({ counts, seconds: 0.01 });
            const now = Array.from({ length: experts }, (_, e) => profiler.heatOf(e));
            for (let e = 0; e < experts; e++) {
              if (first) changedAt.set(e, i);
              if (before === undefined || now[e] === before[e]) continue;
              assert.ok(i - (changedAt.get(e) as number) >= minimumDwell, `expert ${e} at ${i}`);
              changedAt.set(e, i);
              const relative = profiler.averageShareOf(e) * experts;
              if (experts < 3) continue;
              if (now[e] === "hot") assert.ok(relative >= 2 - 1e-9);
              if (now[e] === "cold") assert.ok(relative <= 0.5 + 1e-9);
              if (now[e] === "warm" && before[e] === "hot") assert.ok(relative < 1.5 + 1e-9);
              if (now[e] === "warm" && before[e] === "cold") assert.ok(relative > 0.75 - 1e-9);
            }
            before = now;
            first = false;
          }
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe("energy", () => {
  test("there are no joules without a reading", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    profiler.observe(step([3, 1], { joules: null }));
    profiler.observe(step([3, 1]));
    for (const each of profiler.report().experts) {
      assert.deepEqual([each.joules, each.tokensPerJoule], [null, null]);
    }
  });

  test("a reading is shared out by time, and by tokens where no time was measured", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    profiler.observe(step([3, 1], { joules: 8 }));
    assert.deepEqual(
      profiler.report().experts.map((each) => each.joules),
      [6, 2],
    );
    profiler.observe(step([3, 1], { joules: 8, busySeconds: Float64Array.of(0.25, 0.75) }));
    assert.deepEqual(
      profiler.report().experts.map((each) => each.joules),
      [8, 8],
    );
    assert.deepEqual(
      profiler.report().experts.map((each) => each.tokensPerJoule),
      [6 / 8, 2 / 8],
    );
  });

  test("by weights read, every step that gave an expert a token counts the same", () => {
    const profiler = new ExpertProfiler({ experts: 3 });
    profiler.observe(step([100, 1, 0], { joules: null }));
    profiler.observe(step([100, 0, 0], { joules: 30.3 }));
    const { experts } = profiler.report();
    assert.deepEqual(
      experts.map((each) => each.joulesByReads),
      [20.2, 10.1, 0],
    );
    assert.deepEqual(
      experts.map((each) => Math.round((each.joules as number) * 201 * 1e3)),
      [200 * 30.3e3, 30.3e3, 0],
    );
    profiler.observe(step([0, 0, 7], { joules: 4 }));
    assert.equal(profiler.report().experts[2]?.joulesByReads, 4);
  });

  test("says what the shares go by", () => {
    const profiler = new ExpertProfiler({ experts: 2, window: 2 });
    const busySeconds = Float64Array.of(0.25, 0.75);
    const basisAfter = (observation: Partial<StepObservation>) => {
      profiler.observe(step([3, 1], observation));
      return profiler.report().energyBasis;
    };
    assert.equal(profiler.report().energyBasis, null);
    assert.equal(basisAfter({ joules: null, busySeconds }), null);
    assert.equal(basisAfter({ joules: "lost" }), null);
    assert.equal(basisAfter({ joules: 1 }), "tokens");
    assert.equal(basisAfter({ joules: 1, busySeconds }), "time and tokens");
    assert.equal(basisAfter({ joules: 1, busySeconds }), "time");
    assert.equal(basisAfter({ joules: 1 }), "time and tokens");
    assert.equal(basisAfter({ joules: 1 }), "tokens");
  });

  test("a reading covers all steps since the one before it", () => {
    const profiler = new ExpertProfiler({ experts: 2, window: 2 });
    for (let i = 0; i < 9; i++) profiler.observe(step([1, 0], { joules: null }));
    profiler.observe(step([0, 10], { joules: 19 }));
    const [first, second] = profiler.report().experts;
    assert.deepEqual([first?.joules, second?.joules], [9, 10]);
    assert.deepEqual([first?.tokensPerJoule, second?.tokensPerJoule], [1, 1]);
    profiler.observe(step([1, 0], { joules: 5 }));
    assert.equal(profiler.report().experts[0]?.joules, 14);
  });

  test("work that no reading covers is not charged with the next one", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    profiler.observe(step([100, 0]));
    profiler.observe(step([100, 0], { joules: "lost" }));
    profiler.observe(step([1, 1], { joules: 8 }));
    const [first, second] = profiler.report().experts;
    assert.deepEqual([first?.joules, second?.joules], [4, 4]);
    assert.equal(first?.tokensPerJoule, 1 / 4);
  });

  test("joules without work are nobody's", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    profiler.observe(step([0, 0], { joules: 5 }));
    const [first] = profiler.report().experts;
    assert.deepEqual([first?.joules, first?.tokensPerJoule], [0, null]);
  });

  test("what is shared out adds up to the reading, to half a microjoule an expert", () => {
    const random = randomFor("energy shares");
    const experts = 128;
    const profiler = new ExpertProfiler({ experts });
    let measured = 0;
    for (let i = 0; i < 64; i++) {
      const joules = random.uniform() * 10;
      measured += joules;
      profiler.observe({ counts: zipfCounts(random, experts, 200), seconds: 0.01, joules });
    }
    const shared = profiler.report().experts.reduce((sum, each) => sum + (each.joules ?? 0), 0);
    assert.ok(Math.abs(shared - measured) <= 64 * experts * 0.5e-6, `${shared} of ${measured}`);
  });
});

describe("errors", () => {
  test("options out of range name the value", () => {
    const bad: [RegExp, ConstructorParameters<typeof ExpertProfiler>[0]][] = [
      [/experts is 0/, { experts: 0 }],
      [/experts is 1025/, { experts: 1025 }],
      [/experts is 1.5/, { experts: 1.5 }],
      [/window is 0/, { experts: 2, window: 0 }],
      [/window is 5000/, { experts: 2, window: 5000 }],
      [/halfLife is 0/, { experts: 2, halfLife: 0 }],
      [/halfLife is NaN/, { experts: 2, halfLife: Number.NaN }],
      [/minimumDwell is -1/, { experts: 2, minimumDwell: -1 }],
      [
        /hotEnter 1/,
        { experts: 2, thresholds: { hotEnter: 1, hotLeave: 1, coldEnter: 0, coldLeave: 1 } },
      ],
    ];
    for (const [message, options] of bad) {
      assert.throws(() => new ExpertProfiler(options), { name: "InvalidArgumentError", message });
    }
  });

  test("a bad step is refused and changes nothing", () => {
    const profiler = new ExpertProfiler({ experts: 2 });
    profiler.observe(step([1, 2], { busySeconds: Float64Array.of(1, 1), joules: 2 }));
    const before = JSON.stringify(profiler.snapshot());
    const bad: [RegExp, StepObservation][] = [
      [/Int32Array of 3/, step([1, 2, 3])],
      [/got object/, { counts: [1, 2] as unknown as Int32Array, seconds: 1 }],
      [/counts\[1\] is -4/, step([1, -4])],
      [/seconds is -1/, step([1, 1], { seconds: -1 })],
      [/seconds is NaN/, step([1, 1], { seconds: Number.NaN })],
      [/seconds is 1000000/, step([1, 1], { seconds: 1e6 })],
      [/tokens is 0.5/, step([1, 1], { tokens: 0.5 })],
      [/Float64Array of 1/, step([1, 1], { busySeconds: Float64Array.of(1) })],
      [/busySeconds\[0\] is -1/, step([1, 1], { busySeconds: Float64Array.of(-1, 0) })],
      [/joules is -1/, step([1, 1], { joules: -1 })],
      [/joules is NaN/, step([1, 1], { joules: Number.NaN })],
      [/joules is 1000001;/, step([1, 1], { joules: 1_000_001 })],
    ];
    for (const [message, observation] of bad) {
      assert.throws(() => profiler.observe(observation), { name: "InvalidArgumentError", message });
      assert.equal(JSON.stringify(profiler.snapshot()), before);
    }
    for (const expert of [-1, 2, 0.5]) {
      assert.throws(() => profiler.heatOf(expert), InvalidArgumentError);
      assert.throws(() => profiler.averageShareOf(expert), InvalidArgumentError);
    }
  });
});
