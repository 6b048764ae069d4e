import assert from "node:assert/strict";
import os from "node:os";
import { describe, test } from "node:test";
import { ExpertProfiler } from "../../../src/control/profiler.ts";
import { POLICY_NAMES, SliceManager } from "../../../src/control/slices/manager.ts";
import type { PlanningDevice } from "../../../src/control/slices/planning-device.ts";
import { placeByHeat, type SlicePolicy, weighByWork } from "../../../src/control/slices/policy.ts";
import { DeviceUnavailableError, InvalidArgumentError } from "../../../src/errors.ts";
import type { MigInstance } from "../../../src/execution/device.ts";
import { cpu, expertsOf, gpu, load, SKEWED, unitsOf } from "../loads.ts";

const INSTANCES: readonly MigInstance[] = [
  {
    uuid: "MIG-1",
    gpu: 0,
    gpuInstance: 7,
    computeInstance: 0,
    profile: "1g.18gb",
    computeUnits: 16,
    memoryBytes: 2 ** 34,
  },
  {
    uuid: "MIG-2",
    gpu: 0,
    gpuInstance: 8,
    computeInstance: 0,
    profile: "odd",
    computeUnits: null,
    memoryBytes: null,
  },
];

/** A GPU with MIG instances. */
function divided(): PlanningDevice {
  const { realisations } = gpu();
  const mig = { available: true } as const;
  return gpu({ realisations: { ...realisations, mig }, migInstances: INSTANCES });
}

describe("a plan from counts alone", () => {
  test("needs no device: it is for this machine's threads", () => {
    const plan = new SliceManager().allocate(load(SKEWED));
    const total = unitsOf(plan).reduce((a, b) => a + b, 0);
    assert.equal(total, os.availableParallelism());
    for (const units of unitsOf(plan)) assert.equal((units * 16) % 1, 0);
  });

  test("places experts by heat and divides compute by load", () => {
    const plan = new SliceManager({ device: cpu() }).allocate(load(SKEWED));
    assert.deepEqual(expertsOf(plan, "A"), [0, 1]);
    assert.deepEqual(expertsOf(plan, "B"), [2]);
    assert.deepEqual(expertsOf(plan, "C"), [3, 4, 5, 6, 7]);
    // An eighth of 32 sixteenths for D, and 28 in the ratio 6 : 1 : 1, rounded.
    assert.deepEqual(unitsOf(plan), [21 / 16, 4 / 16, 3 / 16, 4 / 16, 0, 0]);
    assert.deepEqual(
      plan.placements.map(({ heat }) => heat),
      ["hot", "hot", "warm", "cold", "cold", "cold", "cold", "cold"],
    );
  });

  test("an even load, and one without tokens, is warm throughout", () => {
    for (const counts of [new Array(8).fill(5), new Array(8).fill(0)]) {
      const plan = new SliceManager({ device: cpu() }).allocate(load(counts));
      assert.equal(plan.slices.B.experts.length, 8);
      assert.deepEqual(unitsOf(plan), [0, 1.75, 0, 0.25, 0, 0]);
      assert.equal(plan.slices.B.state, counts[0] > 0 ? "active" : "idle");
    }
  });

  test("repeated plans keep an expert on the border where it is", () => {
    const manager = new SliceManager({ device: cpu() });
    const at = (first: number) =>
      manager.allocate(load([first, ...new Array(9).fill(1000 - first)])).placements[0]?.heat;
    const border = (share: number) => Math.round((9000 * share) / (1 + 8 * share));
    assert.equal(at(border(0.21)), "hot");
    assert.equal(at(border(0.19)), "hot");
    assert.equal(at(border(0.21)), "hot");
    assert.equal(at(border(0.14)), "warm");
    assert.equal(at(border(0.19)), "warm");
  });
});

describe("a plan from a profile", () => {
  test("goes by recent use, not by the batch at hand", () => {
    const profiler = new ExpertProfiler({ experts: 8 });
    for (let i = 0; i < 50; i++) profiler.observe({ ...load(SKEWED), seconds: 0.01 });
    const plan = new SliceManager({ device: cpu() }).allocate(
      load([...SKEWED].reverse()),
      profiler,
    );
    assert.deepEqual(expertsOf(plan, "A"), [0, 1]);
    assert.match(plan.explain(0).reason, /hot with 50\.0 % of recent tokens/);
    assert.equal(plan.explain(0).tokens, 4);
    // Whatever becomes of the counts.
    plan.load.counts.fill(9);
    assert.equal(plan.explain(0).tokens, 4);
  });

  test("a profile that has seen no tokens counts as none", () => {
    const profiler = new ExpertProfiler({ experts: 8 });
    profiler.observe({ ...load(new Array(8).fill(0)), seconds: 0.01 });
    const plan = new SliceManager({ device: cpu() }).allocate(load(SKEWED), profiler);
    assert.deepEqual(expertsOf(plan, "A"), [0, 1]);
  });
});

describe("slices beside the experts'", () => {
  test("D always has something, E is reserved, F is absent for the device's reason", () => {
    const { D, E, F } = new SliceManager({ device: gpu() }).allocate(load(SKEWED)).slices;
    assert.ok(D.budget.computeUnits > 0);
    assert.equal(D.state, "active");
    assert.deepEqual([E.state, E.budget.computeUnits], ["reserved", 0]);
    assert.match(E.reason, /backward/);
    assert.deepEqual([F.state, F.reason, F.budget.computeUnits], ["absent", "MIG mode is off.", 0]);
  });

  test("F is idle where there are MIG instances, and lists them", () => {
    const { F } = new SliceManager({ device: divided() }).allocate(load(SKEWED)).slices;
    assert.equal(F.state, "idle");
    assert.deepEqual(F.migInstances, INSTANCES);
    assert.equal(
      F.reason,
      "Plans use no MIG instance; openMigPool() has a worker process for each of 2 instances: 1g.18gb MIG-1 (16 compute units, 16384 MiB), odd MIG-2 (compute units unknown, memory unknown).",
    );
    assert.deepEqual([F.budget.computeUnits, F.experts], [0, []]);
    const none = new SliceManager({ device: gpu() }).allocate(load(SKEWED)).slices;
    assert.ok(Object.values(none).every((slice) => slice.migInstances === undefined));
  });
});

describe("bandwidth and cache", () => {
  test("bandwidth goes where weights are read, cache where tokens are", () => {
    const { A, C } = new SliceManager({ device: gpu() }).allocate(load(SKEWED)).slices;
    assert.ok(C.budget.bandwidthShare > A.budget.bandwidthShare);
    assert.ok((A.budget.cacheBytes as number) > (C.budget.cacheBytes as number));
  });

  test("explanations say what is only accounted for, and that a size is unknown", () => {
    const onGpu = new SliceManager({ device: gpu() }).allocate(load(SKEWED)).explain(0).reason;
    assert.match(
      onGpu,
      /of the bandwidth \(accounted for, not enforced\) and \d+\.\d MiB of cache\./,
    );
    const onCpu = new SliceManager({ device: cpu() }).allocate(load(SKEWED)).explain(0).reason;
    assert.match(onCpu, /MiB of cache \(accounted for, not enforced\)\./);
    const unknown = new SliceManager({ device: cpu(2, { cacheBytes: null }) }).allocate(
      load(SKEWED),
    );
    assert.equal(unknown.slices.A.budget.cacheBytes, null);
    assert.match(unknown.explain(0).reason, /a cache of unknown size/);
  });
});

describe("room and eviction", () => {
  test("maxExperts sends the least loaded one slice down, and on", () => {
    const counts = [300, 290, 280, 20, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 5, 5];
    const manager = new SliceManager({ device: cpu(), maxExperts: { A: 2, B: 0 } });
    const plan = manager.allocate(load(counts));
    assert.deepEqual(expertsOf(plan, "A"), [0, 1]);
    assert.deepEqual(expertsOf(plan, "B"), []);
    assert.equal(plan.slices.C.experts.length, 14);
    assert.equal(plan.explain(2).slice, "C");
    assert.match(
      plan.explain(2).reason,
      /is hot .* but slice A takes at most 2 experts by maxExperts and others come first, and slice B takes at most 0/,
    );
  });

  test("of equally loaded experts the first keep their place", () => {
    const manager = new SliceManager({ device: cpu(), maxExperts: { A: 1 } });
    const plan = manager.allocate(load([300, 300, 300, 1, 1, 1, 1, 1, 1, 1, 1, 1]));
    assert.deepEqual(expertsOf(plan, "A"), [0]);
  });

  test("reserved cache that is enforced holds as many experts as fit in it", () => {
    const manager = new SliceManager({ device: gpu(), expertBytes: 20e6 });
    manager.reserve("A", { cacheBytes: 30_000_000 });
    const plan = manager.allocate(load(SKEWED));
    assert.deepEqual(expertsOf(plan, "A"), [0]);
    assert.deepEqual(expertsOf(plan, "B"), [1, 2]);
    assert.match(
      plan.explain(1).reason,
      /slice A has 30000000 bytes of cache reserved, enough for 1 experts/,
    );
    manager.reserve("A", { cacheBytes: 40_000_000 });
    const roomier = manager.allocate(load(SKEWED));
    assert.deepEqual(expertsOf(roomier, "A"), [0, 1]);
    assert.ok((roomier.slices.A.budget.cacheBytes as number) >= 40_000_000);
    const both = new SliceManager({ device: gpu(), expertBytes: 20e6, maxExperts: { A: 1 } });
    both.reserve("A", { cacheBytes: 40_000_000 });
    assert.match(both.allocate(load(SKEWED)).explain(1).reason, /at most 1 experts by maxExperts/);
  });

  test("cache that is not reserved, too small for any expert, or not enforced, limits nobody", () => {
    const unreserved = new SliceManager({ device: gpu(), expertBytes: 20e6 });
    assert.deepEqual(expertsOf(unreserved.allocate(load(SKEWED)), "A"), [0, 1]);
    const tooSmall = new SliceManager({ device: gpu(), expertBytes: 60e6 });
    tooSmall.reserve("A", { cacheBytes: 40_000_000 });
    assert.deepEqual(expertsOf(tooSmall.allocate(load(SKEWED)), "A"), [0, 1]);
    const onCpu = new SliceManager({ device: cpu(), expertBytes: 20e6 });
    onCpu.reserve("A", { cacheBytes: 1_000_000 });
    assert.deepEqual(expertsOf(onCpu.allocate(load(SKEWED)), "A"), [0, 1]);
  });

  test("two experts of nearly equal load do not swap places in every plan", () => {
    const manager = new SliceManager({ device: cpu(), maxExperts: { A: 1 } });
    const at = (a: number, b: number) =>
      expertsOf(manager.allocate(load([a, b, 1, 1, 1, 1, 1, 1])), "A")[0];
    assert.equal(at(100, 99), 0);
    assert.equal(at(99, 100), 0);
    assert.equal(at(90, 110), 0);
    assert.equal(at(80, 120), 1);
    assert.equal(at(101, 99), 1);
  });
});

describe("small changes", () => {
  test("budgets stay while a step would get less than a tenth shorter, and explain so", () => {
    const manager = new SliceManager({ device: gpu() });
    const first = manager.allocate(load(SKEWED));
    const slightly = manager.allocate(load([500, 256, 128, 76, 40, 12, 8, 4]));
    assert.equal(slightly.budgetKey, first.budgetKey);
    assert.match(slightly.explain(0).reason, /kept, as dividing anew would save less than 10\.0 %/);
    const clearly = manager.allocate(load([300, 256, 128, 140, 140, 40, 12, 8]));
    assert.notEqual(clearly.budgetKey, first.budgetKey);
    assert.match(clearly.explain(0).reason, /in proportion to recent use/);
  });

  test("a slice that comes into use gets its minimum at once", () => {
    const manager = new SliceManager({ device: gpu() });
    const even = manager.allocate(load(new Array(8).fill(100)));
    assert.equal(even.slices.C.budget.computeUnits, 0);
    const one = manager.allocate(load([...new Array(7).fill(100), 0]));
    assert.deepEqual(expertsOf(one, "C"), [7]);
    assert.ok(one.slices.C.budget.computeUnits > 0);
  });

  test("noise in the load changes no budgets", () => {
    const manager = new SliceManager({ device: gpu() });
    const keys = new Set<string>();
    for (let i = 0; i < 200; i++) {
      const wobble = [512, 256, 128, 50, 50, 16, 8, 4].map(
        (count, e) => count + ((i * 7 + e * 13) % 5) - 2,
      );
      keys.add(manager.allocate(load(wobble)).budgetKey);
    }
    assert.equal(keys.size, 1);
  });
});

describe("a policy that would not divide the device", () => {
  const policy: SlicePolicy = {
    name: "undivided",
    place: placeByHeat,
    divide: (_view, work) => ({
      weights: weighByWork((slice) => work[slice].share),
      undivided: true,
      holdSmallChanges: false,
      why: "in turn",
    }),
  };

  test("is heard where nobody has asked for budgets or a realisation", () => {
    const manager = new SliceManager({ device: gpu(), policy });
    assert.equal(manager.allocate(load(SKEWED)).undivided, true);
    for (const [ask, take] of [
      [{ computeUnits: 8 }, {}],
      [{ cacheBytes: 1 << 20 }, {}],
    ] as const) {
      manager.reserve("A", ask);
      assert.equal(manager.allocate(load(SKEWED)).undivided, false, JSON.stringify(ask));
      manager.reserve("A", take);
      assert.equal(manager.allocate(load(SKEWED)).undivided, true);
    }
    manager.resize("B", 16);
    assert.equal(manager.allocate(load(SKEWED)).undivided, false);
  });

  test("is not where a realisation was asked for", () => {
    for (const realisation of ["shared", "partitioned"] as const) {
      const plan = new SliceManager({ device: gpu(), policy, realisation }).allocate(load(SKEWED));
      assert.equal(plan.undivided, false);
      assert.match(plan.explain(0).reason, /with \d+ of 132 compute units/);
    }
  });
});

describe("realisation", () => {
  test("auto is shared, and says why not partitioned", () => {
    const onCpu = new SliceManager({ device: cpu() }).allocate(load(SKEWED));
    assert.equal(onCpu.realisation, "shared");
    assert.match(onCpu.realisationReason, /A CPU has none/);
    const onGpu = new SliceManager({ device: gpu() }).allocate(load(SKEWED));
    assert.equal(onGpu.realisation, "shared");
    assert.match(onGpu.realisationReason, /only where the adaptive policy .* this is the dynamic/);
  });

  test("what is asked for is used", () => {
    const plan = new SliceManager({ device: gpu(), realisation: "partitioned" }).allocate(
      load(SKEWED),
    );
    assert.equal(plan.realisation, "partitioned");
    assert.match(plan.budgetKey, /^partitioned /);
    assert.match(plan.realisationReason, /asked for/);
  });

  test("what is unavailable is refused for the device's reason", () => {
    const none = { available: false, reason: "Out of order." } as const;
    const partitioned = gpu({ realisations: { ...gpu().realisations, partitioned: none } });
    assert.throws(
      () => new SliceManager({ device: partitioned, realisation: "partitioned" }),
      (error: unknown) =>
        error instanceof DeviceUnavailableError && /Out of order/.test(error.message),
    );
    const device = gpu({ realisations: { shared: none, partitioned: none, mig: none } });
    assert.throws(() => new SliceManager({ device }), /shared: Out of order/);
  });

  test("MIG is refused, with instances and without, for what it is used by", () => {
    for (const device of [gpu(), divided(), cpu()]) {
      assert.throws(
        () => new SliceManager({ device, realisation: "mig" }),
        (error: unknown) =>
          error instanceof InvalidArgumentError &&
          /^realisation is "mig".* openMigPool\(\), and use auto, shared/.test(error.message),
      );
    }
  });

  test("auto takes partitions where nothing can be shared", () => {
    const none = { available: false, reason: "Out of order." } as const;
    const device = gpu({ realisations: { ...gpu().realisations, shared: none } });
    assert.equal(new SliceManager({ device }).allocate(load(SKEWED)).realisation, "partitioned");
  });
});

describe("plans are values", () => {
  test("frozen throughout, numbered, and unmoved by what comes after", () => {
    const manager = new SliceManager({ device: cpu() });
    const given = load(SKEWED);
    const plan = manager.allocate(given);
    const text = JSON.stringify(plan);
    given.counts.fill(0);
    manager.resize("A", 1);
    manager.migrate(0, "C");
    const next = manager.allocate(load([...SKEWED].reverse()));
    assert.equal(next.version, plan.version + 1);
    assert.equal(plan.load, given);
    given.counts.set(SKEWED);
    assert.equal(JSON.stringify(plan), text);
    assert.equal(plan.explain(0).tokens, 512);
    for (const value of [
      plan,
      plan.slices,
      plan.slices.A,
      plan.slices.F,
      plan.slices.A.budget,
      plan.slices.E.budget,
      plan.slices.C.experts,
      plan.placements,
      plan.placements[0],
    ]) {
      assert.ok(Object.isFrozen(value));
    }
    assert.throws(() => {
      (plan as { version: number }).version = 7;
    }, TypeError);
    assert.throws(() => (plan.slices.A.experts as number[]).push(1), TypeError);
  });

  test("explain has one sentence of its own for every expert, under every policy", () => {
    for (const policy of POLICY_NAMES) {
      const plan = new SliceManager({ device: cpu(), policy }).allocate(load(SKEWED));
      const all = plan.explain();
      assert.equal(all.length, 8);
      all.forEach((each, expert) => {
        assert.deepEqual(each, plan.explain(expert));
        assert.deepEqual(each.budget, plan.slices[each.slice].budget);
        assert.ok(plan.slices[each.slice].experts.includes(expert));
        assert.ok(each.reason.startsWith(`Expert ${expert} is `), each.reason);
        assert.ok(
          each.reason.includes(`slice ${each.slice} runs it with ${each.budget.computeUnits} of 2`),
        );
        assert.equal(each.reason.match(/\.(?= |$)/g)?.length, 1, each.reason);
      });
    }
  });

  test("there is no explanation for an expert that is not there", () => {
    const plan = new SliceManager({ device: cpu() }).allocate(load(SKEWED));
    for (const expert of [-1, 8, 0.5]) {
      assert.throws(() => plan.explain(expert), /experts 0 to 7/);
    }
  });
});
