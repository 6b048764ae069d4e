/** Numbers as the report shows them: as many digits as the measurement can bear. */

/** Three significant digits, or all digits of a larger whole part, with thousands separated. */
export function number(value) {
  if (value === 0) return "0";
  const digits = Math.floor(Math.log10(Math.abs(value))) + 1;
  const decimals = Math.min(20, Math.max(0, 3 - digits));
  return value.toLocaleString("en-US", {
    minimumFractionDigits: Math.min(2, decimals),
    maximumFractionDigits: decimals,
  });
}

export function ratio(value) {
  return `${value.toFixed(2)}x`;
}

/** A ratio beside a bar: another digit where two would read as the bar itself. */
export function ratioBeside(bar, value) {
  const short = ratio(value);
  return short === ratio(bar) && value !== bar ? `${value.toFixed(3)}x` : short;
}

/** A share of 1 in percent, to a tenth where a percent would be coarse. */
export function percent(share) {
  const value = share * 100;
  return `${value.toFixed(Math.abs(value) < 10 ? 1 : 0)} %`;
}

/** `1 cell`, `2 cells`. */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** A cell of the benchmark in words. */
export function cellName({ shape, tokens, routing }) {
  return `${shape}, ${plural(tokens, "token")}, ${routing}`;
}
