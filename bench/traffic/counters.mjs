/**
 * Reads what Nsight Compute prints (`ncu --csv --page raw`) and adds it up. Runs nothing;
 * measure.mjs does.
 *
 * The raw page has a column per metric, a line of units under the header, and a line per
 * kernel in the order of the launches. Around them stand lines of other kinds ("==PROF== ...").
 */

/** The counters that are asked for: name of a figure, and the metrics that it is the sum of. */
export const FIGURES = {
  /** Between L2 and device memory. */
  dramBytes: ["dram__bytes_read.sum", "dram__bytes_write.sum"],
  /** All that L2 serves, from whichever unit. */
  l2Bytes: ["lts__t_bytes.sum"],
};

export const METRICS = Object.values(FIGURES).flat();

/** In bytes; `--print-units base` gives plain bytes, but ncu's prefixes are understood, too. */
const UNITS = { byte: 1, Kbyte: 1e3, Mbyte: 1e6, Gbyte: 1e9, Tbyte: 1e12 };

/**
 * The kernels in the order of their launches.
 *
 * @returns {{ kernel: string, dramBytes: number, l2Bytes: number }[]}
 * @throws Error if a column is missing or a counter could not be read
 */
export function parseCounters(text) {
  const kernels = [];
  let columns;
  let units;
  for (const line of text.split(/\r?\n/)) {
    if (!line.startsWith('"')) continue;
    const cells = parseLine(line);
    if (cells[0] === "ID") {
      columns = new Map(cells.map((name, i) => [name, i]));
      units = undefined;
      for (const name of ["Kernel Name", ...METRICS]) {
        if (!columns.has(name)) throw new Error(`The profile has no column "${name}".`);
      }
    } else if (columns !== undefined && units === undefined) {
      units = cells;
    } else if (columns !== undefined) {
      const kernel = cells[columns.get("Kernel Name")];
      const bytes = (metric) =>
        inBytes(cells, units, columns.get(metric), `${metric} of ${kernel}`);
      const figures = Object.entries(FIGURES).map(([name, metrics]) => [
        name,
        metrics.reduce((sum, metric) => sum + bytes(metric), 0),
      ]);
      kernels.push({ kernel, ...Object.fromEntries(figures) });
    }
  }
  return kernels;
}

/** The runs of kernels that end with one that `isMark`; marks are left out. @throws Error if kernels follow the last mark */
export function splitAtMarks(kernels, isMark) {
  const groups = [];
  let open = [];
  for (const each of kernels) {
    if (isMark(each.kernel)) {
      groups.push(open);
      open = [];
    } else {
      open.push(each);
    }
  }
  if (open.length > 0) throw new Error(`${open.length} kernels follow the last mark.`);
  return groups;
}

/** The figures of several kernels together, and the kernels. */
export function totalOf(kernels) {
  const sum = (name) => kernels.reduce((total, each) => total + each[name], 0);
  const figures = Object.keys(FIGURES).map((name) => [name, sum(name)]);
  return { ...Object.fromEntries(figures), kernels };
}

function inBytes(cells, units, column, what) {
  const factor = UNITS[units[column]];
  if (factor === undefined) throw new Error(`The unit of ${what} is "${units[column]}".`);
  const digits = (cells[column] ?? "").replaceAll(",", "");
  if (!/^\d+(\.\d+)?(e[+-]?\d+)?$/i.test(digits)) {
    throw new Error(`${what} could not be read: "${cells[column]}".`);
  }
  return Number(digits) * factor;
}

/** Cells of one line; a quoted cell may hold commas, and quotes written twice. */
function parseLine(line) {
  return [...line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,"]*))/g)].map(
    ([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain,
  );
}
