/** What becomes of the counters of whole steps (bench/counters/figures.mjs), and of what ncu refuses (bench/ncu/profile.mjs). */

import assert from "node:assert/strict";
import { describe, it } from "node:test";

type Kernel = Readonly<Record<string, string | number | undefined>>;
interface Absent {
  readonly metric: string;
  readonly reason: string;
}

const load = (name: string) => import(new URL(`../../../bench/${name}`, import.meta.url).href);
const { FIGURES, METRICS, stepsOf } = (await load("counters/figures.mjs")) as {
  FIGURES: Record<string, { metric: string; measure: string }>;
  METRICS: string[];
  stepsOf(page: string, dataSheetTBs: number | null): { steps: Kernel[][]; absent: Absent[] };
};
const { unknownMetrics } = (await load("ncu/profile.mjs")) as {
  unknownMetrics(output: string, metrics: readonly string[]): Absent[];
};
const { CELLS, parseCell } = await load("counters/cells.mjs");

const UNITS: Readonly<Record<string, string>> = {
  microseconds: "ns",
  hertz: "hz",
  bytes: "byte",
  share: "%",
  count: "register/thread",
};
/** What every counter says unless a test says otherwise. */
const USUAL: Readonly<Record<string, string>> = {
  microseconds: "250,000",
  hertz: "1755000000",
  bytes: "400000000",
  share: "25",
  count: "4",
};

/** A raw page of kernels, each with the cells that differ from the usual by metric. */
function page(
  kernels: readonly (readonly [string, Readonly<Record<string, string>>?])[],
  metrics: readonly string[] = METRICS,
): string {
  const of = Object.values(FIGURES);
  const measure = (metric: string) => of.find((each) => each.metric === metric)?.measure as string;
  const line = (cells: readonly string[]) => cells.map((cell) => `"${cell}"`).join(",");
  return [
    "==PROF== Connected to process 71 (/usr/bin/node)",
    line(["ID", "Kernel Name", "Block Size", "Grid Size", ...metrics]),
    line(["", "", "", "", ...metrics.map((metric) => UNITS[measure(metric)] as string)]),
    ...kernels.map(([name, cells = {}], id) =>
      line([
        String(id),
        name,
        "(256, 1, 1)",
        "(132, 1, 1)",
        ...metrics.map((metric) => cells[metric] ?? (USUAL[measure(metric)] as string)),
      ]),
    ),
  ].join("\n");
}

const BUCKETED = ["route", "bucket", "project_many", "project_many", "combine"];
const named = (names: readonly string[]) => names.map((name) => [name] as const);

describe("counters of whole steps", () => {
  it("come step by step, with the products told apart", () => {
    const decoded = ["route", "decode_first", "decode_second"];
    const { steps, absent } = stepsOf(page(named([...decoded, ...BUCKETED])), 3.35);
    assert.deepEqual(
      steps.map((step) => step.map(({ label }) => label)),
      [
        decoded,
        [
          "route",
          "bucket",
          "project_many, first product",
          "project_many, second product",
          "combine",
        ],
      ],
    );
    assert.deepEqual(absent, []);
    assert.throws(
      () => stepsOf(page(named(["bucket"])), 3.35),
      /bucket ran before the first of route and decode_routing/,
    );
  });

  it("are in microseconds, bytes and shares of 1, of memory by the data sheet", () => {
    const text = page([["route", { "dram__bytes_write.sum": "18,750,000" }]]);
    const [kernel] = stepsOf(text, 3.35).steps[0] as [Kernel];
    assert.equal(kernel["us"], 250);
    assert.equal(kernel["smHertz"], 1.755e9);
    assert.equal(kernel["dramReadBytes"], 4e8);
    assert.equal(kernel["dramShare"], (4e8 + 18_750_000) / 250e6 / 3.35);
    assert.equal(kernel["tensorShare"], 0.25);
    assert.equal(kernel["registers"], 4);
    assert.deepEqual([kernel["grid"], kernel["block"]], ["(132, 1, 1)", "(256, 1, 1)"]);
    const [unknown] = stepsOf(text, null).steps[0] as [Kernel];
    assert.equal("dramShare" in unknown, false);
    const wrong = text.replace('"%"', '"sector"');
    assert.throws(() => stepsOf(wrong, 3.35), /unit of lts__throughput\S+ of route is "sector"/);
  });

  it("are absent with a reason, and no zeros, where ncu could not count", () => {
    const hits = "lts__t_sector_hit_rate.pct";
    const tensor = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed";
    const read = "dram__bytes_read.sum";
    const kernels = BUCKETED.map(
      (name) => [name, { [tensor]: "n/a", ...(name === "bucket" && { [read]: "" }) }] as const,
    );
    const known = METRICS.filter((metric) => metric !== hits);
    const { steps, absent } = stepsOf(page(kernels, known), 3.35);
    assert.deepEqual(
      absent.toSorted((a, b) => a.metric.localeCompare(b.metric)),
      [
        { metric: read, reason: 'ncu says "" (bucket)' },
        { metric: hits, reason: "ncu has no column of it" },
        { metric: tensor, reason: 'ncu says "n/a"' },
      ],
    );
    const [route, bucket] = steps[0] as [Kernel, Kernel];
    assert.equal("tensorShare" in route || "l2Hits" in route, false);
    assert.equal("dramReadBytes" in bucket || "dramShare" in bucket, false);
    assert.equal(route["dramReadBytes"], 4e8);
  });
});

describe("metrics that ncu does not know", () => {
  const asked = ["a__b.sum", "a__b.sum.pct_of_peak", "a__b_c.sum", "launch__d", "a__e.avg"];

  it("are told from what it says, as they were asked for or as a pattern", () => {
    const names = (line: string) => unknownMetrics(line, asked).map(({ metric }) => metric);
    const failed = "==ERROR== Failed to find metric";
    assert.deepEqual(names(`${failed} a__b.sum.pct_of_peak`), ["a__b.sum.pct_of_peak"]);
    assert.deepEqual(names(`${failed} a__b.sum`), ["a__b.sum"]);
    assert.deepEqual(names(`${failed} regex:^launch__d\\.(sum|min|max|avg)$`), ["launch__d"]);
    assert.deepEqual(names(`${failed} regex:^a__b\\.sum$`), ["a__b.sum"]);
    assert.deepEqual(names(`${failed} a__b`), ["a__b.sum", "a__b.sum.pct_of_peak"]);
    const [first] = unknownMetrics(`==PROF== x\n  y\n${failed} a__e.avg\r\n`, asked);
    assert.deepEqual(first, { metric: "a__e.avg", reason: `${failed} a__e.avg` });
  });

  it("are none where it fails for another reason", () => {
    for (const line of [
      "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access counters",
      "==ERROR== Failed to find metric z__z.sum",
      "==PROF== metric a__b.sum",
    ]) {
      assert.deepEqual(unknownMetrics(line, asked), []);
    }
  });
});

describe("cells to count", () => {
  it("are written as shape, tokens and routing", () => {
    assert.deepEqual(parseCell("qwen3-30b-a3b:4096:zipf:1.5"), {
      shape: "qwen3-30b-a3b",
      tokens: 4096,
      routing: "zipf:1.5",
    });
    for (const cell of CELLS) assert.ok(parseCell(cell).tokens > 0, cell);
    assert.throws(() => parseCell("nothing:1:uniform"), /no preset "nothing"/);
    assert.throws(() => parseCell("small:1"), /is no routing/);
    assert.throws(() => parseCell("small:0:uniform"), /has "0" tokens/);
  });
});
