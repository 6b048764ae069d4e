/** Columns of text, padded to line up. Colour is put on after padding, so it cannot shift a column. */

import type { Format, Style } from "./style.ts";

/** A cell: text, or text with a format. */
export type Cell = string | { readonly text: string; readonly format: Format };

export interface Column {
  readonly title: string;
  readonly align?: "left" | "right";
}

/** Lines of a table: titles, then rows, each two spaces in and two spaces between columns. */
export function table(
  style: Style,
  columns: readonly Column[],
  rows: readonly (readonly Cell[])[],
): string[] {
  const widths = columns.map((column, i) =>
    Math.max(column.title.length, ...rows.map((row) => textOf(row[i]).length)),
  );
  const line = (cells: readonly Cell[]) => {
    const parts = columns.map((column, i) => {
      const cell = cells[i] ?? "";
      const width = widths[i] as number;
      const text = textOf(cell);
      // The last column is not padded: trailing spaces only widen the line.
      const isLast = i === columns.length - 1;
      const padded =
        column.align === "right" ? text.padStart(width) : isLast ? text : text.padEnd(width);
      return typeof cell === "string" ? padded : style(cell.format, padded);
    });
    return `  ${parts.join("  ")}`.trimEnd();
  };
  const titles = columns.map((column) => ({ text: column.title, format: "dim" as const }));
  return [line(titles), ...rows.map(line)];
}

function textOf(cell: Cell | undefined): string {
  return cell === undefined ? "" : typeof cell === "string" ? cell : cell.text;
}
