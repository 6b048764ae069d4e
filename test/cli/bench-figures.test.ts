/** What the benchmark makes of its times: limits that rise, shares of them, differences that say nothing. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ablationTable } from "../../src/cli/ablation/report.ts";
import type { AblationHead, AblationResult, RungResult } from "../../src/cli/ablation/session.ts";
import { beside, type CellResult, type Rate } from "../../src/cli/bench/cell.ts";
import { largerOf, type MachineLimits } from "../../src/cli/bench/machine-limits.ts";
import { checkFits } from "../../src/cli/bench/presets.ts";
import { benchPreset } from "../../src/cli/bench/report.ts";
import type { BenchHead } from "../../src/cli/bench/session.ts";
import { type Timing, timingOf, withinSpread } from "../../src/cli/bench/timing.ts";
import { workOf } from "../../src/cli/bench/work.ts";
import { describeSpec } from "../../src/cli/describe.ts";
import { styleFor } from "../../src/cli/terminal/style.ts";
import type { Device } from "../../src/execution/device.ts";
import { layerSpecOf, presetOf } from "../../src/workload/presets.ts";

const limits: MachineLimits = {
  gflops: { float32: 100, bfloat16: 50 },
  productSize: 1024,
  gigabytesPerSecond: 10,
  memoryTest: "weights read for one row",
};

/** Quartiles at a tenth of the median to either side. */
const wide = (median: number) => timingOf([0.8, 0.9, 1, 1.1, 1.2].map((each) => each * median));
const exact = (median: number) => timingOf([median, median, median]);

test("a batch needs the weights of the experts that it uses, and those of the gate in float32", () => {
  const sizes = { hiddenSize: 1000, intermediateSize: 500, experts: 10, topK: 2 };
  const shape = { ...presetOf("small"), ...sizes };
  const gflop = (2 * 3 * (2 * 1_500_000 + 10_000)) / 1e9;
  assert.deepEqual(workOf(shape, "bfloat16", 3, 4, false), {
    gflop,
    weightBytes: 4 * 1_500_000 * 2 + 10_000 * 4,
  });
  assert.deepEqual(workOf(shape, "bfloat16", 3, 4, true), {
    gflop,
    weightBytes: 4 * 1_500_000 * 1.5 + 10_000 * 4,
  });
});

function cellOf(ours: Timing, theirs: Timing): CellResult {
  const rate = (seconds: Timing) => ({ seconds }) as Rate;
  return beside(limits, {
    preset: "small",
    dtype: "float32",
    tokens: 8,
    routing: "uniform",
    imbalance: 1,
    expertsUsed: 8,
    relativeError: 0,
    gflop: 1,
    weightBytes: 1e8,
    nexus: rate(ours),
    sequential: rate(theirs),
    speedup: theirs.median / ours.median,
  });
}

const linesOf = (cell: CellResult, at: MachineLimits = limits, packWeights = false) => {
  const options = { packWeights };
  const head = { device: { kind: "cpu" }, limits: at, options } as BenchHead;
  const preset = presetOf("small");
  return benchPreset(styleFor(), head, preset, "float32", [beside(at, cell)]);
};

test("a preset has to fit, with the gates and values beside them while its weights are packed", () => {
  const preset = { ...presetOf("small"), hiddenSize: 100, intermediateSize: 10, experts: 2 };
  const of = (limitBytes: number) =>
    ({ memory: () => ({ limitBytes, usedBytes: 50 }) }) as unknown as Device;
  const least = (packed: boolean) => {
    const bytes = 2 * 1000 * (packed ? 8.5 : 6);
    checkFits(of(bytes + 50), preset, "bfloat16", packed);
    assert.throws(() => checkFits(of(bytes + 49), preset, "bfloat16", packed), {
      name: "OutOfDeviceMemoryError",
    });
  };
  least(false);
  least(true);
  assert.throws(() => checkFits(of(2 ** 40), preset, "float32", true), {
    name: "InvalidArgumentError",
    message: /--pack-weights is for bfloat16, and .* preset small are float32\. Add --dtype bf/,
  });
});

test("weights that are packed are called so", () => {
  const cell = cellOf(exact(0.02), exact(0.04));
  assert.match(linesOf(cell, limits, true).join("\n"), /top-2, float32 packed in 12 bits$/m);
  assert.match(linesOf(cell).join("\n"), /top-2, float32$/m);
  const spec = layerSpecOf(presetOf("small"), "bfloat16");
  assert.match(describeSpec(spec, 3 * 2 ** 20, true), /bfloat16 weights packed in 12 bits, 3/);
  assert.match(describeSpec(spec, 3 * 2 ** 20), /bfloat16 weights, 3/);
});

test("of two measurements of a machine the larger figures count", () => {
  const again = { ...limits, gflops: { float32: 90, bfloat16: 60 }, gigabytesPerSecond: 17 };
  const both = { ...limits, gflops: { float32: 100, bfloat16: 60 }, gigabytesPerSecond: 17 };
  assert.deepEqual(largerOf(limits, again), both);
  assert.deepEqual(largerOf(again, limits), both);
});

test("shares follow the limits, and what was measured stays", () => {
  const cell = cellOf(exact(0.02), exact(0.04));
  assert.equal(cell.nexus.shareOfArithmetic, 0.5);
  assert.equal(cell.sequential.shareOfBandwidth, 0.25);
  const twice = { ...limits, gflops: { float32: 200 } };
  const then = beside(twice, cell);
  assert.equal(then.nexus.shareOfArithmetic, 0.25);
  assert.equal(then.nexus.shareOfBandwidth, cell.nexus.shareOfBandwidth);
  assert.deepEqual(then.nexus.seconds, cell.nexus.seconds);
});

test("shares over 100 % are called unreliable, others not", () => {
  const fast = cellOf(exact(0.005), exact(0.01));
  const unreliable = /machine changed speed; shares are unreliable/;
  assert.match(linesOf(fast).join("\n"), unreliable);
  const larger = { ...limits, gflops: { float32: 300 }, gigabytesPerSecond: 30 };
  assert.doesNotMatch(linesOf(fast, larger).join("\n"), unreliable);
  assert.match(linesOf(fast, larger).join("\n"), /300 GFLOP\/s and 30 GB\/s, the most/);
  for (const line of linesOf(fast)) assert.ok([...line].length <= 80, line);
});

test("a difference within the spread is marked, and a larger one not", () => {
  assert.ok(withinSpread(wide(1), exact(1.09)) && withinSpread(exact(1.09), wide(1)));
  assert.ok(!withinSpread(wide(1), exact(1.2)));
  assert.match(
    linesOf(cellOf(wide(0.1), exact(0.105))).join("\n"),
    / ~1\.05x .*~ is a difference/s,
  );
  assert.doesNotMatch(linesOf(cellOf(exact(0.1), exact(0.105))).join("\n"), /~/);
});

test("an ablation says the same of its rungs", () => {
  const rung = (name: RungResult["name"], seconds: Timing, share: number): RungResult => ({
    name,
    streams: 1,
    seconds,
    shareOfLimit: share,
    relativeError: 0,
    tokensPerSecond: 1,
    ...(name !== "loop" && { speedup: 1 / seconds.median }),
    energy: { available: false, reason: "none" },
  });
  const tableOf = (rungs: readonly RungResult[]) =>
    ablationTable(
      styleFor(),
      { device: { kind: "cpu" }, limits } as AblationHead,
      {
        preset: "small",
        dtype: "float32",
        tokens: 8,
        routing: "uniform",
        expertsUsed: 8,
        gflop: 1,
        weightBytes: 1e8,
        singleOperator: false,
        rungs,
        floor: { seconds: 1, limit: "arithmetic" },
      } as AblationResult,
    ).join("\n");
  const noisy = tableOf([rung("loop", wide(1), 0.9), rung("fused", exact(0.95), 1.2)]);
  assert.match(noisy, /~1\.05x .*~ is a difference.*shares are unreliable/s);
  const clear = tableOf([rung("loop", exact(1), 0.5), rung("fused", exact(0.5), 1)]);
  assert.doesNotMatch(clear, /~|unreliable/);
});
