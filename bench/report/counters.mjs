/** The part of a report that says what limits each kernel, by hardware counters: a table a cell, a row a kernel. */

import { heading, list, NONE, paragraph, right, table } from "./document.mjs";
import { cellName, number, percent } from "./format.mjs";

const megabytes = (bytes) => number(bytes / 1e6);

/** Title of a column, the figure of a kernel that it shows, and how. */
const COLUMNS = [
  ["us", "us", number],
  ["of DRAM", "dramShare", percent],
  ["of L2", "l2Share", percent],
  ["of the way to SMs", "toSmShare", percent],
  ["tensor pipe", "tensorShare", percent],
  ["banks read", "bankReadShare", percent],
  ["banks written", "bankWriteShare", percent],
  ["issue slots", "issueShare", percent],
  ["MB read", "dramReadBytes", megabytes],
  ["MB written", "dramWrittenBytes", megabytes],
  ["MB to SMs", "toSmBytes", megabytes],
  ["L2 hits", "l2Hits", percent],
  ["registers", "registers", String],
  ["SM MHz", "smHertz", (hertz) => number(hertz / 1e6)],
];

/** @param counters results of the measurement by counters */
export function counterBlocks(counters) {
  if (counters.length === 0) return [];
  return [
    heading(2, "Counters"),
    paragraph(
      "Kernels of a whole step one by one, by the card's own counters, each beginning with empty caches on a rested card: shares are what to read, not times. Of DRAM: bytes of device memory over the time at the data sheet's bandwidth. L2, the way from it to the multiprocessors, the tensor pipe and the banks of shared memory: of what each can do at the clock of the pass, over the kernel's whole time, so that multiprocessors without work count. Issue slots: while there is work.",
    ),
    ...counters.flatMap(({ cells, absent = [] }) => [
      ...cells.flatMap((cell) => [heading(3, cellName(cell)), kernelTable(cell)]),
      ...absentBlocks(absent),
    ]),
  ];
}

function kernelTable({ kernels }) {
  return table(
    [{ title: "kernel" }, ...COLUMNS.map(([title]) => right(title))],
    kernels.map((kernel) => [
      kernel.label,
      ...COLUMNS.map(([, key, show]) => (kernel[key] === undefined ? NONE : show(kernel[key]))),
    ]),
  );
}

function absentBlocks(absent) {
  if (absent.length === 0) return [];
  return [
    paragraph("Not counted, and why:"),
    list(absent.map(({ metric, reason }) => `${metric}: ${reason}`)),
  ];
}
