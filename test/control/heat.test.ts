import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { HEAT_MULTIPLES, HeatScale } from "../../src/control/heat.ts";
import { InvalidArgumentError } from "../../src/errors.ts";

test("an even load is warm throughout, for any number of experts above one", () => {
  for (const experts of [2, 3, 8, 60, 1024]) {
    assert.equal(new HeatScale(experts).classify(1 / experts), "warm");
  }
});

test("a single expert with all tokens is hot", () => {
  assert.equal(new HeatScale(1).classify(1), "hot");
});

test("with two experts, one that has three quarters of the tokens is hot and the other cold", () => {
  const scale = new HeatScale(2);
  assert.equal(scale.classify(0.75), "hot");
  assert.equal(scale.classify(0.25), "cold");
  assert.equal(scale.classify(0.74), "warm");
  // Half as far from the even share, as for any number of experts.
  assert.equal(scale.classify(0.63, "hot"), "hot");
  assert.equal(scale.classify(0.62, "hot"), "warm");
});

test("Zipf's law over 128 experts gives 11 hot and 81 cold ones", () => {
  const scale = new HeatScale(128);
  const weights = Array.from({ length: 128 }, (_, e) => 1 / (e + 1));
  const total = weights.reduce((a, b) => a + b, 0);
  const heats = weights.map((weight) => scale.classify(weight / total));
  assert.equal(heats.filter((heat) => heat === "hot").length, 11);
  assert.equal(heats.filter((heat) => heat === "cold").length, 81);
});

test("entering and leaving have thresholds of their own", () => {
  const scale = new HeatScale(10);
  assert.equal(scale.classify(0.2), "hot");
  assert.equal(scale.classify(0.199), "warm");
  assert.equal(scale.classify(0.151, "hot"), "hot");
  assert.equal(scale.classify(0.149, "hot"), "warm");
  assert.equal(scale.classify(0.05), "cold");
  assert.equal(scale.classify(0.051), "warm");
  assert.equal(scale.classify(0.0749, "cold"), "cold");
  assert.equal(scale.classify(0.0751, "cold"), "warm");
  assert.equal(scale.classify(0.01, "hot"), "cold");
  assert.equal(scale.classify(0.5, "cold"), "hot");
});

test("property: a class, once given to a share, is kept for that share", () => {
  const heats = fc.constantFrom("hot" as const, "warm" as const, "cold" as const);
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 1024 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      heats,
      (experts, share, previous) => {
        const scale = new HeatScale(experts);
        const first = scale.classify(share, previous);
        assert.equal(scale.classify(share, first), first);
      },
    ),
  );
});

test("thresholds out of order are refused, with their values", () => {
  for (const wrong of [
    { hotEnter: 1.5, hotLeave: 1.5 },
    { hotLeave: 0.9 },
    { coldEnter: 0.8 },
    { coldLeave: 1.1 },
    { coldEnter: -0.1 },
    { hotEnter: Number.NaN },
    { hotEnter: Number.POSITIVE_INFINITY },
  ]) {
    assert.throws(() => new HeatScale(8, { ...HEAT_MULTIPLES, ...wrong }), InvalidArgumentError);
  }
  assert.throws(() => new HeatScale(8, { ...HEAT_MULTIPLES, hotLeave: 3 }), /hotLeave 3/);
  new HeatScale(8, { hotEnter: 1.1, hotLeave: 1, coldEnter: 0, coldLeave: 1 });
});
