/** How groups of multiprocessors are shared out. The calls are tried in native-driver.test.ts. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Share,
  shareOut,
  shareOutNearly,
} from "../../../../src/execution/cuda/driver/partitions.ts";
import { between, randomFor } from "../../../support/seed.ts";

const H200 = { groupSize: 8, groups: 15, remainder: 12 };

const share = (first: number, count: number, remainder = false): Share => ({
  first,
  count,
  remainder,
});

test("sizes are rounded up to groups, in order", () => {
  assert.deepEqual(shareOut(H200, [8, 9, 1]), [share(0, 1), share(1, 2), share(3, 1)]);
  assert.deepEqual(shareOut(H200, [120]), [share(0, 15)]);
});

test("the remainder is used only where the groups do not suffice", () => {
  assert.deepEqual(shareOut(H200, [60, 60]), [share(0, 6, true), share(6, 8)]);
  assert.deepEqual(shareOut(H200, [64, 68]), [share(0, 8), share(8, 7, true)]);
  assert.deepEqual(shareOut(H200, [132]), [share(0, 15, true)]);
  // It may be more than is asked for.
  assert.deepEqual(shareOut(H200, [2, 120]), [share(0, 0, true), share(0, 15)]);
});

test("what does not fit is null", () => {
  assert.equal(shareOut(H200, [133]), null);
  assert.equal(shareOut(H200, [66, 66]), null);
  assert.equal(shareOut({ groupSize: 2, groups: 66, remainder: 0 }, [66, 67]), null);
});

test("random sizes: disjoint groups of the cut, enough for each", () => {
  const random = randomFor("partitions");
  for (let round = 0; round < 2000; round++) {
    const split = {
      groupSize: between(random, 1, 16),
      groups: between(random, 1, 70),
      remainder: between(random, 0, 15),
    };
    const sizes = Array.from({ length: between(random, 1, 5) }, () => between(random, 1, 60));
    const shares = shareOut(split, sizes);
    const needed = sizes.reduce((sum, size) => sum + Math.ceil(size / split.groupSize), 0);
    if (shares === null) {
      assert.ok(needed > split.groups, JSON.stringify({ split, sizes }));
      continue;
    }
    let next = 0;
    for (const [i, { first, count, remainder }] of shares.entries()) {
      assert.equal(first, next);
      next = first + count;
      const size = count * split.groupSize + (remainder ? split.remainder : 0);
      assert.ok(size >= (sizes[i] ?? 0));
    }
    assert.ok(next <= split.groups);
    assert.ok(
      shares.filter(({ remainder }) => remainder).length <= (needed > split.groups ? 1 : 0),
    );
  }
});

test("sizes that rounding up would make too many are met as nearly as groups allow", () => {
  const fine = { groupSize: 2, groups: 66, remainder: 0 };
  const got = (sizes: number[]) => shareOutNearly(fine, sizes)?.map(({ count }) => 2 * count);
  assert.equal(shareOut(fine, [83, 17, 16, 16]), null);
  assert.deepEqual(got([83, 17, 16, 16]), [82, 18, 16, 16]);
  // As many partitions as there are groups.
  const coarse = { groupSize: 8, groups: 2, remainder: 0 };
  assert.equal(shareOut(coarse, [9, 7]), null);
  assert.deepEqual(shareOutNearly(coarse, [9, 7]), [share(0, 1), share(1, 1)]);
  assert.deepEqual(got([33, 33, 33, 33]), [32, 32, 34, 34]);
  assert.deepEqual(got([1, 1, 1, 129]), [2, 2, 2, 126]);
  assert.deepEqual(got([83, 49]), [82, 50]);
  assert.equal(got([132, 1]), undefined);
  assert.equal(got(new Array(67).fill(1)), undefined);
});

test("random sizes that fit the device always get partitions near them", () => {
  const random = randomFor("nearly");
  for (let round = 0; round < 2000; round++) {
    const groupSize = between(random, 1, 8);
    const split = { groupSize, groups: between(random, 8, 70), remainder: 0 };
    const sizes: number[] = [];
    let left = groupSize * split.groups;
    while (left > 0 && sizes.length < 8) {
      sizes.push(between(random, 1, left));
      left -= sizes.at(-1) ?? 0;
    }
    const shares = shareOutNearly(split, sizes) ?? [];
    assert.equal(shares.length, sizes.length);
    let next = 0;
    for (const [i, { first, count }] of shares.entries()) {
      assert.equal(first, next);
      next = first + count;
      const off = Math.abs(count * groupSize - (sizes[i] ?? 0));
      // Only what had to give up groups for those of less than one is off by more than one.
      assert.ok(count >= 1 && off < groupSize * sizes.length, JSON.stringify({ split, sizes }));
    }
    assert.ok(next <= split.groups);
  }
});
