/** The report as files: faults are named, charts and page are well formed. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { inTemporaryFolder } from "../cli/nexus.ts";
import { cell, contender, exampleLoops, exampleResult } from "./example-result.ts";
import { at, BESIDE, figuresOf, folder, load, main, skip } from "./report-support.ts";

describe("report page", { skip }, () => {
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
      assert.match(lines[4] as string, /^\*\*Four peers in every cell\*\*: torch-grouped-mm, /);
      assert.match(lines[6] as string, /vLLM itself is not run.*rebuilt in Triton/);
      assert.doesNotMatch(markdown, /ScatterMoE/, "which has no part in these results");
      assert.match(
        lines[8] as string,
        /Not measured in these results:\*\* OpenAI's triton_kernels/,
      );
      assert.match(lines[10] as string, /A peer is faster beyond the noise in 2 cells/);
      assert.match(lines[12] as string, /64 tokens, uniform: .*triton-kernels .* us \(\d+ %\)/);
      assert.ok(markdown.includes("does not install | here"));
      assert.match(
        markdown,
        /1 cell failed:\*\*\n\n- qwen3-30b-a3b, 3 tokens, uniform: the GPU is gone/,
      );
      assert.match(
        markdown,
        /\| small \| 512 \| loop \(eager\) \| 2,000 ±\S+ % \| 2,000 \|.*20\.0x .* 85 % \| dense \| 7\.0x \|/,
      );
      assert.match(markdown, /\| \+ graph \| 300 \| 290 \| 80\.00x \| 356 \|/);
      assert.match(markdown, /\| 128 \| 8 \| 512 \| whole \| 2\.00 \| 6\.00 \| 3\.00x /);
      assert.match(markdown, /\n### qwen3-30b-a3b, 64 tokens, uniform\n\n\| kernel \| us \|/);
      assert.match(
        markdown,
        /\| project, first product \| 250 \| 96 % \| - \| - \| 4\.0 % \| - \| - \| - \| 800 \| 1\.00 \|/,
      );
      assert.match(markdown, /\| route \| 5\.25 \| - \|.* \| 40 \|/);
      assert.match(markdown, /- sm__x\.avg: ncu says "n\/a" \(route\)/);
      assert.match(
        markdown,
        /\| adaptive \| 300 \| 400 \| 1,000 \| 50\.0 \| 3 \| 1 \| 2 \| 120 \|/,
      );
      const order = [
        "Bars",
        "At a glance",
        "Latency",
        "Roofline",
        "Skew",
        "Energy",
        "The original system's",
        "Ablation",
        "Traffic",
        "Counters",
        "Drift",
      ];
      const places = order.map((title) => markdown.indexOf(`\n## ${title}`));
      assert.deepEqual(
        places,
        places.toSorted((a, b) => a - b),
      );
      assert.ok((places[0] as number) > 0);
      assert.match(markdown, /- idle, with contexts open and nothing running: 75\.0 W\n/);
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

  const run = (...args: string[]) =>
    spawnSync(process.execPath, [main, ...args], { encoding: "utf8" });

  it("files of other measurements are left out and named, unless there is nothing else", () =>
    inTemporaryFolder(async (folder) => {
      const write = (name: string, content: unknown) => {
        const file = path.join(folder, name);
        writeFileSync(file, JSON.stringify(content));
        return file;
      };
      const result = write("quick.json", exampleResult());
      const others = [write("bars.json", { rows: [] }), write("next.json", { format: "x/2" })];
      const { status, stderr } = run(...others, result, "--out", folder);
      assert.equal(status, 0, stderr);
      assert.equal(stderr, `Left out, nothing that a report shows: ${others.join(", ")}\n`);
      assert.match(readFileSync(path.join(folder, "report.md"), "utf8"), /fastest in 70 of 72/);
      const none = run(...others, "--out", folder);
      assert.equal(none.status, 2);
      assert.match(none.stderr, /^None of the files is one of nexus-peers\/1, .*: .*bars\.json, /);
      // What says that it is a result must be one.
      const faulty = write("faulty.json", { ...exampleResult(), cells: 1 });
      assert.match(
        run(result, faulty, "--out", folder).stderr,
        /faulty\.json: cells is not a list/,
      );
    }));

  it("the heat map says what its outlines mean: cells that a peer won beyond the noise", async () => {
    const { speedupChart } = await load("charts/speedup.mjs");
    const outlines = async (peer: number) => {
      const nexus = [contender("nexus", 100), contender("nexus-again", 100)];
      const { compared } = await figuresOf([cell(at(64), [...nexus, contender("x", peer)])]);
      const svg: string = speedupChart(compared);
      assert.match(svg, /outlined: a peer is faster beyond the noise</);
      return svg.match(/stroke-width="2"/g)?.length ?? 0;
    };
    assert.equal(await outlines(80), 1);
    assert.equal(await outlines(99.5), 0, "within the noise");
    assert.equal(await outlines(150), 0, "Nexus is faster");
  });

  it("a page's tables are written between its comments, from the results that it names", () =>
    inTemporaryFolder(async (folder) => {
      const { written } = await load("page.mjs");
      mkdirSync(path.join(folder, "plain"));
      mkdirSync(path.join(folder, "beside"));
      const write = (name: string, content: object) =>
        writeFileSync(path.join(folder, name), JSON.stringify(content));
      write("plain/quick.json", exampleResult());
      write("plain/loops.json", exampleLoops());
      write("plain/other.json", { rows: [] });
      write("beside/quick.json", { ...exampleResult(), packWeights: "beside", energy: [] });
      const begin = "<!-- figures: plain = plain; packed = beside -->\n";
      const end = "<!-- end of figures -->\nafter\n";
      const page: string = written(`before\n${begin}stale\n${end}`, folder);
      assert.ok(page.startsWith(`before\n${begin}`) && page.endsWith(end), page);
      assert.doesNotMatch(page, /stale|undefined|NaN/);
      assert.match(
        page,
        /- \*\*packed: fastest in 70 of 72 cells\*\* .* Four peers in every cell\./,
      );
      assert.match(page, /\n\| bar \| plain \| packed \|\n/);
      assert.match(
        page,
        /\n\| 15x the throughput .* \| met: 1 of 1 cell; 20\.0x to 20\.0x \| - \|\n/,
      );
      assert.match(page, /\n\| packed: vllm-schedule \| /);
      assert.match(page, /\n\| {2}\| Nexus, plain \| Nexus, packed \| vllm-schedule \|/);
      // 650 mJ a step beside 812 of the best peer; the packed result has no energy, so no column.
      assert.match(page, /\n\| tokens \| plain \|\n.*\n\| 64 \| 20 %; less in 1 of 1 \|\n/);
      assert.equal(written(page, folder), page);
      assert.throws(() => written("no tables", folder), /no <!-- figures/);
    }));

  const bench = path.join(folder, "..");
  it("the page of measurements quotes its results as they are", {
    skip: existsSync(path.join(bench, "results")) ? false : "no bench/results/ here",
  }, async () => {
    const { written } = await load("page.mjs");
    const page = readFileSync(path.join(bench, "README.md"), "utf8");
    assert.equal(page, written(page, bench), "run node bench/report/page.mjs");
  });

  it("files that are none are refused with a line", () => {
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
