/** Builds of Nexus in turn: cells by name, steps on an emulated GPU, and what is said of the rounds. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { inTemporaryFolder } from "../cli/nexus.ts";
import { withEmulated } from "../execution/cuda/emulator/harness.ts";

const gpu = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../../bench/gpu");
const load = (file: string) => import(pathToFileURL(path.join(gpu, file)).href);
const { parseBuild, parseCell, timeCells } = await load("steps.mjs");
const { drawLogits } = await load("routed-steps.mjs");
const { comparison, takeTurns } = await load("turns.mjs");
const support = await load("support.mjs");

const run = (...args: string[]) =>
  spawnSync(process.execPath, [path.join(gpu, "turns.mjs"), ...args], { encoding: "utf8" });

describe("builds in turn", () => {
  it("take cells by name", () => {
    assert.deepEqual(parseCell("qwen3-30b-a3b:64:zipf:1.5"), {
      name: "qwen3-30b-a3b:64:zipf:1.5",
      shape: "qwen3-30b-a3b",
      tokens: 64,
      routing: "zipf:1.5",
    });
    assert.equal(parseCell("small:3").name, "small:3:uniform");
    assert.equal(parseCell("small:3:hot").routing, "hot");
    for (const text of [
      "tiny:1",
      "quick:1",
      "small",
      "small:0",
      "small:1.5",
      "small:1:zipf:3",
      "small:1:hotter",
    ]) {
      assert.throws(() => parseCell(text), new RegExp(`There is no cell "${text}"\\. Use shape:`));
    }
  });

  it("draw a hot expert that all tokens choose first, and the others evenly", () => {
    const [tokens, experts] = [2000, 8];
    const random = new support.Random(1);
    const { data } = drawLogits(support, "hot", tokens, experts, random) as { data: Float32Array };
    const first = new Array<number>(experts).fill(0);
    const second = new Array<number>(experts).fill(0);
    for (let token = 0; token < tokens; token++) {
      const row = data.subarray(token * experts, (token + 1) * experts);
      const [a = 0, b = 0] = [...row.keys()].sort((i, j) => (row[j] ?? 0) - (row[i] ?? 0));
      first[a] = (first[a] ?? 0) + 1;
      second[b] = (second[b] ?? 0) + 1;
      assert.ok(Math.abs((row[a] ?? 0) - (row[b] ?? 0) - 0.5) < 1e-5);
    }
    const hot = first.indexOf(tokens);
    assert.ok(hot >= 0, `first choices ${first}`);
    // 2000 / 7 each, with a deviation of 16.
    second.forEach((count, expert) => {
      if (expert === hot) assert.equal(count, 0);
      else assert.ok(Math.abs(count - tokens / 7) < 80, `second choices ${second}`);
    });
  });

  it("may have packed weights", () => {
    assert.deepEqual(parseBuild("some/folder"), { folder: "some/folder", packWeights: false });
    assert.deepEqual(parseBuild("some/folder+packed"), {
      folder: "some/folder",
      packWeights: true,
    });
    assert.deepEqual(parseBuild("f+beside"), { folder: "f", packWeights: "beside" });
  });

  it("time every cell, and leave nothing behind", () =>
    withEmulated(async (device) => {
      const told: { cell: string; us: number }[] = [];
      const cells = ["small:1:zipf:1"].map(parseCell);
      await timeCells(support, device, cells, (line: { cell: string; us: number }) =>
        told.push(line),
      );
      assert.deepEqual(
        told.map(({ cell }) => cell),
        ["small:1:zipf:1"],
      );
      for (const { us } of told) assert.ok(us > 0);
    }));

  it("are held against the first by their best rounds", () => {
    const rounds = [
      { build: "old", us: { "small:1:uniform": 10, "small:4:hot": 20 } },
      { build: "new", us: { "small:1:uniform": 9.5, "small:4:hot": 21 } },
      { build: "old", us: { "small:1:uniform": 10.5, "small:4:hot": 20.5 } },
      { build: "new", us: { "small:1:uniform": 9, "small:4:hot": 22 } },
    ];
    assert.deepEqual(comparison(rounds), [
      "small:1:uniform: old 10 10.5; new 9.5 9; -10.0 %",
      "small:4:hot: old 20 20.5; new 21 22; 5.0 %",
    ]);
  });

  it("have every round saved as soon as it is over, whatever a later one does", () => {
    const saved: string[] = [];
    const save = (rounds: { build: string }[]) =>
      saved.push(rounds.map(({ build }) => build).join(" "));
    const plan = {
      rounds: 2,
      builds: [
        ["old", "a"],
        ["new", "b"],
      ],
    };
    const us = { "small:1:uniform": 10 };
    assert.equal(takeTurns(plan, () => us, save).length, 4);
    assert.deepEqual(saved, ["", "old", "old new", "old new old", "old new old new"]);
    saved.length = 0;
    let left = 3;
    const time = () => {
      left--;
      if (left < 0) throw new Error("the build in b failed");
      return us;
    };
    assert.throws(() => takeTurns(plan, time, save), /the build in b failed/);
    assert.equal(saved.at(-1), "old new old");
  });

  it("say in a line which build failed, and leave a file of what was measured before", () =>
    inTemporaryFolder(async (folder) => {
      const out = path.join(folder, "turns.json");
      const { status, stderr } = run(
        "--cells",
        "small:1",
        "--out",
        out,
        `a=${path.join(folder, "none")}`,
        "b=.",
      );
      assert.equal(status, 1);
      assert.match(stderr, /\nthe build in .*none failed \(1\)\n$/);
      assert.deepEqual(JSON.parse(readFileSync(out, "utf8")).rounds, []);
    }));

  it("are asked for in one way: anything else is one line, exit code 2", () => {
    for (const [args, expected] of [
      [[], /^usage: /],
      [["a=."], /^usage: /],
      [["--cells", "small:1", "a=."], /^usage: /],
      [["--cells", "small:1", "a=.", "b"], /^usage: /],
      [["--cells", "small:1", "a=.", "=."], /^usage: /],
      [["--cells", "small:1", "a=.", "b="], /^usage: /],
      [["--cells", "small:1", "--rounds", "0", "a=.", "b=."], /^usage: /],
      [["--cells", "tiny:1", "a=.", "b=."], /^There is no cell "tiny:1"/],
      [["--cells", "small:1", "a=.", "a=.."], /^Two builds are called "a"/],
      [["--cells", "small:1", "--fast", "a=.", "b=."], /--fast/],
      [["--cells", "small:1", "--out", "/nowhere/x.json", "a=.", "b=."], /\/nowhere\/x\.json/],
    ] as const) {
      const { status, stderr } = run(...args);
      assert.deepEqual([status, stderr.trim().split("\n").length], [2, 1], stderr);
      assert.match(stderr, expected);
    }
  });
});
