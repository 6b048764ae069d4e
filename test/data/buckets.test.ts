/** Buckets as properties: whatever the routing, the tables are consistent with the ids they came from. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { Buckets } from "../../src/data/buckets.ts";
import { Router } from "../../src/data/router.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { Random } from "../../src/workload/random.ts";
import { openCpu } from "../support/device.ts";
import { SEED } from "../support/seed.ts";

const device = await openCpu(2);
after(() => device.close());

/** A routed batch: random sizes, and logits that favour some experts so that buckets fill unevenly. */
const batches = fc
  .record({
    experts: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 200 })),
    tokens: fc.integer({ min: 0, max: 150 }),
    choices: fc.integer({ min: 1, max: 32 }),
    skew: fc.constantFrom(0, 1, 5),
    capacityFactor: fc.option(
      fc.oneof(
        fc.constantFrom(0.01, 0.5, 1, 1.25, 1000),
        fc.double({ min: 0.05, max: 3, noNaN: true }),
      ),
      { nil: undefined },
    ),
    seed: fc.integer(),
  })
  .map(({ choices, ...rest }) => ({ ...rest, topK: Math.min(choices, rest.experts) }));

type Batch = typeof batches extends fc.Arbitrary<infer T> ? T : never;

async function bucketsOf({ experts, tokens, topK, skew, capacityFactor, seed }: Batch) {
  const random = new Random(seed);
  const popularity = random.fillNormal(new Float32Array(experts), skew);
  const logits = random
    .fillNormal(new Float32Array(tokens * experts))
    .map((x, i) => x + (popularity[i % experts] as number));
  using router = new Router({
    topK,
    device,
    ...(capacityFactor !== undefined && { capacityFactor }),
  });
  return await router.route(
    { data: new Float32Array(tokens * 3), shape: [tokens, 3] },
    { data: logits, shape: [tokens, experts] },
  );
}

function property(numRuns: number, check: (buckets: Buckets, batch: Batch) => void) {
  return fc.assert(
    fc.asyncProperty(batches, async (batch) => check(await bucketsOf(batch), batch)),
    { seed: SEED, numRuns },
  );
}

test("the k experts of a token differ, and ids are in range", () =>
  property(60, ({ ids, topK, tokens }, { experts }) => {
    for (let t = 0; t < tokens; t++) {
      const its = ids.subarray(t * topK, (t + 1) * topK);
      assert.equal(new Set(its).size, topK);
      for (const id of its) assert.ok(id >= 0 && id < experts);
    }
  }));

test("counts add up to T * k, and offsets follow from counts and capacity", () =>
  property(100, (buckets, { experts, tokens, topK, capacityFactor }) => {
    assert.equal(buckets.tokens, tokens);
    assert.equal(
      buckets.counts.reduce((a, b) => a + b, 0),
      tokens * topK,
    );
    const limit = Math.ceil(
      ((capacityFactor ?? Number.POSITIVE_INFINITY) * tokens * topK) / experts,
    );
    let row = 0;
    for (let e = 0; e < experts; e++) {
      assert.equal(buckets.offsets[e], row);
      row += tokens === 0 ? 0 : Math.min(buckets.counts[e] as number, limit);
    }
    assert.equal(buckets.offsets[experts], row);
    assert.equal(buckets.rows, row);
    assert.equal(buckets.order.length, row);
  }));

test("order is a permutation of the kept slots, ascending within an expert; inverse inverts it", () =>
  property(100, ({ order, inverse, offsets, ids, rows, dropped }, { experts, tokens, topK }) => {
    assert.equal(inverse.length, tokens * topK);
    order.forEach((slot, row) => {
      assert.equal(inverse[slot], row);
    });
    for (let e = 0; e < experts; e++) {
      const slots = order.subarray(offsets[e], offsets[e + 1]);
      slots.forEach((slot, i) => {
        assert.equal(ids[slot], e);
        assert.ok(i === 0 || slot > (slots[i - 1] as number));
      });
    }
    const kept = inverse.filter((row) => row >= 0);
    assert.equal(kept.length, rows);
    assert.equal(new Set(kept).size, rows);
    assert.equal(rows + dropped.length, tokens * topK);
  }));

test("capacity drops the later slots of an expert, no others, and reports each", () =>
  property(100, ({ ids, inverse, dropped }, { experts, tokens, topK, capacityFactor }) => {
    const limit = Math.ceil(
      ((capacityFactor ?? Number.POSITIVE_INFINITY) * tokens * topK) / experts,
    );
    const taken = new Int32Array(experts);
    const expected: unknown[] = [];
    ids.forEach((expert, slot) => {
      const before = taken[expert] as number;
      taken[expert] = before + 1;
      const fits = before < limit;
      assert.equal((inverse[slot] as number) >= 0, fits, `slot ${slot}`);
      if (!fits) expected.push({ token: Math.floor(slot / topK), choice: slot % topK, expert });
    });
    assert.deepEqual(dropped, expected);
  }));

test("tokensOf lists the tokens an expert computes, ascending", () =>
  property(40, (buckets, { experts, topK }) => {
    for (let e = 0; e < experts; e++) {
      const expected = Array.from(buckets.ids.keys())
        .filter((slot) => buckets.ids[slot] === e && (buckets.inverse[slot] as number) >= 0)
        .map((slot) => Math.floor(slot / topK));
      assert.deepEqual(Array.from(buckets.tokensOf(e)), expected);
    }
  }));

test("a batch by hand", () => {
  const buckets = new Buckets({
    hidden: { dtype: "float32", shape: [2, 1], data: Float32Array.of(1, 2) },
    experts: 3,
    topK: 2,
    ids: Int32Array.of(2, 0, 2, 1),
    weights: Float32Array.of(0.7, 0.3, 0.6, 0.4),
    counts: Int32Array.of(1, 1, 2),
    offsets: Int32Array.of(0, 1, 2, 3),
    order: Int32Array.of(1, 3, 0),
    inverse: Int32Array.of(2, 0, -1, 1),
    capacityFactor: 0.5,
  });
  assert.equal(buckets.tokens, 2);
  assert.equal(buckets.rows, 3);
  assert.deepEqual(buckets.tokensOf(2), Int32Array.of(0));
  for (const expert of [3, 99, -1, 1.5, Number.NaN, "1", undefined] as number[]) {
    assert.throws(() => buckets.tokensOf(expert), InvalidArgumentError, String(expert));
  }
  assert.throws(() => buckets.tokensOf(99), /no expert 99.*0 to 2/);
  assert.deepEqual(buckets.dropped, [{ token: 1, choice: 0, expert: 2 }]);
});
