/**
 * The report on the benchmark of peers, from made-up results with known medians: figures,
 * what counts as lost, bars, how parts are joined, and that charts and page are well formed.
 * Needs bench/report/, which is not compiled; where there is only compiled code it is skipped.
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { inTemporaryFolder } from "../cli/nexus.ts";
import {
  cell,
  contender,
  type ExampleCell,
  type ExampleContender,
  exampleLoops,
  exampleResult,
  timed,
} from "./example-result.ts";

const folder = fileURLToPath(new URL("../../../bench/report/", import.meta.url));
const main = path.join(folder, "main.mjs");

/** One of the report's modules; they are plain JavaScript. */
// biome-ignore lint/suspicious/noExplicitAny: they have no types.
const load = (name: string): Promise<any> => import(new URL(name, `file://${folder}`).href);

const QWEN = "qwen3-30b-a3b";
const at = (tokens: number, routing = "uniform", shape = QWEN) => ({ shape, tokens, routing });

async function figuresOf(cells: ExampleCell[], more: object = {}) {
  const { merge } = await load("merge.mjs");
  const { figuresOf } = await load("figures.mjs");
  return figuresOf(merge([{ ...exampleResult(), cells, ...more }]));
}

async function barsOf(cells: ExampleCell[], more: object = {}) {
  const { barsOf } = await load("bars.mjs");
  const bars: { bar: string; met?: boolean; figure: string }[] = barsOf(
    await figuresOf(cells, more),
  );
  return (text: string) => {
    const found = bars.find(({ bar }) => bar.includes(text));
    assert.ok(found, text);
    return found;
  };
}

/** What else a report may hold: an ablation, bytes moved, and routing that drifts. */
const { device } = exampleResult();
const moved = {
  fused: { dramBytes: 2000, l2Bytes: 4000 },
  unfused: { dramBytes: 6000, l2Bytes: 8000 },
  ...{ dramRatio: 3, l2Ratio: 2 },
};
const BESIDE = [
  {
    ...{ command: "bench --ablation", device },
    results: [
      {
        ...{ preset: QWEN, tokens: 64, routing: "zipf:1" },
        rungs: [
          { name: "loop", seconds: { samples: [0.024] }, energy: { available: false } },
          {
            ...{ name: "graph", seconds: { samples: [0.0003] }, speedup: 80 },
            deviceSeconds: { samples: [0.00029] },
            energy: { available: true, tokensPerJoule: 356 },
          },
        ],
      },
    ],
  },
  {
    ...{ format: "nexus-traffic/1", device },
    rows: [{ experts: 128, topK: 8, tokens: 512, ...moved, choose: moved, withTidy: moved }],
  },
  {
    ...{ format: "nexus-drift/1", device, preset: QWEN, tokens: 64 },
    ...{ steps: 400, changeEvery: 100, rounds: 3 },
    forms: [
      {
        ...{ name: "adaptive", stepUs: { median: 300, p99: 400 }, tokensPerSecond: 1000 },
        ...{ afterChangeUs: { median: 50 }, plans: 3, plansChanged: 1, captures: 2 },
        joulesPerStep: 0.12,
      },
    ],
  },
];

const close = (actual: number, expected: number) =>
  assert.ok(Math.abs(actual / expected - 1) < 1e-9, `${actual} is not ${expected}`);

describe("report", { skip: existsSync(main) ? false : "no bench/report/ here" }, () => {
  it("medians, spread and geometric mean", async () => {
    const { median, spread, geometricMean } = await load("statistics.mjs");
    assert.equal(median([4, 1, 3, 2]), 2.5);
    // Deciles of 0 to 10 are 1 and 9, the median 5.
    close(spread([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), 8 / 5);
    close(geometricMean([2, 0.5, 4]), 4 ** (1 / 3));
  });

  it("a time is the mean of the batches' medians: bursts begin with the first batch", async () => {
    const { timesOf } = await load("batches.mjs");
    // Of batch 0: 10, 12, 11, of batch 1: 100, 104, of batch 2: 40.
    const rounds = [
      [10, 100, 40, 12],
      [11, 104],
    ];
    const times = timesOf({ samples: rounds.flat(), rounds }, 3);
    close(times.us, (11 + 102 + 40) / 3);
    const shares = [10 / 11, 12 / 11, 1, 100 / 102, 104 / 102, 1];
    assert.deepEqual(times.relative, shares);
    // Nobody reaches a fourth batch.
    const samples = [10, 100, 40];
    close(timesOf({ samples }, 4).us, 50);
    close(timesOf({ samples }).us, 40);

    const { cells } = await figuresOf([
      cell(at(1), [timed("nexus", rounds), timed("x", [[20, 200, 80]])], {
        batches: 3,
        limit: timed("cublas", [[5, 1, 9]]) as { name: string; samples: number[] },
      }),
    ]);
    close(cells[0].nexus.us, 51);
    close(cells[0].speedup, 100 / 51);
    // The limit is of a single graph.
    close(cells[0].productsUs, 5);
  });

  it("speed-up is over the fastest peer, in whichever mode, and not over Nexus itself", async () => {
    const { cells, fastest, overBestPeer, overCommonPeer } = await figuresOf([
      cell(at(1), [
        ...[contender("nexus", 100), contender("nexus-again", 96), contender("vllm-schedule", 150)],
        ...[contender("x", 180), contender("x", 120, "eager")],
      ]),
      cell(at(4), [contender("nexus", 100), contender("vllm-schedule", 300)]),
    ]);
    assert.equal(cells[0].bestPeer.label, "x (eager)");
    // Nexus's two times are one figure, and what they differ by is the noise.
    close(cells[0].nexus.us, 98);
    close(cells[0].speedup, 120 / 98);
    close(cells[0].noise, 0.04);
    assert.deepEqual(
      cells[0].entries.map(({ label }: { label: string }) => label),
      ["nexus", "vllm-schedule", "x", "x (eager)"],
    );
    close(cells[1].speedup, 3);
    assert.equal(cells[1].noise, undefined);
    assert.equal(fastest.length, 2);
    close(overBestPeer, Math.sqrt((120 / 98) * 3));
    close(overCommonPeer, Math.sqrt((150 / 98) * 3));
  });

  it("a peer beats Nexus beyond the noise of the cell, which is never less than 1 %", async () => {
    const nexus = (again: number) => [contender("nexus", 100), contender("nexus-again", again)];
    const { lost, fastest, clearlyFastest } = await figuresOf([
      cell(at(1), [...nexus(100), contender("x", 99.5)]),
      cell(at(2), [...nexus(100), contender("x", 98), contender("y", 97), contender("z", 101)]),
      cell(at(4), [...nexus(103), contender("x", 99)]),
      cell(at(8), [...nexus(100), contender("x", 100.5)]),
      cell(at(16), [...nexus(100), contender("x", 110)]),
    ]);
    assert.equal(lost.length, 1);
    assert.equal(lost[0].tokens, 2);
    assert.deepEqual(
      lost[0].beatenBy.map(({ name }: { name: string }) => name),
      ["y", "x"],
    );
    assert.equal(fastest.length, 2);
    assert.equal(clearlyFastest.length, 1);
  });

  it("the roofline is the longer of reading and computing", async () => {
    const { cells } = await figuresOf([
      cell(at(1), [contender("nexus", 500)], { weightBytes: 4.8e8, gflop: 1 }),
      cell(at(4), [contender("nexus", 500)], { weightBytes: 4.8e8, gflop: 197.8 }),
    ]);
    // 0.48 GB at 4.8 TB/s; 197.8 GFLOP at 989 TFLOP/s.
    assert.equal(cells[0].roofline.by, "bandwidth");
    close(cells[0].roofline.us, 100);
    close(cells[0].reachable.us, 4.8e8 / 4.2e6);
    assert.equal(cells[1].roofline.by, "arithmetic");
    close(cells[1].roofline.us, 200);
  });

  it("the data sheet's arithmetic rate is the result's, or what was measured where nobody knows it", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const of = (name: string, dataSheetTFlops?: number | null) => {
      const { dataSheetTFlops: _, ...limits } = whole.limits;
      return merge([
        {
          ...{ ...whole, device: { ...whole.device, name } },
          limits: { ...limits, ...(dataSheetTFlops !== undefined && { dataSheetTFlops }) },
        },
      ]);
    };
    assert.equal(of("NVIDIA A100-SXM4-80GB", 312).limits.dataSheetTFlops, 312);
    assert.equal(of("NVIDIA H100 80GB HBM3").cells[0].limits.dataSheetTFlops, 989);
    assert.deepEqual(of("NVIDIA H200", null).warnings, []);
    const unknown = of("NVIDIA A100-SXM4-80GB", null);
    assert.equal(unknown.limits.dataSheetTFlops, 780);
    assert.match(unknown.warnings[0], /arithmetic rate of this card's data sheet is not known/);
  });

  it("bars: met and missed, with the figure and the card", async () => {
    const vllm = (us: number) => contender("vllm-schedule", us);
    const bar = await barsOf([
      cell(at(1), [contender("nexus", 29), vllm(40)]),
      cell(at(256), [contender("nexus", 100), vllm(90)]),
      cell(at(2048), [contender("nexus", 100), vllm(116)]),
      cell(at(2048, "zipf:1.5"), [contender("nexus", 112), vllm(160)]),
      cell(at(64, "uniform", "mixtral-8x7b"), [contender("nexus", 650), vllm(700)], {
        weightBytes: 2.8e9,
      }),
    ]);
    const slower = bar("no cell up to 256");
    assert.equal(slower.met, false);
    assert.match(slower.figure, /1 of 3 cells slower.*least 0\.90x.*256 tokens.*NVIDIA H200/);
    const large = bar("from 2048 tokens");
    assert.equal(large.met, true);
    assert.match(large.figure, /2 of 2 cells; least 1\.16x/);
    const mean = (40 / 29) * 0.9 * 1.16 * (160 / 112) * (700 / 650);
    assert.match(bar("geometric mean").figure, new RegExp(`${(mean ** 0.2).toFixed(2)}x over 5`));
    assert.equal(bar("geometric mean").met, mean ** 0.2 >= 1.25);
    assert.equal(bar("Zipf 1.5").met, false);
    assert.match(bar("Zipf 1.5").figure, /0 of 1 cell; most 1\.12x/);
    assert.equal(bar("1 token: less than").met, true);
    assert.match(bar("1 token: less than").figure, /^29\.0 us, uniform, on NVIDIA H200$/);
    // 2.8 GB in 650 us are 4.31 TB/s, 89.7 % of 4.8.
    assert.equal(bar("85 %").met, true);
    assert.match(bar("85 %").figure, /4\.31 of 4\.8 TB\/s, 89\.7 %/);
  });

  it("bars say for which card they were set, and what was not measured", async () => {
    const { device, limits } = exampleResult();
    const bar = await barsOf([cell(at(1), [contender("nexus", 31)])], {
      device: { ...device, name: "NVIDIA H100 80GB HBM3" },
      limits: { ...limits, dataSheetTBs: 3.35 },
    });
    const single = bar("1 token: less than");
    assert.equal(single.met, false);
    assert.match(
      single.figure,
      /set for an H200 with 4\.8 TB\/s; this card has 3\.35.*NVIDIA H100/,
    );
    assert.equal(bar("85 %").met, undefined);
    assert.equal(bar("85 %").figure, "not measured");
  });

  it("skew is held against uniform routing with as many tokens of the same shape", async () => {
    const { skewPenalties } = await load("figures.mjs");
    const { cells } = await figuresOf([
      cell(at(1024), [contender("nexus", 100), contender("vllm-schedule", 200)]),
      cell(at(1024, "zipf:1.5"), [contender("nexus", 105), contender("vllm-schedule", 300)]),
      cell(at(2048, "hot"), [contender("nexus", 105)]),
    ]);
    const [penalty, ...others] = skewPenalties(cells);
    close(penalty.nexus, 1.05);
    close(penalty.common, 1.5);
    assert.deepEqual(others, []);
  });

  it("energy of a step, with and without what the idle card draws; loops beside their bars", async () => {
    const { energyFigures } = await load("figures.mjs");
    const { perStep, aboveIdle, tokensPerJoule, tokensPerJouleAboveIdle } = energyFigures({
      ...{ shape: QWEN, tokens: 50, routing: "uniform", contender: "nexus", mode: "graph" },
      ...{ seconds: 2, steps: 1000, joules: 600, idleWatts: 100 },
    });
    close(perStep, 0.6);
    close(aboveIdle, 0.4);
    close(tokensPerJoule, 50 / 0.6);
    close(tokensPerJouleAboveIdle, 50 / 0.4);

    const { loopFigures } = await load("loops.mjs");
    const { loopBarsOf } = await load("bars.mjs");
    const { merge } = await load("merge.mjs");
    const rows = loopFigures(merge([exampleLoops()]).loopCells);
    close(rows[0].speedup, 20);
    // 1200 J for 20,000 steps beside 400 J for 1,000.
    close(rows[0].saving, 1 - 0.06 / 0.4);
    assert.deepEqual(
      loopBarsOf(rows).map(({ met, figure }: { met: boolean; figure: string }) => [met, figure]),
      [
        [true, "1 of 1 cell; 20.0x to 20.0x"],
        [true, "1 of 1 cell; 85 % to 85 %"],
      ],
    );
    assert.match(loopBarsOf([...rows, { speedup: 14 }])[0].figure, /^1 of 2 cells; 14\.0x to 20/);
  });

  it("parts join: all cells, each with its own limits, and a warning where they differ", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const one = { ...whole, cells: whole.cells.slice(0, 10) };
    const limits = { ...whole.limits, copyTBs: 4.1 };
    const two = { ...whole, commit: "fedcba9", limits, cells: whole.cells.slice(10) };
    const merged = merge([one, two]);
    assert.equal(merged.cells.length, whole.cells.length);
    assert.equal(merged.cells[9].limits.copyTBs, 4.2);
    assert.equal(merged.cells[10].limits.copyTBs, 4.1);
    const ofEnergy = merged.cells.find((each: ExampleCell) => each.tokens === 4096);
    assert.equal(ofEnergy.energy.length, 3);
    assert.equal(merged.unavailable.length, 1);
    assert.equal(merged.warnings.length, 1);
    assert.match(merged.warnings[0], /different commits: "0123abc" \(quick\), "fedcba9" \(quick\)/);

    const elsewhere = { ...two, device: { ...two.device, name: "NVIDIA H100" } };
    assert.throws(() => merge([one, elsewhere]), /different devices.*H200.*H100/);
  });

  it("files beside the parts are held to the same device, driver and commit", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const drift = { format: "nexus-drift/1", device, commit: whole.commit, forms: [] };
    // An ablation names no commit.
    const ablation = { command: "bench --ablation", device, results: [] };
    assert.deepEqual(merge([whole, drift, ablation]).warnings, []);
    const old = { ...ablation, device: { ...device, driver: "570.1" } };
    const { warnings } = merge([whole, { ...drift, commit: "fedcba9" }, old]);
    assert.equal(warnings.length, 2);
    assert.match(warnings[0], /different drivers: .*"570\.1" \(bench --ablation\)/);
    assert.match(warnings[1], /different commits: .*"fedcba9" \(nexus-drift\/1\)/);
    const elsewhere = { ...drift, device: { ...device, name: "NVIDIA H100" } };
    assert.throws(() => merge([whole, elsewhere]), /different devices/);
  });

  it("a cell of several parts is pooled: every round counts, in whichever order the files stand", async () => {
    const { merge } = await load("merge.mjs");
    const { figuresOf } = await load("figures.mjs");
    const whole = exampleResult();
    const part = (day: number, cells: ExampleCell[], energy: object[] = []) => ({
      ...{ ...whole, cells, energy, date: `2026-11-${day}T10:00:00.000Z` },
    });
    const reading = {
      ...{ ...at(64), contender: "nexus", mode: "graph" },
      ...{ seconds: 2, steps: 1000, joules: 600, idleWatts: 100 },
    };
    const limit = (us: number) => ({ name: "cublas", samples: [us], rounds: [[us]] });
    const gone = { name: "y", mode: "graph", failed: "out of memory" };
    const early = part(
      24,
      [
        cell(at(64), [timed("nexus", [[100, 200]]), timed("x", [[300]]), gone], {
          ...{ batches: 2, limit: limit(50) },
        }),
        cell(at(128), [timed("nexus", [[100]])], { seed: 1 }),
      ],
      [reading],
    );
    const late = part(
      25,
      [
        cell(
          at(64),
          [timed("nexus", [[104, 208, 108]]), timed("y", [[7]]), timed("x", [[9]], "eager")],
          {
            ...{ batches: 2, limit: limit(70) },
          },
        ),
        cell(at(128), [timed("nexus", [[90]])], { seed: 2 }),
      ],
      [{ ...reading, seconds: 4, steps: 2000, joules: 1800, idleWatts: 70 }],
    );
    const merged = merge([early, late]);
    const reordered = merge([late, early]);
    assert.deepEqual(reordered, merged);
    assert.equal(merged.date, early.date);
    assert.equal(merged.cells.length, 2);
    const [pooled, redrawn] = merged.cells;
    assert.deepEqual(
      pooled.contenders.map(({ name, mode, failed, rounds }: ExampleContender) => [
        ...[name, mode, failed ?? rounds],
      ]),
      [
        [
          "nexus",
          "graph",
          [
            [100, 200],
            [104, 208, 108],
          ],
        ],
        ["x", "graph", [[300]]],
        ["y", "graph", [[7]]],
        ["x", "eager", [[9]]],
      ],
    );
    // Of batch 0: 100, 104, 108, of batch 1: 200, 208.
    const [figures] = figuresOf(merged).cells;
    close(figures.nexus.us, (104 + 204) / 2);
    close(figures.productsUs, 60);
    const [{ seconds, steps, joules, idleWatts }] = pooled.energy;
    assert.deepEqual({ seconds, steps, joules }, { seconds: 6, steps: 3000, joules: 2400 });
    close(idleWatts, 80);
    assert.equal(redrawn.seed, 2);
    assert.deepEqual(redrawn.contenders[0].rounds, [[90]]);
    assert.deepEqual(
      merged.warnings.map((warning: string) => warning.split(":")[0]),
      [
        "1 cell was measured in more than one part",
        "1 cell measured again with another seed or number of batches",
      ],
    );
  });

  it("what failed is named unless a later part measured it", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const good = { ...whole, cells: [cell(at(64), [contender("nexus", 100)])] };
    const cells = [{ ...at(64), failed: "the GPU is gone", contenders: [] }];
    const later = { date: "2026-11-25T10:00:00.000Z" };
    const repaired = merge([
      { ...good, ...later },
      { ...whole, cells },
    ]);
    assert.equal(repaired.failedCells.length, 0);
    assert.equal(repaired.cells.length, 1);
    const broken = merge([{ ...whole, cells, ...later }, good]);
    assert.equal(broken.failedCells.length, 1);
    assert.equal(broken.cells.length, 1);
  });

  it("agreement: errors of single tokens and settings that failed, where they are known", async () => {
    const { agreementBlocks } = await load("tables.mjs");
    const blocksOf = async (more: object) => {
      const { cells } = await figuresOf([
        cell(at(1), [contender("nexus", 100), { ...contender("x", 200), ...more }]),
      ]);
      return agreementBlocks(cells);
    };
    const [plain, ...nothing] = await blocksOf({});
    assert.equal(plain.columns.length, 4);
    assert.deepEqual(nothing, []);
    const rejected = [{ setting: { stages: 9 }, reason: "too much shared memory" }];
    const [table, line] = await blocksOf({ rowError: 0.02, rejected });
    assert.deepEqual(
      table.rows.map((row: string[]) => row.slice(4)),
      [
        ["-", "-"],
        ["2.0e-2", `${QWEN}, 1 token, uniform`],
      ],
    );
    assert.match(line.text, /failed.*: x 1\.$/);
  });

  it("the fastest is bold, and Nexus stands once", async () => {
    const { latencyTable } = await load("tables.mjs");
    const { cells } = await figuresOf([
      cell(at(1), [contender("nexus", 100), contender("nexus-again", 90), contender("x", 94)]),
    ]);
    const { columns, rows } = latencyTable(cells);
    assert.deepEqual(
      columns.map(({ title }: { title: string }) => title),
      ["tokens", "routing", "nexus", "x"],
    );
    assert.match(rows[0][2], /^95\.0 /);
    assert.match(rows[0][3], /^\*\*94\.0\*\* /);
  });

  it("faults of a file are named", async () => {
    const { faultOf } = await load("read.mjs");
    const whole = exampleResult();
    assert.equal(faultOf(whole), undefined);
    assert.match(faultOf({ ...whole, format: "x" }), /"format" is "x"/);
    assert.match(faultOf({ ...whole, limits: {} }), /limits\.copyTBs/);
    const twice = [contender("nexus", 1), contender("nexus", 2)];
    assert.match(faultOf({ ...whole, cells: [cell(at(1), twice)] }), /nexus, graph twice/);
    const empty = [{ name: "nexus", mode: "graph", samples: [] }];
    assert.match(faultOf({ ...whole, cells: [cell(at(1), empty)] }), /cells\[0\].*samples/);
    const unrounded = [{ ...contender("nexus", 1), rounds: [] }];
    assert.match(faultOf({ ...whole, cells: [cell(at(1), unrounded)] }), /cells\[0\].*rounds/);
    assert.match(faultOf({ ...whole, cells: [cell(at(1), [], { batches: 0 })] }), /batches/);
    assert.match(faultOf({ ...whole, date: undefined }), /date/);
    const limits = { ...whole.limits, dataSheetTFlops: "many" };
    assert.match(faultOf({ ...whole, limits }), /limits\.dataSheetTFlops/);
  });

  it("from the command line: Markdown, charts and a page that stands alone", () =>
    inTemporaryFolder(async (folder) => {
      const out = path.join(folder, "out");
      const failed = { ...at(3), failed: "the GPU is gone", contenders: [] };
      const result = exampleResult();
      const contents = [{ ...result, cells: [...result.cells, failed] }, exampleLoops(), ...BESIDE];
      const files = contents.map((content, i) => {
        const file = path.join(folder, `${i}.json`);
        writeFileSync(file, JSON.stringify(content));
        return file;
      });
      execFileSync(process.execPath, [main, ...files, "--out", out]);
      const read = (name: string) => readFileSync(path.join(out, name), "utf8");
      const markdown = read("report.md");
      const lines = markdown.split("\n");
      assert.match(lines[2] as string, /fastest in 70 of 72 cells.*geometric mean of 1\.\d\dx/);
      assert.match(lines[4] as string, /A peer is faster beyond the noise in 2 cells/);
      assert.match(lines[6] as string, /64 tokens, uniform: .*triton-kernels .* us \(\d+ %\)/);
      assert.ok(markdown.includes("does not install | here"));
      assert.match(
        markdown,
        /1 cell failed:\*\*\n\n- qwen3-30b-a3b, 3 tokens, uniform: the GPU is gone/,
      );
      assert.match(
        markdown,
        /\| small \| 512 \| loop \(eager\) \|.*20\.0x .* 85 % \| dense \| 7\.0x \|/,
      );
      assert.match(markdown, /\| \+ graph \| 300 \| 290 \| 80\.00x \| 356 \|/);
      assert.match(markdown, /\| 128 \| 8 \| 512 \| whole \| 2\.00 \| 6\.00 \| 3\.00x /);
      assert.match(
        markdown,
        /\| adaptive \| 300 \| 400 \| 1,000 \| 50\.0 \| 3 \| 1 \| 2 \| 120 \|/,
      );
      const order = [
        ...["Bars", "Latency", "Roofline", "Skew", "Energy", "The original system's"],
        ...["Ablation", "Traffic", "Drift"],
      ];
      const places = order.map((title) => markdown.indexOf(`\n## ${title}`));
      assert.deepEqual(
        places,
        places.toSorted((a, b) => a - b),
      );
      assert.ok((places[0] as number) > 0);
      // Every row of a table has as many cells as its head.
      for (const block of markdown.split("\n\n").filter((each) => each.startsWith("| "))) {
        const widths = block
          .trim()
          .split("\n")
          .map((row) => row.replaceAll("\\|", "").split("|").length);
        assert.equal(new Set(widths).size, 1, block);
      }
      const charts = readdirSync(out).filter((name) => name.endsWith(".svg"));
      const linked = [...markdown.matchAll(/!\[[^\]]*\]\(([^)]+)\)/g)].map(([, name]) => name);
      assert.deepEqual(linked.toSorted(), charts.toSorted());
      assert.equal(charts.length, 5);
      const page = read("index.html");
      for (const name of charts) {
        const svg = read(name);
        assertWellFormed(svg);
        assert.doesNotMatch(svg, /NaN|undefined|Infinity/);
        assert.match(svg, /prefers-color-scheme:dark/);
        assert.ok(page.includes(svg.trim()), `${name} is not in the page`);
      }
      assert.doesNotMatch(page, /<(img|script|link)\b|NaN|undefined/);
      assert.doesNotMatch(markdown, /NaN|undefined|Infinity/);
      assert.equal(page.match(/<table>/g)?.length, markdown.match(/^\| ---/gm)?.length);
    }));

  it("files that are none are refused with a line", () => {
    const run = (...args: string[]) => {
      try {
        execFileSync(process.execPath, [main, ...args], { stdio: "pipe" });
        return { status: 0, stderr: "" };
      } catch (error) {
        const { status, stderr } = error as { status: number; stderr: Buffer };
        return { status, stderr: String(stderr) };
      }
    };
    for (const [args, expected] of [
      [["/nowhere.json", "--out", "/tmp/x"], /nowhere\.json cannot be read/],
      [["--out", "/tmp/x"], /^usage: /],
      [[path.join(folder, "main.mjs"), "--out", "/tmp/x"], /cannot be read as JSON/],
    ] as const) {
      const { status, stderr } = run(...args);
      assert.equal(status, 2);
      assert.match(stderr, expected);
      assert.equal(stderr.trim().split("\n").length, 1);
    }
  });
});

/** Elements are closed in order, attributes are quoted and not repeated, no stray markup in texts. */
function assertWellFormed(xml: string): void {
  const open: string[] = [];
  const tag = /<(\/?)([a-z]+)((?: [\w:-]+="[^"<&]*(?:&(?:amp|lt|gt|quot);[^"<&]*)*")*)(\/?)>/g;
  let end = 0;
  for (const match of xml.matchAll(tag)) {
    const [whole, closing, name, attributes = "", empty] = match;
    assert.doesNotMatch(xml.slice(end, match.index), /[<>]|&(?!(amp|lt|gt|quot);)/);
    end = match.index + whole.length;
    const names = [...attributes.matchAll(/ ([\w:-]+)=/g)].map(([, each]) => each);
    assert.equal(new Set(names).size, names.length, whole);
    if (closing) assert.equal(open.pop(), name);
    else if (!empty) open.push(name as string);
    if (open.length === 0) break;
  }
  assert.deepEqual(open, []);
  assert.equal(xml.slice(end).trim(), "");
}
