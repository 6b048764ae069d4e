/** `route` on the device against the float64 reference, over random shapes and every rule. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { InvalidArgumentError, InvalidLogitsError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import type { Stream } from "../../../src/execution/device.ts";
import type { RouteOperator, RoutingRule } from "../../../src/execution/operators.ts";
import { referenceRoute } from "../../../src/reference/route.ts";
import { GROUPED_RULES, limited, RULES, randomRule } from "../../support/rules.ts";
import { between, chance, normal, pick, randomFor } from "../../support/seed.ts";
import { floats, integers, ints, room, upload } from "./harness.ts";

let device: CpuDevice;
let stream: Stream;
before(async () => {
  device = await openCpuDevice({ threads: 2 });
  stream = device.createStream({ group: 0, priority: 0 });
});
after(() => device.close());

interface Case {
  readonly rule: RoutingRule;
  readonly experts: number;
  readonly topK: number;
  readonly tokens: number;
  readonly logits: Float32Array;
  readonly bias?: Float32Array;
  /** Default: as many as there are. */
  readonly mostTokens?: number;
}

async function route({ rule, experts, topK, tokens, logits, bias, ...rest }: Case) {
  const mostTokens = rest.mostTokens ?? Math.max(1, tokens);
  const operator: RouteOperator = {
    kind: "route",
    rule,
    experts,
    topK,
    mostTokens,
    bucketed: false,
    tokens: ints(device, tokens),
    logits: upload(device, logits.length > 0 ? logits : new Float32Array(experts)),
    ids: room(device, Math.max(1, tokens) * topK),
    weights: room(device, Math.max(1, tokens) * topK),
    counts: upload(device, new Int32Array(experts).fill(77)),
    ...(bias === undefined ? {} : { selectionBias: upload(device, bias) }),
  };
  stream.enqueue(operator);
  await device.synchronize();
  const { ids, weights, counts } = operator;
  const result = {
    ids: await integers(device, ids),
    weights: await floats(device, weights),
    counts: await integers(device, counts),
  };
  for (const buffer of [operator.tokens, operator.logits, ids, weights, counts]) {
    buffer[Symbol.dispose]();
  }
  operator.selectionBias?.[Symbol.dispose]();
  return result;
}

async function check(c: Case, name: string): Promise<void> {
  const got = await route(c);
  const want = referenceRoute(c.rule, c.logits, c.experts, c.topK, c.bias);
  const { tokens, topK } = c;
  assert.deepEqual(got.ids.subarray(0, tokens * topK), want.ids, name);
  assert.deepEqual(got.counts, want.counts, name);
  for (let i = 0; i < tokens * topK; i++) {
    const weight = want.weights[i] as number;
    const error = Math.abs((got.weights[i] as number) - weight);
    assert.ok(error <= Math.abs(weight) * 1e-7 + 1e-40, `${name}: weight ${i}`);
  }
}

describe("route", () => {
  for (const { name, rule } of RULES) {
    it(`follows the reference: ${name}`, async () => {
      const random = randomFor(name);
      for (let round = 0; round < 12; round++) {
        const experts = between(random, 1, round < 10 ? 96 : 1024);
        const topK = between(random, 1, Math.min(experts, 32));
        const tokens = round === 0 ? 0 : between(random, 1, 200);
        const logits = normal(random, tokens * experts, pick(random, [0.1, 1, 8]));
        const bias = chance(random, 0.5) ? normal(random, experts, 0.3) : undefined;
        const sizes = `${tokens} tokens, ${experts} experts, top ${topK}`;
        await check({ rule, experts, topK, tokens, logits, ...(bias && { bias }) }, sizes);
      }
    });
  }

  it("limits selection to the best groups", async () => {
    const random = randomFor("groups");
    for (const { name, rule } of GROUPED_RULES) {
      for (let round = 0; round < 10; round++) {
        const experts = pick(random, [8, 12, 64, 160, 256]);
        const topK = between(random, 1, 6);
        const tokens = between(random, 1, 100);
        const logits = normal(random, tokens * experts);
        const bias = chance(random, 0.5) ? normal(random, experts, 0.5) : undefined;
        const limitedRule = limited(random, rule, experts, topK);
        await check(
          { rule: limitedRule, experts, topK, tokens, logits, ...(bias && { bias }) },
          `${name} ${JSON.stringify(limitedRule.groupLimit)}`,
        );
      }
    }
  });

  it("lets no expert of a group left out pass one of a group kept", async () => {
    // Group 1 is best; a bias of -Infinity leaves only one expert in it that anything speaks for.
    const groupLimit = { groups: 2, keep: 1, score: "max" } as const;
    const { ids } = await route({
      rule: { scoring: "sigmoid", renormalize: true, scale: 1, groupLimit },
      experts: 4,
      topK: 2,
      tokens: 1,
      logits: Float32Array.of(1, 1, 0, 0),
      bias: Float32Array.of(0, 0, Number.NEGATIVE_INFINITY, 5),
    });
    assert.deepEqual([...ids], [3, 2]);
  });

  it("breaks ties by the lower index", async () => {
    const random = randomFor("ties");
    for (const { name, rule } of RULES) {
      for (let round = 0; round < 6; round++) {
        const experts = pick(random, [2, 5, 64]);
        const topK = between(random, 1, experts);
        const tokens = between(random, 1, 80);
        const levels = Float32Array.from({ length: tokens * experts }, () => random.integer(3));
        await check({ rule, experts, topK, tokens, logits: levels }, name);
      }
    }
    const { ids } = await route({
      rule: { scoring: "softmax", renormalize: false, scale: 1 },
      experts: 4,
      topK: 3,
      tokens: 1,
      logits: Float32Array.of(2, 2, 2, 2),
    });
    assert.deepEqual([...ids], [0, 1, 2]);
  });

  it("takes -Infinity for a masked expert", async () => {
    const masked = Number.NEGATIVE_INFINITY;
    const logits = Float32Array.of(masked, 3, masked, 1);
    for (const { name, rule } of RULES) {
      await check({ rule, experts: 4, topK: 1, tokens: 1, logits }, name);
    }
  });

  it("gives zero weights their sum of zero", async () => {
    const { weights } = await route({
      rule: { scoring: "sigmoid", renormalize: true, scale: 1 },
      experts: 2,
      topK: 2,
      tokens: 1,
      logits: Float32Array.of(-800, -900),
    });
    assert.deepEqual([...weights], [0, 0]);
  });

  it("names the first row without finite weights, whichever worker finds it", async () => {
    const random = randomFor("bad rows");
    const { NEGATIVE_INFINITY, NaN: nan, POSITIVE_INFINITY } = Number;
    for (let round = 0; round < 30; round++) {
      const experts = between(random, 2, 40);
      const tokens = between(random, 1, 700);
      const logits = normal(random, tokens * experts);
      const bad = Array.from({ length: between(random, 1, 5) }, () => random.integer(tokens));
      for (const row of bad) {
        const kind = random.integer(3);
        const at = row * experts + random.integer(experts);
        if (kind === 0) logits[at] = nan;
        else if (kind === 1) logits[at] = POSITIVE_INFINITY;
        else logits.fill(NEGATIVE_INFINITY, row * experts, (row + 1) * experts);
      }
      const rule = randomRule(random, experts, 1);
      await assert.rejects(route({ rule, experts, topK: 1, tokens, logits }), (error) => {
        assert.ok(error instanceof InvalidLogitsError);
        assert.equal(error.row, Math.min(...bad));
        return true;
      });
    }
  });

  it("calls a row invalid whose weights alone are not finite", async () => {
    const base = { experts: 3, topK: 2, tokens: 1 };
    const sparse: RoutingRule = { scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 1 };
    const masked = Number.NEGATIVE_INFINITY;
    // After the only expert that is not masked, there is nothing left to take a softmax of.
    const one = Float32Array.of(masked, 1, masked);
    await assert.rejects(route({ ...base, rule: sparse, logits: one }), InvalidLogitsError);
    const huge: RoutingRule = { scoring: "sigmoid", renormalize: false, scale: 1e39 };
    const some = Float32Array.of(1, 2, 3);
    await assert.rejects(route({ ...base, rule: huge, logits: some }), InvalidLogitsError);
    const plain: RoutingRule = { scoring: "sigmoid", renormalize: false, scale: 1 };
    const bias = Float32Array.of(0, Number.NaN, 0);
    await assert.rejects(route({ ...base, rule: plain, logits: some, bias }), InvalidLogitsError);
  });

  it("refuses rules that make no sense", async () => {
    const plain: RoutingRule = { scoring: "softmax", renormalize: false, scale: 1 };
    const attempt = (rule: object, sizes: object, pattern: RegExp) =>
      assert.rejects(
        route({
          rule: { ...plain, ...rule },
          experts: 8,
          topK: 2,
          tokens: 1,
          logits: new Float32Array(8),
          ...sizes,
        }),
        (error) => error instanceof InvalidArgumentError && pattern.test(error.message),
      );
    const limit = (groups: number, keep: number, score = "max") => ({
      groupLimit: { groups, keep, score },
    });
    await attempt({ scoring: "softmin" }, {}, /rule\.scoring is "softmin"/);
    await attempt({ scoring: "topk-softmax", renormalize: true }, {}, /renormalize/);
    await attempt({ scoring: "topk-sigmoid", ...limit(2, 1) }, {}, /groupLimit/);
    await attempt(limit(3, 1), {}, /8 experts cannot be divided into 3/);
    await attempt(limit(8, 4, "top2-sum"), {}, /top2-sum/);
    await attempt(limit(8, 1), {}, /fewer than topK/);
    await attempt(limit(4, 5), {}, /keep is 5/);
    await attempt(limit(4, 4, "mean"), {}, /score is "mean"/);
    await attempt({ scoring: "sparsemixer" }, {}, /jitter is NaN/);
    await attempt({ scoring: "sparsemixer", jitter: -1 }, {}, /jitter is -1/);
    await attempt({ jitter: 0.1 }, {}, /jitter is set with softmax/);
    await attempt({ scale: Number.NaN }, {}, /scale is NaN/);
    await attempt({}, { topK: 9 }, /topK is 9/);
    await attempt({}, { topK: 0 }, /topK is 0/);
    await attempt({}, { experts: 0 }, /experts is 0/);
    await attempt({}, { mostTokens: 0.5 }, /mostTokens is 0\.5/);
    await attempt({}, { mostTokens: 2 }, /"input"\) has 32 bytes and needs 64/);
    await attempt({}, { experts: 9 }, /"input"\) has 32 bytes and needs 36/);
  });
});
