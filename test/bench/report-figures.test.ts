/** Figures of the report on the benchmark of peers, from made-up results with known medians: times, what counts as lost, bars, energy. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { cell, contender, exampleLoops, exampleResult, reading, timed } from "./example-result.ts";
import { at, barsOf, close, figuresOf, load, QWEN, skip } from "./report-support.ts";

describe("report figures", { skip }, () => {
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
        contender("nexus", 100),
        contender("nexus-again", 96),
        contender("vllm-schedule", 150),
        contender("x", 180),
        contender("x", 120, "eager"),
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
          ...whole,
          device: { ...whole.device, name },
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

  it("the bar of every cell over vLLM's schedule is 1.15x, and one cell below it is enough to miss it", async () => {
    const met = async (us: number) => {
      const peer = (time: number) => [contender("nexus", 100), contender("vllm-schedule", time)];
      return (await barsOf([cell(at(4096), peer(130)), cell(at(16384), peer(us))]))("from 2048")
        .met;
    };
    assert.equal(await met(115), true);
    assert.equal(await met(114.9), false);
  });

  it("a bar missed by less than a hundredth does not read as met", async () => {
    const figure = async (us: number) => {
      const skewed = cell(at(2048, "zipf:1.5"), [contender("nexus", us)]);
      return (await barsOf([cell(at(2048), [contender("nexus", 100)]), skewed]))("Zipf 1.5").figure;
    };
    assert.match(await figure(110.3), /0 of 1 cell; most 1\.103x/);
    assert.match(await figure(110), /1 of 1 cell; most 1\.10x/);
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

  it("short steps of peers may be their hosts', unless bursts were queued", async () => {
    const { leadBlocks } = await load("lead.mjs");
    const { figuresOf } = await load("figures.mjs");
    const { merge } = await load("merge.mjs");
    const cells = [
      cell(at(1), [contender("nexus", 10), contender("vllm-schedule", 29)]),
      cell(at(4), [contender("nexus", 10), contender("vllm-schedule", 29, "eager")]),
      cell(at(64), [contender("nexus", 100), contender("vllm-schedule", 110)]),
    ];
    const whole = exampleResult();
    const figures = (more: object) => figuresOf(merge([{ ...whole, ...more, cells, energy: [] }]));
    const unqueued = figures({ queuedBursts: undefined });
    assert.deepEqual(
      unqueued.hostPaced.map(({ tokens }: { tokens: number }) => tokens),
      [1],
    );
    close(unqueued.surelyOverBestPeer, Math.sqrt(2.9 * 1.1));
    assert.match(
      JSON.stringify(leadBlocks(unqueued, [])),
      /In 1 cell the best peer's time may be its host's.*1\.79x over the best peer/,
    );
    const queued = figures({});
    assert.deepEqual(queued.hostPaced, []);
    assert.doesNotMatch(JSON.stringify(leadBlocks(queued, [])), /may be its host's/);
    // One part without it is enough for cells that were measured in both.
    const both = [true, undefined].map((queuedBursts, i) => ({
      ...whole,
      mode: `${i}`,
      cells,
      energy: [],
      queuedBursts,
    }));
    assert.equal(figuresOf(merge(both)).hostPaced.length, 1);
  });

  it("cells where a peer takes less energy are named in the first lines", async () => {
    const { leadBlocks } = await load("lead.mjs");
    const { figuresOf } = await load("figures.mjs");
    const { merge } = await load("merge.mjs");
    const leadOf = (factor: number) => {
      const result = exampleResult();
      const energy = result.energy.map((each) =>
        each.contender === "vllm-schedule" && each.tokens === 64
          ? { ...each, joules: each.joules * factor }
          : each,
      );
      return JSON.stringify(leadBlocks(figuresOf(merge([{ ...result, energy }])), []));
    };
    assert.match(
      leadOf(1),
      /The best peer is .* in \d+ cells?\. Geometric means over it by shape: /,
    );
    assert.match(
      leadOf(1),
      /No peer that was measured takes less energy for a step in any of the 2 cells/,
    );
    const lead = leadOf(0.5);
    assert.match(lead, /A peer takes less energy for a step in 1 of the 2 cells/);
    // 1300 J for 2000 steps beside 650 J for 1600.
    assert.match(lead, /64 tokens, uniform: Nexus 650 mJ, vllm-schedule 406 mJ \(60 %\)/);
  });

  it("energy of a step, with and without what the idle card draws; loops beside their bars", async () => {
    const { energyFigures } = await load("figures.mjs");
    const { perStep, aboveIdle, tokensPerJoule, tokensPerJouleAboveIdle } = energyFigures(
      reading(at(50)),
    );
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

  it("a loop's time is the shorter of timed and in its energy window", async () => {
    const { loopFigures } = await load("loops.mjs");
    const { merge } = await load("merge.mjs");
    const loops = exampleLoops();
    const rowOf = (steps: number) => {
      const [nexus, loop] = loops.energy;
      const [row] = loopFigures(
        merge([{ ...loops, energy: [nexus, { ...loop, steps }] }]).loopCells,
      );
      return row;
    };
    // 2 s in the window: 1000 us a step, half of the timed 2000; 4000 us are no news.
    close(rowOf(2000).speedup, 10);
    close(rowOf(2000).loop.timedUs, 2000);
    close(rowOf(500).speedup, 20);
    // The loop that was slower when timed may be the faster one.
    const [only] = loops.cells;
    const cells = [
      {
        ...only,
        contenders: [...(only?.contenders ?? []), contender("loop-sorted", 1500, "eager")],
      },
    ];
    const energy = [loops.energy[0], { ...loops.energy[1], steps: 2000 }];
    const [row] = loopFigures(merge([{ ...loops, cells, energy }]).loopCells);
    assert.equal(row.loop.name, "loop");
    close(row.speedup, 10);
  });

  it("a step in an energy window stands beside its latency, and a window that is slower by 3 % is marked", async () => {
    const { energyGroups, energyOf } = await load("figures.mjs");
    const { energyTable } = await load("parts.mjs");
    const { leadBlocks } = await load("lead.mjs");
    const both = (steps: number, more: object = {}) => {
      const energy = ["nexus", "x"].map((name) => ({
        ...reading(at(1)),
        contender: name,
        steps: name === "x" ? steps : 20_000,
      }));
      return figuresOf([cell(at(1), [contender("nexus", 100), contender("x", 120)])], {
        energy,
        ...more,
      });
    };
    const rows = async (steps: number) =>
      energyTable(energyGroups(energyOf((await both(steps)).cells))).rows;
    const [ours, theirs] = await rows(16_000);
    assert.deepEqual(ours.slice(1, 4), ["nexus", "100", "100"]);
    assert.deepEqual(theirs.slice(1, 4), ["x", "**125** (+4.2 %)", "120"]);
    assert.equal((await rows(16_500))[1][2], "121");
    const lead = async (steps: number, more: object = {}) =>
      JSON.stringify(leadBlocks(await both(steps, more), []));
    assert.match(await lead(16_000), /In 1 of the 1 cell whose energy .* contain waiting/);
    assert.doesNotMatch(await lead(16_500), /contain waiting/);
    assert.doesNotMatch(await lead(16_000, { pacedWindows: true }), /contain waiting/);
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
});
