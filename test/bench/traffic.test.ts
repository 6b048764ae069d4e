/** Reading the counters that Nsight Compute prints (bench/traffic/counters.mjs). */

import assert from "node:assert/strict";
import { test } from "node:test";

interface Counted {
  readonly kernel: string;
  readonly dramBytes: number;
  readonly l2Bytes: number;
}

interface Counters {
  parseCounters(text: string): Counted[];
  splitAtMarks(kernels: readonly Counted[], isMark: (kernel: string) => boolean): Counted[][];
  totalOf(kernels: readonly Counted[]): Omit<Counted, "kernel"> & { kernels: Counted[] };
}

const file = new URL("../../../bench/traffic/counters.mjs", import.meta.url);
const { parseCounters, splitAtMarks, totalOf }: Counters = await import(file.href);

/** A raw page as ncu prints it: notes, a header, units, a line per kernel. */
function page(units: readonly string[], kernels: readonly (readonly string[])[]): string {
  const metrics = ["dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum"];
  const line = (cells: readonly string[]) => cells.map((cell) => `"${cell}"`).join(",");
  return [
    "==PROF== Connected to process 71 (/usr/bin/node)",
    '==PROF== Profiling "route": 0%....100% - 2 passes',
    line(["ID", "Process ID", "Kernel Name", "Block Size", ...metrics]),
    line(["", "", "", "block", ...units]),
    ...kernels.map(([name = "", ...cells], id) =>
      line([String(id), "71", name, "(128, 1, 1)", ...cells]),
    ),
    "==PROF== Disconnected from process 71",
  ].join("\n");
}

const BYTES = ["byte", "byte", "byte"];

test("counters are read per kernel, in the order of the launches", () => {
  const text = page(BYTES, [
    ["route", "262144", "0", "1,310,720"],
    ['void sort<(int)128, char>(T1 *, ""x"")', "32", "64.5", "1e3"],
  ]);
  assert.deepEqual(parseCounters(text), [
    { kernel: "route", dramBytes: 262144, l2Bytes: 1310720 },
    { kernel: 'void sort<(int)128, char>(T1 *, "x")', dramBytes: 96.5, l2Bytes: 1000 },
  ]);
});

test("units with a prefix become bytes, others are refused", () => {
  const [counted] = parseCounters(page(["Kbyte", "byte", "Mbyte"], [["route", "2.5", "3", "1"]]));
  assert.deepEqual(counted, { kernel: "route", dramBytes: 2503, l2Bytes: 1e6 });
  const sectors = page(["sector", "byte", "byte"], [["route", "1", "1", "1"]]);
  assert.throws(() => parseCounters(sectors), /unit of dram__bytes_read.sum of route is "sector"/);
});

test("a counter that could not be read, or was not asked for, is no zero", () => {
  for (const nothing of ["n/a", "", "nan", "-1"]) {
    const text = page(BYTES, [["route", nothing, "1", "1"]]);
    assert.throws(() => parseCounters(text), /could not be read/, nothing);
  }
  assert.throws(() => parseCounters('"ID","Kernel Name"\n'), /no column "dram__bytes_read.sum"/);
  assert.deepEqual(parseCounters("==PROF== No kernels were profiled.\n"), []);
});

test("several tables in one log are read with headers of their own", () => {
  const text = [
    page(BYTES, [["route", "1", "2", "3"]]),
    page(["Kbyte", "Kbyte", "Kbyte"], [["bucket", "1", "2", "3"]]),
  ].join("\n");
  assert.deepEqual(
    parseCounters(text).map(({ dramBytes }) => dramBytes),
    [3, 3000],
  );
});

test("kernels are split at marks and added up", () => {
  const counted = (kernel: string, bytes: number): Counted => ({
    kernel,
    dramBytes: bytes,
    l2Bytes: 10 * bytes,
  });
  const isMark = (kernel: string) => kernel === "mark";
  const [softmax, topK, sort, mark] = [
    counted("softmax", 1),
    counted("top k", 2),
    counted("sort", 4),
    counted("mark", 100),
  ];
  const groups = splitAtMarks([softmax, topK, mark, sort, mark, mark], isMark);
  assert.deepEqual(groups, [[softmax, topK], [sort], []]);
  assert.deepEqual(totalOf([softmax, topK]), {
    dramBytes: 3,
    l2Bytes: 30,
    kernels: [softmax, topK],
  });
  assert.throws(() => splitAtMarks([mark, sort], isMark), /1 kernels follow the last mark/);
});
