/** Order statistics and means of measurements. Knows nothing of what was measured. */

/** The value a share `p` of the way through the sorted values, between neighbours in proportion. */
export function quantile(values, p) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = p * (sorted.length - 1);
  const below = sorted[Math.floor(at)];
  const above = sorted[Math.ceil(at)];
  return below + (above - below) * (at - Math.floor(at));
}

export function median(values) {
  return quantile(values, 0.5);
}

export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Distance from the first to the last decile, as a share of the median. */
export function spread(values) {
  return (quantile(values, 0.9) - quantile(values, 0.1)) / median(values);
}

/** The mean of ratios: what halves and what doubles cancel out. */
export function geometricMean(values) {
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}
