/** How the parts of a result are joined in the report, and what it says where they differ. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  cell,
  contender,
  type ExampleCell,
  type ExampleContender,
  exampleResult,
  reading,
  timed,
} from "./example-result.ts";
import { at, close, device, load, skip } from "./report-support.ts";

describe("report parts", { skip }, () => {
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
    const beside = { ...two, packWeights: "beside" };
    assert.throws(() => merge([one, beside]), /packWeights is false and beside/);
    assert.equal(merge([beside]).packWeights, "beside");
  });

  it("say how Nexus keeps its weights, unless it is as its peers do", async () => {
    const { merge } = await load("merge.mjs");
    const { reportOf } = await load("report.mjs");
    const textOf = (result: object) => JSON.stringify(reportOf(merge([result])).blocks);
    const whole = exampleResult();
    assert.doesNotMatch(textOf(whole), /Nexus keeps/);
    assert.match(textOf({ ...whole, packWeights: true }), /weights packed into 12 bits, without/);
    assert.match(textOf({ ...whole, packWeights: "beside" }), /weights twice, as they are and/);
  });

  it("files beside the parts are held to the same device, driver and commit", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const drift = { format: "nexus-drift/1", device, commit: whole.commit, forms: [] };
    // Earlier ablations name no commit.
    const ablation = { command: "bench --ablation", device, results: [] };
    assert.deepEqual(merge([whole, drift, ablation]).warnings, []);
    const old = { ...ablation, device: { ...device, driver: "570.1" } };
    const { warnings } = merge([whole, { ...drift, commit: "fedcba9" }, old]);
    assert.equal(warnings.length, 2);
    assert.match(warnings[0], /different drivers: .*"570\.1" \(bench --ablation\)/);
    assert.match(warnings[1], /different commits: .*"fedcba9" \(nexus-drift\/1\)/);
    const late = { ...ablation, commit: "fedcba9" };
    assert.match(merge([whole, late]).warnings[0], /"fedcba9" \(bench --ablation\)/);
    const elsewhere = { ...drift, device: { ...device, name: "NVIDIA H100" } };
    assert.throws(() => merge([whole, elsewhere]), /different devices/);
  });

  it("a cell of several parts is pooled: every round counts, in whichever order the files stand", async () => {
    const { merge } = await load("merge.mjs");
    const { figuresOf } = await load("figures.mjs");
    const whole = exampleResult();
    const part = (day: number, cells: ExampleCell[], energy: object[] = []) => ({
      ...whole,
      cells,
      energy,
      date: `2026-11-${day}T10:00:00.000Z`,
    });
    const limit = (us: number) => ({ name: "cublas", samples: [us], rounds: [[us]] });
    const gone = { name: "y", mode: "graph", failed: "out of memory" };
    const early = part(
      24,
      [
        cell(at(64), [timed("nexus", [[100, 200]]), timed("x", [[300]]), gone], {
          batches: 2,
          limit: limit(50),
        }),
        cell(at(128), [timed("nexus", [[100]])], { seed: 1 }),
      ],
      [reading(at(64))],
    );
    const late = part(
      25,
      [
        cell(
          at(64),
          [timed("nexus", [[104, 208, 108]]), timed("y", [[7]]), timed("x", [[9]], "eager")],
          {
            batches: 2,
            limit: limit(70),
          },
        ),
        cell(at(128), [timed("nexus", [[90]])], { seed: 2 }),
      ],
      [{ ...reading(at(64)), seconds: 4, steps: 2000, joules: 1800, idleWatts: 70 }],
    );
    const merged = merge([early, late]);
    const reordered = merge([late, early]);
    assert.deepEqual(reordered, merged);
    assert.equal(merged.date, early.date);
    assert.equal(merged.cells.length, 2);
    const [pooled, redrawn] = merged.cells;
    assert.deepEqual(
      pooled.contenders.map(({ name, mode, failed, rounds }: ExampleContender) => [
        name,
        mode,
        failed ?? rounds,
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
        "1 cell measured again with another seed, number of batches or number of experts",
      ],
    );
  });

  it("skew is held against uniform routing of the same commit, which a later part may have measured again", async () => {
    const { figuresOf, skewPenalties } = await load("figures.mjs");
    const { merge } = await load("merge.mjs");
    const nexus = (...times: number[]) => times.map((us) => contender("nexus", us));
    const whole = {
      ...exampleResult(),
      cells: [cell(at(1024), nexus(100)), cell(at(1024, "zipf:1.5"), nexus(105))],
    };
    const again = { ...whole, commit: "fedcba9", date: "2031-01-01T00:00:00.000Z" };
    const uniform = { ...again, cells: [cell(at(1024), nexus(90))] };
    const { cells } = figuresOf(merge([whole, uniform]));
    close(cells[0].nexus.us, 90);
    close(skewPenalties(cells)[0].nexus, 1.05);
    const both = { ...again, cells: [...uniform.cells, cell(at(1024, "zipf:1.5"), nexus(99))] };
    close(skewPenalties(figuresOf(merge([whole, both])).cells)[0].nexus, 1.1);
    // Where only the other routing was measured again, what there is of uniform counts.
    const skewed = { ...again, cells: both.cells.slice(1) };
    close(skewPenalties(figuresOf(merge([whole, skewed])).cells)[0].nexus, 0.99);
  });

  it("of a contender that a later commit measured again nothing earlier counts", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const part = (
      day: number,
      commit: string,
      contenders: ExampleContender[],
      energy: object[] = [],
    ) => ({
      ...whole,
      commit,
      energy,
      date: `2026-11-${day}T10:00:00.000Z`,
      cells: [cell(at(64), contenders)],
    });
    const merged = merge([
      part(
        24,
        "aaa",
        [timed("nexus", [[100]]), timed("x", [[300]]), timed("y", [[400]])],
        ["nexus", "y"].map((contender) => ({ ...reading(at(64)), contender })),
      ),
      part(25, "bbb", [timed("nexus", [[90]]), timed("x", [[200]])]),
      part(26, "bbb", [timed("nexus", [[92]])], [{ ...reading(at(64)), joules: 500 }]),
    ]);
    const [{ contenders, energy }] = merged.cells;
    assert.deepEqual(
      contenders.map(({ name, rounds }: ExampleContender) => [name, rounds]),
      [
        ["nexus", [[90], [92]]],
        ["x", [[200]]],
        ["y", [[400]]],
      ],
    );
    assert.deepEqual(
      energy.map(({ contender, joules }: { contender: string; joules: number }) => [
        contender,
        joules,
      ]),
      [
        ["nexus", 500],
        ["y", 600],
      ],
    );
  });

  it("a cell of another number of experts is replaced, not pooled", async () => {
    const { merge } = await load("merge.mjs");
    const whole = exampleResult();
    const part = (day: number, us: number, experts?: number, ofShape = 128) => ({
      ...whole,
      date: `2026-11-${day}T10:00:00.000Z`,
      energy: [],
      shapes: whole.shapes.map((shape) => ({ ...shape, experts: ofShape })),
      cells: [cell(at(64), [timed("nexus", [[us]])], experts === undefined ? {} : { experts })],
    });
    const rounds = (...parts: object[]) => {
      const { cells, warnings } = merge(parts);
      return { rounds: cells[0].contenders[0].rounds, warnings };
    };
    // Cells that name their experts, and older files, whose shapes do.
    for (const [early, late] of [
      [part(24, 100, 128), part(25, 90, 256, 256)],
      [part(24, 100), part(25, 90, undefined, 256)],
      [part(24, 100), part(25, 90, 256, 256)],
    ] as const) {
      const { rounds: counted, warnings } = rounds(early, late);
      assert.deepEqual(counted, [[90]]);
      assert.match(warnings[0], /different numbers of experts of qwen3-30b-a3b: 128 .*, 256 /);
      assert.match(warnings.at(-1), /^1 cell measured again with another .*number of experts/);
    }
    assert.deepEqual(rounds(part(24, 100), part(25, 90, 128)).rounds, [[100], [90]]);
  });

  it("cells that a part is made of and no file holds are named, failed ones and those not asked for not", async () => {
    const { merge } = await load("merge.mjs");
    const { leadBlocks } = await load("lead.mjs");
    const { figuresOf } = await load("figures.mjs");
    const whole = { ...exampleResult(), mode: "small", energy: [] };
    const small = (tokens: number, routing: string) => at(tokens, routing, "small");
    const measured = [64, 256].flatMap((tokens) =>
      ["uniform", "zipf:1", "zipf:1.5"].map((routing) =>
        cell(small(tokens, routing), [contender("nexus", 100), contender("x", 120)]),
      ),
    );
    const failed = { ...small(64, "hot"), failed: "out of memory", contenders: [] };
    const result = { ...whole, options: { tokens: [64, 256] }, cells: [...measured, failed] };
    const merged = merge([result]);
    assert.deepEqual(
      merged.missingCells.map(({ tokens, routing }: ExampleCell) => [tokens, routing]),
      [[256, "hot"]],
    );
    const text = JSON.stringify(leadBlocks(figuresOf(merged), []));
    assert.match(text, /1 cell failed:.*64 tokens, hot: out of memory/);
    assert.match(text, /1 cell of these parts not attempted:.*small, 256 tokens, hot/);
    // Another part may hold it; a result from before options were written may have been asked for few.
    const rest = { ...whole, cells: [cell(small(256, "hot"), [contender("nexus", 100)])] };
    assert.equal(merge([result, { ...rest, options: { tokens: [256] } }]).missingCells.length, 0);
    assert.equal(merge([rest]).missingCells.length, 31);
    const loops = { ...whole, mode: "loops", options: { tokens: [32] }, cells: [] };
    assert.equal(merge([result, loops]).missingCells.length, 1 + 3);
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
});
