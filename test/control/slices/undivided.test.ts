/**
 * Whether the adaptive policy divides the device at all, against made-up machines that
 * lose to being divided or gain by it: it has to run mostly what is cheaper, go over to
 * the other within some hundred plans when that becomes cheaper, and lose little to finding out.
 */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { median } from "../../../src/cli/statistics.ts";
import type { Plan } from "../../../src/control/plan.ts";
import { SliceManager } from "../../../src/control/slices/manager.ts";
import { AdaptivePolicy } from "../../../src/control/slices/policies/adaptive.ts";
import { randomFor } from "../../support/seed.ts";
import { cpu, gpu, normalNumber } from "../loads.ts";
import {
  ALONE,
  best,
  COLD_IS_DEAR,
  LOAD,
  meanCost,
  NEAR,
  sideBySide,
  simulate,
} from "../machines.ts";

/** A machine that loses a fifth to being divided. */
const DEAR_DIVISION = 1.25;
/** A third of the tokens hot, most of the others warm. */
const EVENER = Int32Array.of(400, 128, 128, 128, 128, 96, 12, 4);
/** As the layer has them. */
const STEPS_PER_PLAN = 8;
/** Plans for which a load stays where it moves often: 300 steps. */
const PHASE = 37;
/** More than the one behind gets of some hundred plans: twice a sixteenth, which is beyond chance. */
const FEW = 1 / 8;

const undividedPart = (plans: readonly Plan[]) =>
  plans.filter((plan) => plan.undivided).length / plans.length;

function begin(name: string) {
  const policy = new AdaptivePolicy();
  const manager = new SliceManager({ device: cpu(132), policy });
  const random = randomFor(`undivided ${name}`);
  /** Plans of one step each on a machine that divides well. */
  const run = (alone: number, plans: number, counts = LOAD) => {
    const seconds = (plan: Plan) => sideBySide(plan, COLD_IS_DEAR, alone);
    return simulate(manager, { seconds, noise: 0.03 }, plans, random, counts);
  };
  /** Plans on a machine to which all divisions are alike and not dividing saves a part; the load moves every so many, and with it what steps cost. */
  const drift = (saved: number, plans: number, sizes = [256]) =>
    Array.from({ length: plans }, (_, i) => {
      const phase = Math.floor(i / PHASE);
      const plan = manager.allocate({ counts: phase % 2 === 0 ? LOAD : EVENER });
      for (let step = 0; step < STEPS_PER_PLAN; step++) {
        const tokens = sizes[random.integer(sizes.length)] as number;
        const cost = tokens * (plan.undivided ? 1 - saved : 1) * (1 + 0.1 * Math.sin(phase));
        const seconds = cost * Math.exp(0.03 * normalNumber(random));
        manager.observe({ plan, seconds, tokens, joules: null });
      }
      return plan;
    });
  /** Plans of one step each on such a machine, under a load that stays. */
  const stay = (saved: number, plans: number, { tokens = 1024, noise = 0.03 } = {}) =>
    Array.from({ length: plans }, () => {
      const plan = manager.allocate({ counts: LOAD });
      const seconds = (plan.undivided ? 1 - saved : 1) * Math.exp(noise * normalNumber(random));
      manager.observe({ plan, seconds, tokens, joules: null });
      return plan;
    });
  return { policy, manager, random, run, drift, stay };
}

test("is tried in turn with the proportional division before anything else", () => {
  const plans = begin("opening").run(ALONE, 60);
  const alike = plans.findIndex((plan) => plan.undivided);
  assert.ok(alike >= 8, "nothing to hold it against");
  assert.ok(undividedPart(plans) > 0.1);
  const first = plans.slice(0, alike + 8).filter((plan) => !plan.undivided);
  assert.equal(new Set(first.map((plan) => plan.budgetKey)).size, 1);
});

describe("where dividing is cheaper", () => {
  test("hardly ever, and the search finds the best division all the same", () => {
    const { policy, run } = begin("divided");
    const plans = run(ALONE, 4000);
    assert.ok(policy.resting);
    assert.ok(undividedPart(plans.slice(1000)) < 0.002, "it is 64 times as dear");
    const last = plans.slice(-200).filter((plan) => !plan.undivided);
    const cost = meanCost(last, (plan) => sideBySide(plan, COLD_IS_DEAR));
    assert.ok(cost < NEAR * best(gpu(), COLD_IS_DEAR));
  });

  test("is given up within some hundred plans, however often the load moves", () => {
    for (const every of [PHASE, 100, 1000]) {
      const { run } = begin(`no more, every ${every}`);
      assert.ok(undividedPart(run(DEAR_DIVISION, 500).slice(100)) > 0.8);
      const plans: Plan[] = [];
      for (let i = 0; plans.length < 1000; i++) {
        plans.push(...run(ALONE, every, i % 2 === 0 ? EVENER : LOAD));
      }
      assert.ok(undividedPart(plans.slice(300)) < 0.02, `load moves every ${every} plans`);
    }
  });

  test("also if it is only a little, and loads that move cost more or less", () => {
    for (let search = 0; search < 10; search++) {
      const { drift } = begin(`little ${search}`);
      assert.ok(undividedPart(drift(0.11, 400).slice(200)) > 1 - FEW);
      assert.ok(undividedPart(drift(-0.11, 800).slice(400)) < FEW, `search ${search}`);
    }
  });

  test("a division that the search finds takes over", () => {
    const { policy, run } = begin("for now");
    const plans = run(0.4, 80_000);
    assert.ok(undividedPart(plans.slice(100, 1000)) > 0.88);
    assert.ok(policy.resting);
    const last = plans.slice(-200).filter((plan) => !plan.undivided);
    assert.ok(last.length > 150);
    const found = sideBySide(last.at(-1) as Plan, COLD_IS_DEAR) / best(gpu(), COLD_IS_DEAR);
    assert.ok(found < NEAR, `${found} times the best`);
  });
});

describe("where not dividing is cheaper", () => {
  test("what measuring divisions costs is a per cent, while the load moves every 300 steps", () => {
    for (const saved of [0.05, 0.1, 0.12]) {
      const plans = begin(`drift ${saved}`).drift(saved, 2000);
      const cost = meanCost(plans.slice(100), (plan) => (plan.undivided ? 1 - saved : 1));
      assert.ok(cost / (1 - saved) < 1.0125, `${cost / (1 - saved)} where ${saved} is saved`);
      assert.ok(undividedPart(plans.slice(100)) < 1, "divisions are measured on");
    }
  });

  test("it is taken up though noise hides it at first", () => {
    let taken = 0;
    for (let search = 0; search < 40; search++) {
      const { stay } = begin(`noise ${search}`);
      taken += undividedPart(stay(0.08, 1000, { noise: 0.1 }).slice(-50)) > 0.5 ? 1 : 0;
    }
    assert.ok(taken >= 39, `by ${taken} of 40`);
  });

  test("also if it has become so while the search for a division rests", () => {
    const { policy, stay } = begin("cost");
    assert.ok(undividedPart(stay(-0.3, 4000).slice(-200)) < FEW);
    assert.ok(policy.resting);
    assert.ok(undividedPart(stay(0.2, 1500).slice(-200)) > 1 - FEW);
  });

  test("what is tried of divisions is of the load there is", () => {
    const plans = begin("load")
      .drift(0.1, 40 * PHASE)
      .slice(10 * PHASE);
    const tried = plans.filter((plan) => !plan.undivided);
    assert.ok(tried.length > PHASE);
    for (const counts of [LOAD, EVENER]) {
      const of = tried.filter(({ load }) => load.counts === counts);
      const units = (slice: "A" | "B") =>
        median(of.map(({ slices }) => slices[slice].budget.computeUnits));
      assert.equal(units("A") > units("B"), counts === LOAD, `${units("A")}, ${units("B")}`);
    }
  });
});

describe("batch sizes", () => {
  test("of another kind are compared anew, in a search that rests as well", () => {
    const { policy, stay } = begin("sizes");
    stay(-1, 4000, { tokens: 16 });
    assert.ok(policy.resting);
    assert.ok(
      undividedPart(stay(0.5, 400, { tokens: 4096 }).slice(200)) > 1 - FEW,
      "large batches",
    );
    assert.ok(undividedPart(stay(-1, 400, { tokens: 16 }).slice(200)) < FEW, "small ones again");
    assert.ok(
      undividedPart(stay(0.5, 400, { tokens: 4096 }).slice(200)) > 1 - FEW,
      "and large ones",
    );
  });

  test("that come in turn are judged together", () => {
    const { drift } = begin("mixed sizes");
    const plans = drift(0.1, 600, [64, 256, 1024, 4096]);
    assert.ok(undividedPart(plans.slice(300)) > 1 - FEW);
  });

  test("without lanes do not dilute what there is to gain", () => {
    for (let search = 0; search < 10; search++) {
      const { manager, random } = begin(`decode ${search}`);
      const plans = Array.from({ length: 1000 }, () => {
        const plan = manager.allocate({ counts: LOAD });
        for (let step = 0; step < STEPS_PER_PLAN; step++) {
          const comparable = random.integer(10) === 0;
          const cost = comparable ? (plan.undivided ? 1 : 2) : 0.01;
          const seconds = cost * Math.exp(0.03 * normalNumber(random));
          const tokens = comparable ? 1024 : 1;
          manager.observe({ plan, seconds, tokens, joules: null, comparable });
        }
        return plan;
      });
      assert.ok(undividedPart(plans.slice(-500)) > 1 - FEW, `search ${search}`);
    }
  });
});

test("a plan says what was measured lately, not what once was", () => {
  const { drift } = begin("reason");
  const saidBy = (plans: readonly Plan[]) => {
    const reason = plans.findLast((plan) => plan.undivided)?.explain(0).reason ?? "";
    const said =
      /slice [ABC] runs it with all 132 compute units, in turn with the other slices \(lately measured (\d+\.\d) % cheaper per token than dividing the device\), /;
    assert.match(reason, said);
    return Number(said.exec(reason)?.[1]);
  };
  const before = saidBy(drift(0.3, 400));
  assert.ok(before > 25 && before < 35, `${before} %`);
  const after = saidBy(drift(0.1, 800));
  assert.ok(after > 6 && after < 14, `${after} %`);
});

test("neither tried nor kept where budgets or a realisation were asked for", () => {
  const reserved = begin("reserved");
  reserved.manager.reserve("A", { computeUnits: 8 });
  assert.equal(undividedPart(reserved.run(DEAR_DIVISION, 500)), 0);
  for (const ask of [
    (manager: SliceManager) => manager.resize("A", 40),
    (manager: SliceManager) => manager.reserve("B", { cacheBytes: 1 << 20 }),
  ]) {
    const late = begin("asked late");
    assert.ok(undividedPart(late.run(DEAR_DIVISION, 500)) > 0.5);
    ask(late.manager);
    assert.equal(undividedPart(late.run(DEAR_DIVISION, 500)), 0);
    late.manager.resize("A", null);
    late.manager.reserve("B", {});
    assert.ok(undividedPart(late.run(DEAR_DIVISION, 500)) > 0.5, "once nobody asks any more");
  }
  const policy = new AdaptivePolicy();
  const shared = new SliceManager({ device: gpu(), policy, realisation: "shared" });
  const seconds = (plan: Plan) => sideBySide(plan, COLD_IS_DEAR, DEAR_DIVISION);
  const plans = simulate(shared, { seconds }, 500, randomFor("undivided, shared"));
  assert.equal(undividedPart(plans), 0);
});

describe("realisations, which the same search tries", () => {
  /** Partitions save a fifth; not dividing takes so much of what the best shared division would. */
  const onGpu = (undivided: number, name: string) => {
    const policy = new AdaptivePolicy();
    const manager = new SliceManager({ device: gpu(), policy });
    const seconds = (plan: Plan) =>
      plan.undivided ? undivided : plan.realisation === "partitioned" ? 0.8 : 1;
    const random = randomFor(`undivided, realisation ${name}`);
    const plans = simulate(manager, { seconds, noise: 0.02 }, 30_000, random);
    assert.ok(plans.every((plan) => !plan.undivided || plan.realisation === "shared"));
    return plans;
  };

  test("partitions may win where a shared division would lose to not dividing", () => {
    const plans = onGpu(0.9, "partitions win");
    assert.ok(undividedPart(plans.slice(50, 100)) > 0.5);
    const last = plans.slice(-200);
    assert.ok(undividedPart(last) < FEW);
    const divided = last.filter((plan) => !plan.undivided);
    assert.ok(divided.every((plan) => plan.realisation === "partitioned"));
  });

  test("and do not bring dividing back where not dividing is cheaper still", () => {
    const plans = onGpu(0.7, "undivided wins");
    assert.ok(plans.some((plan) => plan.realisation === "partitioned"));
    assert.ok(undividedPart(plans.slice(-200)) > 1 - FEW);
    const { realisationReason } = plans.findLast((plan) => plan.undivided) as Plan;
    assert.match(realisationReason, /nothing to partition/);
  });
});
