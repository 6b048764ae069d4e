/**
 * The counters of the routing traffic, kernel by kernel and added up. Runs nothing; measure.mjs
 * does.
 */

import { numberIn, readPage } from "../ncu/page.mjs";

/** The counters that are asked for: name of a figure, and the metrics that it is the sum of. */
export const FIGURES = {
  /** Between L2 and device memory. */
  dramBytes: ["dram__bytes_read.sum", "dram__bytes_write.sum"],
  /** All that L2 serves, from whichever unit. */
  l2Bytes: ["lts__t_bytes.sum"],
};

export const METRICS = Object.values(FIGURES).flat();

/**
 * The kernels in the order of their launches.
 *
 * @param page as ncu prints it
 * @returns {{ kernel: string, dramBytes: number, l2Bytes: number }[]}
 * @throws Error if a column is missing or a counter could not be read
 */
export function parseCounters(page) {
  return readPage(page, METRICS).map(({ kernel, columns }) => {
    const bytes = (metric) => numberIn(columns.get(metric), "bytes", `${metric} of ${kernel}`);
    const figures = Object.entries(FIGURES).map(([name, metrics]) => [
      name,
      metrics.reduce((sum, metric) => sum + bytes(metric), 0),
    ]);
    return { kernel, ...Object.fromEntries(figures) };
  });
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
