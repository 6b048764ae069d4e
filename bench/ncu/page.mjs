/**
 * Reads what Nsight Compute prints (`ncu --csv --page raw`). Runs nothing; profile.mjs does.
 *
 * The raw page has a column per metric, a line of units under the header, and a line per
 * kernel in the order of the launches. Around them stand lines of other kinds ("==PROF== ...").
 */

/**
 * Units by what is measured, and what they are of the unit that figures are in. `--print-units
 * base` gives the plain ones, but ncu's prefixes are understood, too, and the names of older versions.
 */
const UNITS = {
  bytes: { byte: 1, kbyte: 1e3, mbyte: 1e6, gbyte: 1e9, tbyte: 1e12 },
  microseconds: {
    ns: 1e-3,
    nsecond: 1e-3,
    us: 1,
    usecond: 1,
    ms: 1e3,
    msecond: 1e3,
    s: 1e6,
    second: 1e6,
  },
  hertz: {
    hz: 1,
    khz: 1e3,
    mhz: 1e6,
    ghz: 1e9,
    "cycle/s": 1,
    "cycle/second": 1,
    "cycle/us": 1e6,
    "cycle/usecond": 1e6,
    "cycle/ns": 1e9,
    "cycle/nsecond": 1e9,
  },
  /** Of 1. */
  share: { "%": 0.01 },
};
/** Blocks, instructions, registers of a thread: whatever is counted. */
const COUNT = "count";

/**
 * The kernels in the order of their launches: name, and text and unit of every other column.
 *
 * @param needed columns that must be there
 * @returns {{ kernel: string, columns: Map<string, { text: string, unit: string }> }[]}
 * @throws Error if a column is missing
 */
export function readPage(page, needed = []) {
  const kernels = [];
  let names;
  let units;
  for (const line of page.split(/\r?\n/)) {
    if (!line.startsWith('"')) continue;
    const cells = cellsOf(line);
    if (cells[0] === "ID") {
      names = cells;
      units = undefined;
      for (const name of ["Kernel Name", ...needed]) {
        if (!names.includes(name)) throw new Error(`The profile has no column "${name}".`);
      }
    } else if (names !== undefined && units === undefined) {
      units = cells;
    } else if (names !== undefined) {
      const columns = new Map(
        names.map((name, i) => [name, { text: cells[i] ?? "", unit: units[i] ?? "" }]),
      );
      kernels.push({ kernel: columns.get("Kernel Name").text, columns });
    }
  }
  return kernels;
}

/** Whether a cell holds a number: ncu writes "n/a" or nothing where it could not count. */
export function isRead({ text }) {
  return /^\d+(\.\d+)?(e[+-]?\d+)?$/i.test(text.replaceAll(",", ""));
}

/**
 * A cell as a number.
 *
 * @param measure bytes, microseconds, hertz, share or count
 * @param what the cell is, for messages
 * @throws Error if it holds none, or one in units of something else
 */
export function numberIn({ text, unit }, measure, what) {
  const factor = measure === COUNT ? 1 : UNITS[measure][unit.toLowerCase()];
  if (factor === undefined) throw new Error(`The unit of ${what} is "${unit}".`);
  if (!isRead({ text })) throw new Error(`${what} could not be read: "${text}".`);
  return Number(text.replaceAll(",", "")) * factor;
}

/** Cells of one line; a quoted cell may hold commas, and quotes written twice. */
function cellsOf(line) {
  return [...line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,"]*))/g)].map(
    ([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain,
  );
}
