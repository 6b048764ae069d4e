/** `nexus bench --ablation` from the outside, on a small layer; that figures agree, not what they are. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { nexus } from "./nexus.ts";

const TINY = [
  "bench",
  "--ablation",
  "--device",
  "cpu",
  "--preset",
  "small",
  "--tokens",
  "1,16",
  "--repeat",
  "3",
];
const NAMES = ["loop", "fused", "graph", "slices", "streams"];

test("an ablation as JSON: every way with its samples, figures that agree with them", async () => {
  const { code, stdout, stderr } = await nexus([...TINY, "--streams", "4", "--json"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  const report = JSON.parse(stdout);
  assert.equal(report.command, "bench --ablation");
  assert.deepEqual(
    report.results.map((each: { tokens: number; routing: string }) => [each.tokens, each.routing]),
    [
      [1, "zipf:1"],
      [16, "zipf:1"],
    ],
  );
  for (const { tokens, gflop, weightBytes, floor, rungs } of report.results) {
    const arithmetic = gflop / report.limits.gflops.float32;
    const bandwidth = weightBytes / report.limits.gigabytesPerSecond / 1e9;
    assert.ok(Math.abs(floor.seconds - Math.max(arithmetic, bandwidth)) < 1e-12);
    assert.equal(floor.limit, arithmetic > bandwidth ? "arithmetic" : "bandwidth");
    assert.deepEqual(
      rungs.map((rung: { name: string }) => rung.name),
      NAMES,
    );
    for (const [i, rung] of rungs.entries()) {
      const { samples, median } = rung.seconds;
      assert.equal(samples.length, 3);
      assert.equal(median, [...samples].sort((a, b) => a - b)[1]);
      assert.ok(Math.abs(rung.tokensPerSecond * median - tokens) < 1e-6);
      assert.ok(Math.abs(rung.shareOfLimit * median - floor.seconds) < 1e-12);
      assert.ok(rung.relativeError <= 1e-5);
      assert.ok(rung.energy.available ? rung.energy.joules > 0 : rung.energy.reason.length > 0);
      assert.equal(rung.deviceSeconds, undefined);
      if (i === 0) assert.equal(rung.speedup, undefined);
      else assert.ok(Math.abs(rung.speedup * median - rungs[i - 1].seconds.median) < 1e-12);
    }
    assert.equal(rungs[0].relativeError, 0);
    assert.ok(rungs[3].streams >= 1 && rungs[3].streams <= 3);
    assert.equal(rungs[4].streams, 4);
  }
});

test("an ablation for people: 80 columns, every way, losses shown as such", async () => {
  const { code, stdout, stderr } = await nexus([...TINY, "--routing", "uniform"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  for (const line of stdout.split("\n")) assert.ok([...line].length <= 80, line);
  assert.match(stdout, /^small, float32: 1 token, uniform$/m);
  assert.match(stdout, /^small, float32: 16 tokens, uniform$/m);
  assert.match(stdout, /at the measured limits a step takes at least\s+[\d.,]+ us by/);
  assert.match(stdout, /^ {2}loop +1 +[\d.,]+ +[\d.,]+ +(-|[\d.,]+) +[\d.]+ %$/m);
  for (const name of NAMES.slice(1)) {
    const row = new RegExp(`^ {2}\\+ ${name} +\\d+ +[\\d.,]+ +~?\\d+\\.\\d\\dx +[\\d.,]+ `, "m");
    assert.match(stdout, row);
  }
});
