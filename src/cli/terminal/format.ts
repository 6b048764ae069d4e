/** Numbers and text as people read them: short, with units, in at most 80 columns. */

/** Reports are written for this width, whatever the terminal's. */
export const LINE_WIDTH = 80;

/** Three significant digits, or all digits of a larger whole part, with thousands separated. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const digits = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value))) + 1;
  return value.toLocaleString("en-US", {
    maximumFractionDigits: Number.isInteger(value) ? 0 : Math.min(20, Math.max(0, 3 - digits)),
    useGrouping: true,
  });
}

/** Bytes in the largest binary unit that leaves a value of 1 or more. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${formatNumber(value)} ${units[unit]}`;
}

/** Seconds as us, ms or s. */
export function formatSeconds(seconds: number): string {
  if (seconds >= 1) return `${formatNumber(seconds)} s`;
  if (seconds >= 1e-3) return `${formatNumber(seconds * 1e3)} ms`;
  return `${formatNumber(seconds * 1e6)} us`;
}

/** A share of 1 in percent, one decimal. */
export function formatShare(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}

/** `1 expert`, `2 experts`. */
export function plural(count: number, noun: string): string {
  return `${formatNumber(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Whole numbers with runs joined: `0-3, 7, 9-10`. */
export function formatRanges(ascending: readonly number[]): string {
  const parts: string[] = [];
  for (let i = 0; i < ascending.length; ) {
    let end = i;
    while (ascending[end + 1] === (ascending[end] as number) + 1) end++;
    parts.push(end === i ? `${ascending[i]}` : `${ascending[i]}-${ascending[end]}`);
    i = end + 1;
  }
  return parts.join(", ");
}

/** Breaks a text at spaces so that no line is wider than `width`; continuation lines begin with `indent` spaces. */
export function wrap(text: string, options: { indent?: number; width?: number } = {}): string[] {
  const { indent = 0, width = LINE_WIDTH } = options;
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/).filter((each) => each !== "")) {
    const joined = line === "" ? word : `${line}${line.trim() === "" ? "" : " "}${word}`;
    if (joined.length <= width || line.trim() === "") {
      line = joined;
      continue;
    }
    lines.push(line);
    line = `${" ".repeat(indent)}${word}`;
  }
  if (line !== "") lines.push(line);
  // A word longer than a line (a path, say) is cut rather than left to spoil the layout.
  return lines.flatMap((each) => chunks(each, width));
}

function chunks(text: string, width: number): string[] {
  const parts: string[] = [];
  for (let i = 0; i < text.length; i += width) parts.push(text.slice(i, i + width));
  return parts;
}
