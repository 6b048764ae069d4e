/** The generator: its algorithm, its seeds, its distributions. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../src/workload/random.ts";

test("the same seed gives the same numbers, another seed others", () => {
  const draw = (seed: number) =>
    Array.from(
      { length: 8 },
      (
        (r) => () =>
          r.bits()
      )(new Random(seed)),
    );
  assert.deepEqual(draw(7), draw(7));
  assert.notDeepEqual(draw(7), draw(8));
});

test("the generator is xoshiro128**", () => {
  // An independent transcription in BigInt arithmetic, from the state that seed 0 gives.
  const mask = 0xffffffffn;
  const rotl = (x: bigint, k: bigint) => ((x << k) | (x >> (32n - k))) & mask;
  let mixed = 0n;
  const state = Array.from({ length: 4 }, () => {
    mixed = (mixed + 0x9e3779b9n) & mask;
    let z = mixed;
    z = ((z ^ (z >> 16n)) * 0x85ebca6bn) & mask;
    z = ((z ^ (z >> 13n)) * 0xc2b2ae35n) & mask;
    return z ^ (z >> 16n);
  }) as [bigint, bigint, bigint, bigint];
  const random = new Random(0);
  for (let i = 0; i < 1000; i++) {
    const expected = (rotl((state[1] * 5n) & mask, 7n) * 9n) & mask;
    const shifted = (state[1] << 9n) & mask;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotl(state[3], 11n);
    assert.equal(random.bits(), Number(expected), `number ${i}`);
  }
});

test("a fork does not depend on what was drawn before", () => {
  const used = new Random(3);
  for (let i = 0; i < 100; i++) used.bits();
  assert.equal(used.fork("a").bits(), new Random(3).fork("a").bits());
  assert.notEqual(new Random(3).fork("a").bits(), new Random(3).fork("b").bits());
  assert.notEqual(new Random(3).fork("a").bits(), new Random(4).fork("a").bits());
});

test("distributions have their mean and variance", () => {
  const random = new Random(11);
  const n = 200_000;
  const moments = (values: ArrayLike<number>) => {
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < n; i++) {
      sum += values[i] as number;
      squares += (values[i] as number) ** 2;
    }
    return { mean: sum / n, variance: squares / n - (sum / n) ** 2 };
  };
  // Five standard errors of a mean of n draws, at most 0.015 for these distributions.
  const near = (actual: number, expected: number) =>
    assert.ok(Math.abs(actual - expected) < 0.02, `${actual} is not near ${expected}`);
  const uniform = moments(Array.from({ length: n }, () => random.uniform()));
  near(uniform.mean, 0.5);
  near(uniform.variance, 1 / 12);
  const normal = moments(random.fillNormal(new Float32Array(n)));
  near(normal.mean, 0);
  near(normal.variance, 1);
  const gumbel = moments(Array.from({ length: n }, () => random.gumbel()));
  near(gumbel.mean, 0.5772);
  near(gumbel.variance / (Math.PI ** 2 / 6), 1);
});

test("uniform numbers never reach 0 or 1, whole numbers stay in range", () => {
  const random = new Random(5);
  const seen = new Set<number>();
  for (let i = 0; i < 20_000; i++) {
    const value = random.uniform();
    assert.ok(value > 0 && value < 1);
    seen.add(random.integer(7));
  }
  assert.deepEqual([...seen].sort(), [0, 1, 2, 3, 4, 5, 6]);
});

test("an odd number of normal draws fills the array and no more", () => {
  const out = new Random(1).fillNormal(new Float32Array(5));
  assert.equal(out.length, 5);
  assert.ok(out.every((value) => Number.isFinite(value) && value !== 0));
});

test("a permutation holds every number once", () => {
  const order = new Random(9).permutation(100);
  assert.deepEqual(
    [...order].sort((a, b) => a - b),
    Array.from({ length: 100 }, (_, i) => i),
  );
  assert.notDeepEqual(order, new Random(10).permutation(100));
});
