/** `nexus bench --compare`: what is noise and what is not, and both kinds of result files. */

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { evenRounds, timeOf } from "../../src/cli/compare/batches.ts";
import { compare } from "../../src/cli/compare/compare.ts";
import { blockMedians, leastProbability, rankTest, spreadOf } from "../../src/cli/compare/noise.ts";
import type { Results } from "../../src/cli/compare/results.ts";
import { Random } from "../../src/workload/random.ts";
import { cell, contender, exampleResult, timed } from "../bench/example-result.ts";
import { inTemporaryFolder, nexus } from "./nexus.ts";

/** A result with one cell of one contender and these rounds. */
function results(rounds: readonly (readonly number[])[], noise?: number): Results {
  const series = [{ contender: "nexus", batches: 1, rounds }];
  const only = { name: "cell", series, failed: [], ...(noise !== undefined && { noise }) };
  return {
    file: "x.json",
    kind: "peers",
    date: "",
    device: "card",
    version: "a",
    seed: 1,
    packWeights: "false",
    cells: [only],
    failedCells: [],
  };
}

/** Rounds of 20 samples; every round is off by its own share, every sample by another. */
function noisyRounds(random: Random, us: number, ofRound: number, ofSample: number): number[][] {
  const off = (share: number) => 1 + share * (2 * random.uniform() - 1);
  return Array.from({ length: 10 }, () => {
    const round = us * off(ofRound);
    return Array.from({ length: 20 }, () => round * off(ofSample));
  });
}

const only = (a: Results, b: Results) => {
  const [change] = compare(a, b).changes;
  assert.ok(change);
  return change;
};

test("the rank test is exact, also where values are equal", () => {
  // Of the 252 choices of 5 ranks out of 10 the lowest five and the highest five are as far apart.
  assert.ok(Math.abs(rankTest([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) - 2 / 252) < 1e-12);
  assert.equal(leastProbability(5, 5), 2 / 252);
  assert.ok(leastProbability(4, 4) > 0.01);
  // Of 6 choices of 2 ranks out of 4: {1, 2} and {3, 4} are 2 from the expected 5; {1, 3} and {2, 4} are 1.
  assert.ok(Math.abs(rankTest([1, 3], [2, 4]) - 4 / 6) < 1e-12);
  assert.equal(rankTest([7, 7, 7], [7, 7, 7]), 1);
  // Ranks 1, 2.5, 2.5, 4: {1, 2.5} twice and {2.5, 4} twice are 1.5 from 5, {1, 4} and {2.5, 2.5} are none.
  assert.ok(Math.abs(rankTest([1, 2], [2, 3]) - 4 / 6) < 1e-12);
});

test("blocks hold neighbouring samples and never reach across rounds", () => {
  assert.deepEqual(blockMedians([[1, 2, 3]]), [1, 2, 3]);
  const ten = Array.from({ length: 100 }, (_, i) => i);
  assert.deepEqual(blockMedians([ten])[0], 4.5);
  assert.equal(blockMedians([ten]).length, 10);
  // Two rounds, five blocks in each.
  const two = blockMedians([ten, ten.map((value) => value + 1000)]);
  assert.deepEqual(two, [9.5, 29.5, 49.5, 69.5, 89.5, 1009.5, 1029.5, 1049.5, 1069.5, 1089.5]);
  assert.equal(spreadOf([9, 10, 11]), 0.05);
});

test("of many rounds a block has several, so that the rank test stays exact and quick", () => {
  const rounds = (us: number) => Array.from({ length: 600 }, (_, i) => [us + i / 600, us]);
  assert.equal(blockMedians(rounds(1)).length, 20);
  assert.equal(blockMedians(rounds(1).slice(0, 21)).length, 20);
  assert.equal(blockMedians(rounds(1).slice(0, 9)).length, 18);
  // Thirty rounds in each of the blocks.
  const steps = Array.from({ length: 600 }, (_, i) => [i]);
  assert.deepEqual(blockMedians(steps).slice(0, 2), [14.5, 44.5]);
  const began = performance.now();
  const change = only(results(rounds(100)), results(rounds(110)));
  assert.equal(change.verdict, "slower");
  assert.ok(change.probability > 0 && change.probability < 1e-6, `${change.probability}`);
  assert.ok(performance.now() - began < 1000);
  assert.equal(only(results(rounds(100)), results(rounds(100))).probability, 1);
});

test("batches take turns: each has a median, and rounds are compared as if they were alike", () => {
  // Of batch 0: 10, 12, 11, of batch 1: 100, 104; nobody reaches batch 2 of 3.
  const turns = { rounds: [[10, 100], [12], [11, 104]], batches: 3 };
  assert.equal(timeOf(turns), (11 + 102) / 2);
  const even = evenRounds(turns).map((round) => round.map((us) => Number(us.toFixed(2))));
  assert.deepEqual(even, [[51.36, 55.39], [61.64], [56.5, 57.61]]);
  const plain = { rounds: [[1.1, 2.3, 3.7]], batches: 1 };
  assert.deepEqual(evenRounds(plain), plain.rounds);
});

test("a real movement is found, in either direction", () => {
  const random = new Random(1);
  const before = results(noisyRounds(random, 100, 0.005, 0.01));
  const slower = only(before, results(noisyRounds(random, 103, 0.005, 0.01)));
  assert.equal(slower.verdict, "slower");
  assert.ok(Math.abs(slower.change - 0.03) < 0.01, `${slower.change}`);
  assert.equal(slower.noise, 0.01);
  const faster = only(before, results(noisyRounds(random, 97, 0.005, 0.01)));
  assert.equal(faster.verdict, "faster");
  assert.ok(faster.change < -0.02);
});

test("noise is not reported: the same measured two hundred times over", () => {
  const random = new Random(2);
  let moved = 0;
  for (let i = 0; i < 200; i++) {
    const a = results(noisyRounds(random, 100, 0.03, 0.05));
    const b = results(noisyRounds(random, 100, 0.03, 0.05));
    if (only(a, b).verdict !== "unchanged") moved++;
  }
  // At 99 % two of two hundred would be the luck of the draw; the margin on medians leaves fewer.
  assert.ok(moved <= 4, `${moved} of 200`);
});

test("a change within what Nexus differs from itself is noise, however certain", () => {
  const rounds = (us: number) => Array.from({ length: 10 }, () => [us, us, us]);
  assert.equal(only(results(rounds(100)), results(rounds(104))).verdict, "slower");
  assert.equal(only(results(rounds(100), 0.05), results(rounds(104))).verdict, "unchanged");
  assert.equal(only(results(rounds(100)), results(rounds(104), 0.05)).verdict, "unchanged");
  assert.equal(only(results(rounds(100)), results(rounds(100.9))).verdict, "unchanged");
});

test("the noise of a cell is its own and at least that of the median cell", () => {
  const rounds = (us: number) => Array.from({ length: 10 }, () => [us, us, us]);
  const cells = (us: number, noises: readonly number[]): Results => ({
    ...results(rounds(us)),
    cells: noises.flatMap((noise, i) =>
      results(rounds(us), noise).cells.map((each) => ({ ...each, name: `cell ${i}` })),
    ),
  });
  const noiseOf = (noises: readonly number[]) =>
    compare(cells(100, noises), cells(104, [0, 0, 0])).changes.map(({ noise }) => noise);
  assert.deepEqual(noiseOf([0.05, 0.02, 0.001]), [0.05, 0.02, 0.02]);
});

test("few samples leave it open", () => {
  const change = only(results([[100, 101, 102]]), results([[200, 201, 202]]));
  assert.equal(change.verdict, "too few samples");
});

/** Writes two files and compares them. */
async function compareFiles(a: unknown, b: unknown, ...more: string[]) {
  return inTemporaryFolder(async (folder) => {
    const files = [path.join(folder, "a.json"), path.join(folder, "b.json")];
    for (const [i, content] of [a, b].entries()) {
      const text = typeof content === "string" ? content : JSON.stringify(content);
      await writeFile(files[i] as string, text);
    }
    return await nexus(["bench", "--compare", ...files, ...more]);
  });
}

test("results of the benchmark of peers: what moved, what is missing, counts, exit code 0", async () => {
  const where = { shape: "s", tokens: 64, routing: "uniform" };
  const gone = { ...where, tokens: 128 };
  const nexusTwice = [contender("nexus", 100), contender("nexus-again", 100.4)];
  const a = {
    ...exampleResult(),
    cells: [
      cell(where, [...nexusTwice, contender("x", 200), contender("x", 300, "eager")]),
      cell(gone, nexusTwice),
    ],
  };
  const b = {
    ...a,
    commit: "fedcba9",
    device: { name: "NVIDIA H100" },
    seed: 2,
    packWeights: "beside",
    cells: [
      cell(where, [
        contender("nexus", 90),
        contender("nexus-again", 91.8),
        contender("x", 201),
        { name: "x", mode: "eager", failed: "out of memory" },
      ]),
      { ...gone, failed: "the GPU is gone", contenders: [] },
    ],
  };
  const { code, stdout, stderr } = await compareFiles(a, b);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  assert.match(stdout, /Warning +different devices: NVIDIA H200, driver \S+ in A, NVIDIA H100/);
  assert.match(stdout, /different commits: 0123abc in A,\s+fedcba9 in B/);
  assert.match(stdout, /different seeds/);
  assert.match(stdout, /weights kept in different ways, packWeights: false in A,\s+beside in B/);
  // 91.8 against 90 is 2 % of noise in B.
  assert.match(
    stdout,
    /s, 64 tokens, uniform +nexus +100(\.0+)? +90(\.0+)? +-10\.0 % +2\.0 % +faster/,
  );
  assert.doesNotMatch(stdout, /nexus-again/);
  assert.match(stdout, /x \(eager\), only in A \(failed in B: out of memory\)/);
  assert.match(stdout, /s, 128 tokens, uniform, only in A \(failed in B: the GPU is gone\)/);
  assert.match(
    stdout.trimEnd(),
    /\n1 faster, 0 slower, 1 unchanged,\n0 with too few samples to tell, 2 not in both files\.$/,
  );

  const repaired = await compareFiles(b, a);
  assert.match(
    repaired.stdout,
    /s, 128 tokens, uniform, only in B \(failed in A: the GPU is gone\)/,
  );

  const json = JSON.parse((await compareFiles(a, b, "--json")).stdout);
  assert.deepEqual(json.counts, { faster: 1, slower: 0, unchanged: 1, "too few samples": 0 });
  assert.deepEqual(
    json.changes.map((each: { contender: string; verdict: string }) => [
      each.contender,
      each.verdict,
    ]),
    [
      ["nexus", "faster"],
      ["x", "unchanged"],
    ],
  );
});

test("as many samples of the slow batch as there happen to be do not move the time", async () => {
  const where = { shape: "s", tokens: 4, routing: "uniform" };
  const result = (burst: number[]) => {
    const rounds = Array.from({ length: 10 }, () => burst);
    return { ...exampleResult(), cells: [cell(where, [timed("x", rounds)], { batches: 2 })] };
  };
  const files = [result([100, 200]), result([100, 200, 100])] as const;
  const { changes } = JSON.parse((await compareFiles(...files, "--json")).stdout);
  assert.equal(changes[0].a, 150);
  assert.equal(changes[0].b, 150);
  assert.equal(changes[0].verdict, "unchanged");
});

test("a result beside itself: nothing moved", async () => {
  const result = exampleResult();
  const { stdout } = await compareFiles(result, result);
  assert.match(stdout, /Nothing moved beyond the noise\.\n/);
  assert.doesNotMatch(stdout, /Warning/);
  assert.match(stdout, /\n0 faster, 0 slower, \d+ unchanged/);
});

/** What `nexus bench --json` prints, as far as it is read. */
function benchReport(us: number) {
  const rate = (factor: number) => ({ seconds: { samples: Array(50).fill((us * factor) / 1e6) } });
  return {
    nexus: "0.1.0",
    command: "bench",
    date: "2026-11-24",
    seed: 1,
    cpu: "some",
    device: { kind: "cpu", name: "CPU" },
    cells: [
      {
        preset: "small",
        dtype: "float32",
        tokens: 1,
        routing: "uniform",
        nexus: rate(1),
        sequential: rate(2),
      },
    ],
  };
}

test("results of nexus bench: every way to run the layer is compared", async () => {
  const made = await compareFiles(benchReport(100), benchReport(110), "--json");
  const { changes } = JSON.parse(made.stdout);
  assert.equal(changes.length, 2);
  assert.equal(changes[0].cell, "small (float32), 1 token, uniform");
  assert.ok(Math.abs(changes[0].a - 100) < 1e-9 && Math.abs(changes[0].b - 110) < 1e-9);
  assert.equal(changes[0].verdict, "slower");

  const args = ["bench", "--device", "cpu", "--preset", "small", "--tokens", "1", "--repeat", "3"];
  const { stdout } = await nexus([...args, "--json"]);
  const { code, stdout: text } = await compareFiles(stdout, stdout);
  assert.equal(code, 0);
  assert.match(text, /0 faster, 0 slower, 4 unchanged/);
});

const peers = exampleResult();
const broken: readonly (readonly [string, unknown, RegExp])[] = [
  ["no JSON", "{", /a\.json: is not valid JSON/],
  ["no object", "[]", /a\.json: is not a JSON object/],
  ["an object of something else", {}, /neither "format" nor "command"/],
  ["another format", { format: "nexus-peers/9" }, /"nexus-peers\/9".*nexus-peers\/1/],
  ["an ablation", { command: "bench --ablation" }, /"bench --ablation".*nexus bench --json/],
  [
    "no rounds",
    {
      ...peers,
      cells: [
        cell({ shape: "s", tokens: 1, routing: "uniform" }, [{ ...timed("x", []), samples: [1] }]),
      ],
    },
    /"cells\[0\]\.contenders\[0\]/,
  ],
  ["no cells", { ...peers, cells: undefined }, /"cells"/],
  [
    "a time that is none",
    { ...benchReport(1), cells: [{ ...benchReport(1).cells[0], nexus: { seconds: {} } }] },
    /"cells\[0\]\.nexus\.seconds\.samples"/,
  ],
  [
    "a cell twice",
    { ...peers, cells: [peers.cells[0], peers.cells[0]] },
    /holds the cell "qwen3-30b-a3b, 1 token, uniform" twice/,
  ],
  ["the other kind", benchReport(1), /Compare two of a kind/],
];

for (const [what, content, expected] of broken) {
  test(`${what}: one line, exit code 2`, async () => {
    const { code, stdout, stderr } = await compareFiles(content, peers);
    assert.equal(stdout, "");
    assert.match(stderr, /^nexus: [^\n]+\n$/);
    assert.match(stderr, expected);
    assert.equal(code, 2);
  });
}

test("wrong use: one line, exit code 2", async () => {
  for (const [args, expected] of [
    [["--compare"], /argument missing/],
    [["--compare", "a.json"], /two files.*1 given/],
    [["--compare", "a.json", "b.json", "c.json"], /two files.*3 given/],
    [["--compare", "/nowhere/a.json", "/nowhere/b.json"], /\/nowhere\/a\.json/],
    [["--compare", "/", "/"], /not a regular file/],
    [["--ablation", "--compare", "a.json", "b.json"], /--compare.*cannot be used.*--ablation/],
  ] as const) {
    const { code, stdout, stderr } = await nexus(["bench", ...args]);
    assert.equal(stdout, "");
    assert.match(stderr, /^nexus: [^\n]+\n$/);
    assert.match(stderr, expected);
    assert.equal(code, 2);
  }
});
