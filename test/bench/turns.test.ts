/** Builds of Nexus in turn: cells by name, steps on an emulated GPU, and what is said of the rounds. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { withEmulated } from "../execution/cuda/emulator/harness.ts";

const gpu = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../../bench/gpu");
const load = (file: string) => import(pathToFileURL(path.join(gpu, file)).href);
const { parseCell, timeCells } = await load("steps.mjs");
const { comparison } = await load("turns.mjs");
const support = await load("support.mjs");

describe("builds in turn", () => {
  it("take cells by name", () => {
    assert.deepEqual(parseCell("qwen3-30b-a3b:64:zipf:1.5"), {
      ...{ name: "qwen3-30b-a3b:64:zipf:1.5", shape: "qwen3-30b-a3b" },
      ...{ tokens: 64, routing: "zipf:1.5" },
    });
    assert.equal(parseCell("small:3").name, "small:3:uniform");
    for (const text of [
      "tiny:1",
      "quick:1",
      "small",
      "small:0",
      "small:1.5",
      "small:1:zipf:3",
      "small:1:hot",
    ]) {
      assert.throws(() => parseCell(text), new RegExp(`There is no cell "${text}"\\. Use shape:`));
    }
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

  it("are asked for in one way: anything else is one line, exit code 2", () => {
    for (const args of [
      [],
      ["a=."],
      ["--cells", "small:1", "a=."],
      ["--cells", "small:1", "a=.", "b"],
      ["--cells", "small:1", "--rounds", "0", "a=.", "b=."],
      ["--cells", "tiny:1", "a=.", "b=."],
    ]) {
      const script = path.join(gpu, "turns.mjs");
      const { status, stderr } = spawnSync(process.execPath, [script, ...args], {
        encoding: "utf8",
      });
      assert.deepEqual([status, stderr.trim().split("\n").length], [2, 1], stderr);
      assert.match(stderr, args.includes("tiny:1") ? /^There is no cell "tiny:1"/ : /^usage: /);
    }
  });
});
