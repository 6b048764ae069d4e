import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { apportion, type Claim } from "../../../src/control/slices/apportion.ts";

const claim = (weight: number, rest: Partial<Claim> = {}): Claim => ({
  weight,
  floor: 0,
  priority: 0,
  ...rest,
});

test("largest remainder: the worked example of five parties and ten seats", () => {
  const votes = [47_000, 16_000, 15_900, 12_000, 6_000, 3_100];
  assert.deepEqual(
    apportion(
      10,
      votes.map((weight) => claim(weight)),
    ),
    [5, 2, 1, 1, 1, 0],
  );
});

test("equal remainders go to the first", () => {
  assert.deepEqual(apportion(4, [claim(1), claim(1), claim(1)]), [2, 1, 1]);
});

test("floors are paid for by the lowest priority, down to its own floor, then by the next", () => {
  const claims = [
    claim(10, { priority: 3 }),
    claim(5, { priority: 1, floor: 3 }),
    claim(5, { priority: 2 }),
    claim(0, { priority: 4, floor: 6 }),
  ];
  assert.deepEqual(apportion(20, claims), [10, 3, 1, 6]);
});

test("targets come before weights, and give by priority when they do not fit", () => {
  assert.deepEqual(
    apportion(10, [claim(1, { target: 4, priority: 2 }), claim(1), claim(1)]),
    [4, 3, 3],
  );
  assert.deepEqual(
    apportion(10, [
      claim(1, { target: 8, priority: 2, floor: 1 }),
      claim(1, { target: 6, priority: 1, floor: 1 }),
    ]),
    [8, 2],
  );
});

test("of equal priorities the one listed last gives first", () => {
  const claims = [claim(1, { target: 6 }), claim(1, { target: 6 })];
  assert.deepEqual(apportion(10, claims), [6, 4]);
});

test("what nobody weighs stays free", () => {
  assert.deepEqual(apportion(10, [claim(0, { floor: 1 }), claim(1, { target: 3 })]), [1, 3]);
});

test("property: floors are met, nothing is exceeded, nobody below its due while a lower one has slack", () => {
  const claims = fc.array(
    fc.record({
      weight: fc.oneof(fc.constant(0), fc.double({ min: 1e-6, max: 1e6, noNaN: true })),
      floor: fc.integer({ min: 0, max: 20 }),
      target: fc.option(fc.integer({ min: 0, max: 200 }), { nil: undefined }),
      priority: fc.integer({ min: 0, max: 3 }),
    }),
    { minLength: 1, maxLength: 6 },
  );
  fc.assert(
    fc.property(claims, fc.integer({ min: 0, max: 500 }), (all, room) => {
      const total = room + all.reduce((sum, { floor }) => sum + floor, 0);
      const pieces = apportion(total, all);
      const sum = pieces.reduce((a, b) => a + b, 0);
      assert.ok(sum <= total);
      if (all.some(({ weight, target }) => weight > 0 && target === undefined)) {
        assert.equal(sum, total);
      }
      all.forEach(({ floor, target, priority }, i) => {
        const got = pieces[i] as number;
        assert.ok(Number.isInteger(got) && got >= floor);
        if (target === undefined || got >= target) return;
        all.forEach((other, j) => {
          if (other.priority < priority) assert.equal(pieces[j], other.floor);
        });
      });
    }),
  );
});
