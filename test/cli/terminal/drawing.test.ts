/** Bars, tables, charts, colour and the progress bar. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { bar } from "../../../src/cli/terminal/bar.ts";
import { loadChart } from "../../../src/cli/terminal/load-chart.ts";
import { Progress } from "../../../src/cli/terminal/progress.ts";
import { styleFor } from "../../../src/cli/terminal/style.ts";
import { table } from "../../../src/cli/terminal/table.ts";

const plain = styleFor({ isTTY: false }, {});
const coloured = styleFor({ isTTY: true }, {});
// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what is looked for
const ESCAPES = /\u001b\[\d+m/g;

test("colour needs a terminal and no NO_COLOR", () => {
  assert.notEqual(coloured("red", "x"), "x");
  assert.equal(coloured("red", "x").replace(ESCAPES, ""), "x");
  assert.notEqual(styleFor({ isTTY: true }, { NO_COLOR: "" })("red", "x"), "x");
  assert.equal(styleFor({ isTTY: true }, { NO_COLOR: "1" })("red", "x"), "x");
  assert.equal(styleFor({ isTTY: false }, {})("red", "x"), "x");
  assert.equal(styleFor({}, {})("red", "x"), "x");
  assert.equal(styleFor({ isTTY: true }, { TERM: "dumb" })("red", "x"), "x");
});

test("a bar is as long as its share, and never invisible", () => {
  assert.equal(bar(0, 10), "");
  assert.equal(bar(1, 10), "██████████");
  assert.equal(bar(0.5, 10), "█████");
  assert.equal(bar(0.55, 10), "█████▌");
  assert.equal(bar(1e-9, 10), "▏");
  assert.equal(bar(7, 3), "███");
  assert.equal(bar(-1, 3), "");
});

test("a table lines up, with and without colour", () => {
  const columns = [{ title: "name" }, { title: "n", align: "right" as const }, { title: "note" }];
  const rows = [
    ["a", "1", { text: "first", format: "red" as const }],
    [{ text: "longer", format: "red" as const }, "20"],
  ];
  const lines = table(plain, columns, rows);
  assert.deepEqual(lines, ["  name     n  note", "  a        1  first", "  longer  20"]);
  const stripped = table(coloured, columns, rows).map((line) => line.replace(ESCAPES, ""));
  assert.deepEqual(
    stripped.map((line) => line.trimEnd()),
    lines,
  );
});

test("a load chart shows the busiest first and sums up the rest", () => {
  const experts = [
    { expert: 0, share: 0.1, heat: "cold" as const },
    { expert: 1, share: 0.6, heat: "hot" as const },
    { expert: 2, share: 0.3, heat: "warm" as const },
  ];
  const [first, second, rest] = loadChart(plain, experts, 2) as [string, string, string];
  assert.match(first, /^ {2}expert {3}1 {2}█{36} +60\.0 % {2}hot$/);
  assert.match(second, /^ {2}expert {3}2 {2}█{18} +30\.0 % {2}warm$/);
  assert.match(rest, /1 other expert together +10\.0 % {2}1 cold$/);
  assert.equal(loadChart(plain, experts, 3).length, 3);
  assert.match(loadChart(plain, [{ expert: 0, share: 0, heat: "cold" }], 3)[0] ?? "", / 0\.0 %/);
});

class Screen {
  readonly isTTY: boolean;
  written = "";

  constructor(isTTY: boolean) {
    this.isTTY = isTTY;
  }

  write(text: string): boolean {
    this.written += text;
    return true;
  }
}

test("a progress bar is drawn on a terminal only, and taken away again", () => {
  const pipe = new Screen(false);
  {
    using progress = new Progress(pipe as unknown as NodeJS.WriteStream);
    progress.show(0.5, "half");
  }
  assert.equal(pipe.written, "");

  const dumb = new Screen(true);
  {
    using progress = new Progress(dumb as unknown as NodeJS.WriteStream, { TERM: "dumb" });
    progress.show(0.5, "half");
  }
  assert.equal(dumb.written, "");

  const screen = new Screen(true);
  {
    using progress = new Progress(screen as unknown as NodeJS.WriteStream, {});
    progress.show(0.5, `half ${"x".repeat(200)}`);
    assert.match(screen.written, /█{15} +50 % {2}half x+$/);
    assert.ok(screen.written.replace("\r\u001b[2K", "").length < 80);
    const drawn = screen.written;
    progress.show(0.51, "too soon to draw again");
    assert.equal(screen.written, drawn);
  }
  assert.ok(screen.written.endsWith("\r\u001b[2K"));
});
