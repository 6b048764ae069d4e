/** Popularity of experts, and logits that realise it. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { InvalidArgumentError } from "../../src/errors.ts";
import { drawExperts, makeLogits } from "../../src/workload/logits.ts";
import { ExpertPopularity, formatSkew, parseSkew } from "../../src/workload/popularity.ts";
import { Random } from "../../src/workload/random.ts";

test("Zipf probabilities fall by rank and add up to 1", () => {
  const exponent = 1.3;
  const popularity = ExpertPopularity.draw({ kind: "zipf", exponent }, 40, new Random(2));
  const byRank = popularity.ranking.map((expert) => popularity.probabilities[expert] as number);
  byRank.forEach((probability, i) => {
    const expected = (byRank[0] as number) * (i + 1) ** -exponent;
    assert.ok(Math.abs(probability - expected) < 1e-12, `rank ${i + 1}`);
  });
  const sum = byRank.reduce((total, each) => total + each, 0);
  assert.ok(Math.abs(sum - 1) < 1e-12);
});

test("uniform popularity is the same for all", () => {
  const { probabilities } = ExpertPopularity.draw({ kind: "uniform" }, 6, new Random(2));
  for (const each of probabilities) assert.ok(Math.abs(each - 1 / 6) < 1e-12);
});

test("moving the hot set makes the second half of the ranking the first", () => {
  const skew = { kind: "zipf", exponent: 1 } as const;
  for (const experts of [1, 2, 7, 32]) {
    const before = ExpertPopularity.draw(skew, experts, new Random(4));
    const after = before.moved();
    const half = Math.floor(experts / 2);
    assert.deepEqual(after.ranking, [
      ...before.ranking.slice(half),
      ...before.ranking.slice(0, half),
    ]);
    assert.deepEqual([...after.probabilities].sort(), [...before.probabilities].sort());
  }
});

test("logits realise the popularity: the best expert is a draw from it", () => {
  const seed = 21;
  const tokens = 40_000;
  const popularity = ExpertPopularity.draw({ kind: "zipf", exponent: 1 }, 12, new Random(seed));
  const logits = makeLogits(popularity, tokens, new Random(seed));
  assert.deepEqual(logits.shape, [tokens, 12]);
  const counts = new Array<number>(12).fill(0);
  for (let token = 0; token < tokens; token++) {
    const row = logits.data.subarray(token * 12, (token + 1) * 12);
    const best = row.indexOf(Math.max(...row));
    counts[best] = (counts[best] as number) + 1;
  }
  popularity.probabilities.forEach((p, expert) => {
    const deviation = Math.sqrt(tokens * p * (1 - p));
    const off = Math.abs((counts[expert] as number) - tokens * p);
    assert.ok(
      off < 5 * deviation,
      `seed ${seed}: expert ${expert} is off by ${off / deviation} sigma`,
    );
  });
});

test("drawn experts are distinct, best first, and follow the popularity", () => {
  const popularity = ExpertPopularity.draw({ kind: "zipf", exponent: 1 }, 16, new Random(3));
  const tokens = 5000;
  const drawn = drawExperts(popularity, tokens, 4, new Random(8));
  const counts = new Array<number>(16).fill(0);
  for (let token = 0; token < tokens; token++) {
    const its = drawn.subarray(token * 4, token * 4 + 4);
    assert.equal(new Set(its).size, 4);
    for (const expert of its) counts[expert] = (counts[expert] as number) + 1;
  }
  // Without replacement the skew is flatter than the popularity, but the order of ranks far apart stays.
  const [first, , , fourth] = popularity.ranking as [number, number, number, number];
  const last = popularity.ranking.at(-1) as number;
  assert.ok((counts[first] as number) > (counts[fourth] as number));
  assert.ok((counts[fourth] as number) > (counts[last] as number));
});

test("drawing again from the same seed gives the same experts", () => {
  const popularity = ExpertPopularity.draw({ kind: "uniform" }, 16, new Random(3));
  const draw = (seed: number) => drawExperts(popularity, 50, 2, new Random(seed));
  assert.deepEqual(draw(1), draw(1));
  assert.notDeepEqual(draw(1), draw(2));
});

test("routing is read and written alike", () => {
  for (const text of ["uniform", "zipf:1", "zipf:0.5", "zipf:0"]) {
    assert.equal(formatSkew(parseSkew(text)), text);
  }
  assert.deepEqual(parseSkew("zipf:1.0"), { kind: "zipf", exponent: 1 });
});

for (const text of [
  "",
  "zipf",
  "zipf:",
  "zipf:-1",
  "zipf:x",
  "zipf:1:2",
  "zipf:Infinity",
  "Uniform",
]) {
  test(`"${text}" is refused as a routing`, () => {
    assert.throws(
      () => parseSkew(text),
      (error) => error instanceof InvalidArgumentError && error.message.includes(`"${text}"`),
    );
  });
}
