import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { budgetsInLanes } from "../../src/control/lane-budgets.ts";
import {
  computeBudgetsOf,
  EXPERT_SLICE_IDS,
  type ExpertSliceId,
  type Plan,
} from "../../src/control/plan.ts";
import { SliceManager } from "../../src/control/slices/manager.ts";
import {
  MAX_WAIT,
  type StreamAssignment,
  StreamScheduler,
} from "../../src/control/stream-scheduler.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { Random } from "../../src/workload/random.ts";
import { between, pick } from "../support/seed.ts";
import { cpu, gpu, SKEWED, zipfCounts } from "./loads.ts";

const COUNTS = Int32Array.from(SKEWED);

const planFor = (counts: Int32Array) => new SliceManager({ device: gpu() }).allocate({ counts });

/** A plan with every expert where it is told to be. */
function planWith(
  places: readonly ExpertSliceId[],
  counts = new Int32Array(places.length).fill(1),
) {
  const manager = new SliceManager({ device: cpu() });
  places.forEach((slice, expert) => {
    manager.migrate(expert, slice);
  });
  return manager.allocate({ counts });
}

function checkAssignment(assignment: StreamAssignment, plan: Plan, streams: number): void {
  const experts = plan.placements.length;
  assert.equal(assignment.streams, streams);
  assert.equal(assignment.sliceOfLane.length, streams);
  assert.equal(assignment.slicesOfLane.length, streams);
  assert.equal(assignment.priorityOfLane.length, streams);
  assert.equal(assignment.expertsOfLane.length, streams);
  assert.equal(assignment.laneOf.length, experts);
  assignment.slicesOfLane.forEach((ids, lane) => {
    assert.equal(assignment.sliceOfLane[lane], ids[0]);
  });
  for (const { expert, slice } of plan.placements) {
    const lane = assignment.laneOf[expert] as number;
    assert.ok(assignment.slicesOfLane[lane]?.includes(slice), `expert ${expert} on lane ${lane}`);
    assert.equal(assignment.expertsOfLane[lane]?.filter((each) => each === expert).length, 1);
  }
  assert.equal(assignment.expertsOfLane.flat().length, experts);
}

/** The slice whose lanes go before all others. */
function firstServed(assignment: StreamAssignment): ExpertSliceId {
  const top = Math.max(...assignment.priorityOfLane);
  const slices = new Set(
    assignment.sliceOfLane.filter((_, lane) => assignment.priorityOfLane[lane] === top),
  );
  assert.equal(slices.size, 1, `of ${assignment.laneKey}`);
  return [...slices][0] as ExpertSliceId;
}

describe("lanes", () => {
  test("eight by default, divided by budget among the slices that hold experts", () => {
    const counts = Int32Array.from({ length: 64 }, (_, e) => Math.ceil(2000 / (e + 1)));
    const plan = planFor(counts);
    const assignment = new StreamScheduler().assign(plan);
    checkAssignment(assignment, plan, 8);
    const lanes = EXPERT_SLICE_IDS.map(
      (id) => assignment.sliceOfLane.filter((slice) => slice === id).length,
    );
    assert.deepEqual(lanes, [4, 3, 1]);
    assert.match(
      assignment.note,
      /4 for slice A, 3 for slice B, 1 for slice C; slice A goes first/,
    );
  });

  test("a slice has no more lanes than experts while others can use them", () => {
    const plan = planFor(COUNTS);
    const assignment = new StreamScheduler().assign(plan);
    checkAssignment(assignment, plan, 8);
    assert.deepEqual(
      assignment.expertsOfLane.map((experts) => experts.length),
      new Array(8).fill(1),
    );
  });

  test("with more lanes than experts every expert has its own", () => {
    const plan = planFor(COUNTS);
    const assignment = new StreamScheduler({ streams: 12 }).assign(plan);
    checkAssignment(assignment, plan, 12);
    assert.equal(new Set(assignment.laneOf).size, 8);
  });

  test("with fewer lanes than slices the coldest share one, and that is said", () => {
    const plan = planFor(COUNTS);
    const two = new StreamScheduler({ streams: 2 }).assign(plan);
    checkAssignment(two, plan, 2);
    assert.deepEqual(two.slicesOfLane, [["A"], ["B", "C"]]);
    assert.match(two.note, /3 slices with experts but 2 lanes, so slices B and C share lane 1/);
    assert.deepEqual(two.expertsOfLane, [
      [0, 1],
      [2, 3, 4, 5, 6, 7],
    ]);
    const one = new StreamScheduler({ streams: 1 }).assign(plan);
    checkAssignment(one, plan, 1);
    assert.deepEqual(one.expertsOfLane, [[0, 1, 2, 3, 4, 5, 6, 7]]);
    assert.match(one.note, /A single lane: slices A, B, C take turns with the whole device/);
  });

  test("of an undivided device all slices have one, and lanes are as before when it is divided", () => {
    const plan = planFor(COUNTS);
    const scheduler = new StreamScheduler({ streams: 4 });
    const divided = scheduler.assign(plan);
    const undivided = scheduler.assign({ ...plan, undivided: true });
    checkAssignment(undivided, plan, 1);
    assert.deepEqual(undivided.slicesOfLane, [["A", "B", "C"]]);
    assert.deepEqual(scheduler.assign(plan).slicesOfLane, divided.slicesOfLane);
  });

  test("without one of its own a slice has no cache set aside, and the note says so", () => {
    const plan: Plan = {
      ...planFor(COUNTS),
      reservedCacheBytes: { A: 0, B: 4096, C: 8192, D: 16384 },
    };
    const on = (streams: number) => {
      const { sliceOfLane, note } = new StreamScheduler({ streams }).assign(plan);
      return { cache: budgetsInLanes(plan, sliceOfLane).cacheBytes, note };
    };
    assert.deepEqual(on(3).cache, [0, 4096, 8192, 16384, 0, 0]);
    assert.doesNotMatch(on(3).note, /set aside/);
    assert.deepEqual(on(2).cache, [0, 4096, 0, 16384, 0, 0]);
    assert.match(on(2).note, /Cache reserved for C is not set aside/);
    // The shared expert has a stream and a budget in any case.
    assert.deepEqual(on(1).cache, [0, 0, 0, 16384, 0, 0]);
    assert.match(on(1).note, /Cache reserved for B, C is not set aside/);
    const { units } = budgetsInLanes(plan, ["A"]);
    assert.deepEqual(units, computeBudgetsOf(plan).units);
  });

  test("a single one is the same graph, whatever slices it serves", () => {
    const keys = [COUNTS, new Int32Array(8).fill(9)].map(
      (counts) => new StreamScheduler({ streams: 1 }).assign(planFor(counts)).laneKey,
    );
    assert.equal(keys[0], keys[1]);
  });

  test("are balanced, longest first, and run the busiest expert first", () => {
    const counts = Int32Array.of(70, 60, 50, 40, 30, 30);
    const plan = planWith(["B", "B", "B", "B", "B", "B"], counts);
    const assignment = new StreamScheduler({ streams: 3 }).assign(plan);
    assert.deepEqual(assignment.expertsOfLane, [
      [0, 5],
      [1, 4],
      [2, 3],
    ]);
    // Graham's bound for longest processing time first: 4/3 - 1/(3m) of the best.
    const longest = Math.max(
      ...assignment.expertsOfLane.map((all) => all.reduce((sum, e) => sum + (counts[e] ?? 0), 0)),
    );
    assert.ok(longest <= (280 / 3) * (4 / 3 - 1 / 9));
  });

  test("experts without expected tokens are spread as well", () => {
    const plan = planWith(new Array<ExpertSliceId>(16).fill("C"), new Int32Array(16));
    const { expertsOfLane } = new StreamScheduler({ streams: 4 }).assign(plan);
    assert.deepEqual(
      expertsOfLane.map((experts) => experts.length),
      [4, 4, 4, 4],
    );
  });

  test("are balanced for an expected load where one is given", () => {
    const plan = planWith(["B", "B", "B", "B"]);
    const expected = { counts: Int32Array.of(100, 1, 1, 1) };
    const { expertsOfLane } = new StreamScheduler({ streams: 2 }).assign(plan, expected);
    assert.deepEqual(expertsOfLane, [[0], [1, 2, 3]]);
  });
});

describe("experts of a lane", () => {
  test("are sorted by what is expected, whatever it is, and of equals the first comes first", () => {
    const expected = fc.array(fc.oneof(fc.integer({ min: -2, max: 3 }), fc.integer()), {
      minLength: 1,
      maxLength: 40,
    });
    fc.assert(
      fc.property(expected, (counts) => {
        const plan = planWith(new Array<ExpertSliceId>(counts.length).fill("B"));
        const load = { counts: Int32Array.from(counts) };
        const { expertsOfLane } = new StreamScheduler({ streams: 1 }).assign(plan, load);
        const sorted = [...counts.keys()].sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0));
        assert.deepEqual(expertsOfLane, [sorted]);
      }),
    );
  });
});

describe("the key", () => {
  test("does not change when experts move, and does when budgets move a lot", () => {
    const manager = new SliceManager({ device: gpu() });
    const scheduler = new StreamScheduler({ streams: 8 });
    const counts = Int32Array.from({ length: 64 }, (_, e) => Math.ceil(2000 / (e + 1)));
    const first = scheduler.assign(manager.allocate({ counts }));
    const turned = scheduler.assign(planFor(counts.slice().reverse()));
    assert.equal(turned.laneKey, first.laneKey);
    assert.notDeepEqual(turned.laneOf, first.laneOf);
    manager.resize("A", 20);
    assert.notEqual(scheduler.assign(manager.allocate({ counts })).laneKey, first.laneKey);
  });

  test("changes once at most while budgets go to and fro by a lane's worth", () => {
    const manager = new SliceManager({ device: gpu() });
    const counts = Int32Array.from({ length: 64 }, (_, e) => Math.ceil(2000 / (e + 1)));
    const scheduler = new StreamScheduler({ streams: 8 });
    let [key, keyAfresh] = ["", ""];
    let [changes, changesAfresh] = [-1, -1];
    for (let i = 0; i < 24; i++) {
      manager.resize("A", i % 2 === 0 ? 56 : 68);
      const plan = manager.allocate({ counts });
      const held = scheduler.assign(plan).sliceOfLane.join("");
      const afresh = new StreamScheduler({ streams: 8 }).assign(plan).sliceOfLane.join("");
      if (held !== key) changes++;
      if (afresh !== keyAfresh) changesAfresh++;
      [key, keyAfresh] = [held, afresh];
    }
    assert.ok(changes <= 1, `${changes} changes`);
    assert.equal(changesAfresh, 23);
  });

  test("follows budgets that move by more than a lane", () => {
    const manager = new SliceManager({ device: gpu() });
    const counts = Int32Array.from({ length: 64 }, (_, e) => Math.ceil(2000 / (e + 1)));
    const scheduler = new StreamScheduler({ streams: 8 });
    for (const units of [48, 84, 48]) {
      manager.resize("A", units);
      const plan = manager.allocate({ counts });
      const afresh = new StreamScheduler({ streams: 8 }).assign(plan).sliceOfLane;
      assert.deepEqual(scheduler.assign(plan).sliceOfLane, afresh);
    }
  });

  test("outlasts a while without a division, also where budgets have moved by a lane", () => {
    const manager = new SliceManager({ device: gpu() });
    const counts = Int32Array.from({ length: 64 }, (_, e) => Math.ceil(2000 / (e + 1)));
    const scheduler = new StreamScheduler({ streams: 8 });
    manager.resize("A", 56);
    const before = scheduler.assign(manager.allocate({ counts })).sliceOfLane;
    manager.resize("A", 68);
    const plan = manager.allocate({ counts });
    scheduler.assign({ ...plan, undivided: true });
    assert.deepEqual(scheduler.assign(plan).sliceOfLane, before);
    assert.notDeepEqual(new StreamScheduler({ streams: 8 }).assign(plan).sliceOfLane, before);
  });

  test("gives lanes back when the slice that had most of them is empty", () => {
    const scheduler = new StreamScheduler({ streams: 2 });
    scheduler.assign(planWith(["A", "A", "B", "B"]));
    const { sliceOfLane } = scheduler.assign(planWith(["A", "A", "A", "A"]));
    assert.deepEqual(sliceOfLane, ["A", "A"]);
  });

  test("is the same for the same lanes and priorities, and only then", () => {
    const scheduler = new StreamScheduler({ streams: 4 });
    const plan = planFor(COUNTS);
    const layouts = new Map<string, string>();
    for (let i = 0; i < 3 * MAX_WAIT; i++) {
      const { laneKey, slicesOfLane, priorityOfLane } = scheduler.assign(plan);
      const layout = JSON.stringify([slicesOfLane, priorityOfLane]);
      assert.equal(layouts.get(laneKey) ?? layout, layout);
      layouts.set(laneKey, layout);
    }
    assert.equal(new Set(layouts.values()).size, layouts.size);
    assert.equal(layouts.size, 3, "one order for each slice in front");
  });
});

describe("no starvation", () => {
  test("order is by priority most of the time", () => {
    const scheduler = new StreamScheduler();
    const plan = planFor(COUNTS);
    const served = { A: 0, B: 0, C: 0 };
    for (let i = 0; i < 10 * MAX_WAIT; i++) served[firstServed(scheduler.assign(plan))]++;
    assert.ok(served.A > 0.9 * 10 * MAX_WAIT);
    assert.ok(served.B >= 10 && served.C >= 10);
  });

  test("property: over any plans, every expert has a lane and every slice that keeps experts is first in time", () => {
    const manager = new SliceManager({ device: cpu() });
    const plans = new Map<string, Plan>();
    /** Plans for the adversary to choose from: any distribution of six experts. */
    const planOf = (places: readonly ExpertSliceId[]): Plan => {
      const key = places.join("");
      let plan = plans.get(key);
      if (plan === undefined) {
        places.forEach((slice, expert) => {
          manager.migrate(expert, slice);
        });
        plan = manager.allocate({ counts: Int32Array.of(6, 5, 4, 3, 2, 1) });
        plans.set(key, plan);
      }
      return plan;
    };
    fc.assert(
      fc.property(fc.integer(), fc.integer({ min: 3, max: 9 }), (seed, streams) => {
        const random = new Random(seed);
        const scheduler = new StreamScheduler({ streams });
        const waited = { A: 0, B: 0, C: 0 };
        let places: ExpertSliceId[] = ["A", "A", "B", "B", "C", "C"];
        const restless = random.uniform();
        for (let i = 0; i < 200; i++) {
          if (random.uniform() < restless) {
            places = places.map(() => pick(random, EXPERT_SLICE_IDS));
          }
          const plan = planOf(places);
          const assignment = scheduler.assign(plan);
          checkAssignment(assignment, plan, streams);
          const first = firstServed(assignment);
          for (const id of EXPERT_SLICE_IDS) {
            const holds = plan.slices[id].experts.length > 0;
            waited[id] = !holds || id === first ? 0 : waited[id] + 1;
            assert.ok(waited[id] < MAX_WAIT, `slice ${id} waited ${waited[id]} times`);
          }
        }
      }),
      { numRuns: 40 },
    );
  });

  test("whatever the priorities, also equal ones", () => {
    const priorities = { A: 1, B: 1, C: 1 };
    const plan = new SliceManager({ device: gpu(), priorities }).allocate({ counts: COUNTS });
    const scheduler = new StreamScheduler();
    const served = new Set<ExpertSliceId>();
    for (let i = 0; i < MAX_WAIT; i++) served.add(firstServed(scheduler.assign(plan)));
    assert.equal(served.size, 3);
  });
});

describe("errors", () => {
  test("streams out of range name the value", () => {
    for (const streams of [0, 65, 1.5, Number.NaN]) {
      assert.throws(() => new StreamScheduler({ streams }), {
        name: "InvalidArgumentError",
        message: new RegExp(`streams is ${streams}`),
      });
    }
    assert.equal(new StreamScheduler({ streams: 64 }).streams, 64);
  });

  test("an expected load of other experts is refused", () => {
    const scheduler = new StreamScheduler();
    const plan = planFor(COUNTS);
    assert.throws(
      () => scheduler.assign(plan, { counts: new Int32Array(3) }),
      /3 experts .* plan has 8/,
    );
    assert.throws(() => scheduler.assign(plan, {} as { counts: Int32Array }), InvalidArgumentError);
  });
});

test("random plans of the slice manager: every expert has a lane of its slice", () => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const random = new Random(seed);
      const experts = between(random, 1, 80);
      const streams = between(random, 1, 20);
      const manager = new SliceManager({ device: gpu() });
      const scheduler = new StreamScheduler({ streams });
      for (let i = 0; i < 8; i++) {
        const counts = zipfCounts(random, experts, between(random, 0, 400), random.uniform() * 2);
        const plan = manager.allocate({ counts });
        checkAssignment(scheduler.assign(plan), plan, streams);
      }
    }),
    { numRuns: 100 },
  );
});
