/** A table on the console: columns lined up, the first ones to the left where they are words. */

/**
 * @param header titles
 * @param rows texts, as many as there are titles
 * @param words how many of the first columns are set to the left
 */
export function printTable(header, rows, words = 0) {
  const all = [header, ...rows];
  const widths = header.map((_, i) => Math.max(...all.map((row) => row[i].length)));
  const padded = (text, i) => (i < words ? text.padEnd(widths[i]) : text.padStart(widths[i]));
  for (const row of all) console.log(row.map(padded).join("  "));
}
