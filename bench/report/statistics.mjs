/** Order statistics and means of measurements: the package's, and two more. Knows nothing of what was measured. */

import { median, quantile } from "../../dist/src/cli/statistics.js";

export { mean, median, quantile } from "../../dist/src/cli/statistics.js";

/** Distance from the first to the last decile, as a share of the median. */
export function spread(values) {
  return (quantile(values, 0.9) - quantile(values, 0.1)) / median(values);
}

/** The mean of ratios: what halves and what doubles cancel out. */
export function geometricMean(values) {
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}
