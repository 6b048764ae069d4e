/** `nexus bench` from the outside, on the smallest cells; that figures agree, not what they are. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { nexus } from "./nexus.ts";

const TINY = ["bench", "--device", "cpu", "--preset", "small", "--tokens", "1,8", "--repeat", "3"];

test("a small benchmark as JSON: every cell with its samples, figures that agree with them", async () => {
  const routing = ["--routing", "uniform", "--routing", "zipf:1.2"];
  const { code, stdout, stderr } = await nexus([...TINY, ...routing, "--seed", "9", "--json"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  const report = JSON.parse(stdout);
  assert.equal(report.command, "bench");
  assert.equal(report.seed, 9);
  assert.equal(report.node, process.version);
  assert.ok(report.cpu.length > 0);
  assert.ok(Math.abs(Date.parse(report.date) - Date.now()) < 600_000);
  assert.deepEqual(Object.keys(report.limits.gflops), ["float32"]);
  assert.ok(report.limits.gflops.float32 > 0 && report.limits.gigabytesPerSecond > 0);
  assert.equal(report.limits.productSize, 1024);
  assert.equal(report.limits.memoryTest, "weights read for one row");
  assert.deepEqual(report.options, {
    streams: "default",
    policy: "default",
    packWeights: false,
    effort: { repeat: 3 },
  });
  assert.deepEqual(
    report.cells.map((cell: { tokens: number; routing: string }) => [cell.tokens, cell.routing]),
    [
      [1, "uniform"],
      [1, "zipf:1.2"],
      [8, "uniform"],
      [8, "zipf:1.2"],
    ],
  );
  for (const cell of report.cells) {
    assert.equal(cell.preset, "small");
    assert.equal(cell.dtype, "float32");
    assert.ok(cell.relativeError <= 1e-5);
    assert.ok(cell.imbalance >= 1 && cell.imbalance <= 8);
    assert.ok(cell.expertsUsed >= 2 && cell.expertsUsed <= 8);
    // Two experts of three 512 x 1024 products and a 512 x 8 gate for each token.
    assert.equal(cell.gflop, (2 * cell.tokens * (2 * 3 * 512 * 1024 + 512 * 8)) / 1e9);
    const bytes = cell.expertsUsed * 3 * 512 * 1024 * 4 + 512 * 8 * 4;
    assert.ok(Math.abs(cell.weightBytes / bytes - 1) < 1e-9);
    for (const rate of [cell.nexus, cell.sequential]) {
      const { samples, median, lowerQuartile, upperQuartile } = rate.seconds;
      assert.equal(samples.length, 3);
      assert.equal(median, [...samples].sort((a, b) => a - b)[1]);
      assert.ok(lowerQuartile <= median && median <= upperQuartile);
      assert.ok(Math.abs(rate.tokensPerSecond * median - cell.tokens) < 1e-6);
      assert.ok(Math.abs(rate.gflops * median - cell.gflop) < 1e-9);
      const share = rate.gflops / report.limits.gflops.float32;
      assert.ok(Math.abs(rate.shareOfArithmetic - share) < 1e-9);
    }
    assert.equal(cell.graph, undefined, "the CPU device has no clock of its own");
    const speedup = cell.sequential.seconds.median / cell.nexus.seconds.median;
    assert.ok(Math.abs(cell.speedup - speedup) < 1e-9);
  }
});

test("a small benchmark for people: 80 columns, both ways, no progress bar in a pipe", async () => {
  const flags = ["--routing", "zipf:1.0", "--dtype", "bfloat16", "--streams", "2"];
  const { code, stdout, stderr } = await nexus([...TINY, ...flags, "--policy", "proportional"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  assert.ok(!stdout.includes("\u001b"));
  for (const line of stdout.split("\n")) assert.ok([...line].length <= 80, line);
  assert.match(stdout, /^Limits +measured here: [\d.,]+ GFLOP\/s in bfloat16/m);
  assert.match(stdout, /^small: hidden 512, intermediate 1024, 8 experts, top-2, bfloat16$/m);
  assert.match(stdout, / 1 +zipf:1 +[\d.]+ +nexus +[\d.]+ +±\d+ % +[\d.,]+ +[\d.]+ +[\d.]+$/m);
  assert.match(stdout, / loop +[\d.]+/);
  assert.match(stdout, /\d\.\d\dx +of limit +[\d.]+ % +[\d.]+ %$/m);
});
