/**
 * A report as a list of blocks, and its two forms: Markdown with charts beside it, and one
 * page of HTML with the charts inside. Texts may hold **strong** words, nothing else.
 *
 * Blocks: heading, paragraph, list, table, figure; made by the functions of these names.
 */

export const heading = (level, text) => ({ kind: "heading", level, text });
export const paragraph = (text) => ({ kind: "paragraph", text });
export const list = (items) => ({ kind: "list", items });
/** @param columns [{ title, align?: "right", wraps?: true where texts may be long }] @param rows lists of texts */
export const table = (columns, rows) => ({ kind: "table", columns, rows });
/** A column of figures. */
export const right = (title) => ({ title, align: "right" });
/** In a table, for what is not known. */
export const NONE = "-";
/** @param file name of the chart beside the Markdown @param svg the chart itself */
export const figure = (file, title, svg) => ({ kind: "figure", file, title, svg });

const MARKDOWN = {
  heading: ({ level, text }) => `${"#".repeat(level)} ${text}`,
  paragraph: ({ text }) => text,
  list: ({ items }) => items.map((item) => `- ${item}`).join("\n"),
  table: ({ columns, rows }) => {
    const line = (cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
    const rule = columns.map(({ align }) => (align === "right" ? "---:" : "---"));
    return [line(columns.map(({ title }) => title)), line(rule), ...rows.map(line)].join("\n");
  },
  figure: ({ file, title }) => `![${title}](${file})`,
};

export function toMarkdown(blocks) {
  return `${blocks.map((block) => MARKDOWN[block.kind](block)).join("\n\n")}\n`;
}

const HTML = {
  heading: ({ level, text }) => `<h${level}>${inline(text)}</h${level}>`,
  paragraph: ({ text }) => `<p>${inline(text)}</p>`,
  list: ({ items }) => `<ul>${items.map((item) => `<li>${inline(item)}</li>`).join("\n")}</ul>`,
  table: ({ columns, rows }) => {
    const cells = (texts, tag) =>
      texts.map((text, i) => `<${tag}${classOf(columns[i])}>${inline(text)}</${tag}>`).join("");
    const head = cells(
      columns.map(({ title }) => title),
      "th",
    );
    const body = rows.map((row) => `<tr>${cells(row, "td")}</tr>`).join("\n");
    // Wider than the page it scrolls by itself.
    return `<div class="wide"><table><thead><tr>${head}</tr></thead><tbody>\n${body}\n</tbody></table></div>`;
  },
  figure: ({ svg }) => `<figure>${svg}</figure>`,
};

function classOf({ align, wraps } = {}) {
  return align === "right" ? ' class="right"' : wraps ? ' class="wraps"' : "";
}

function inline(text) {
  return escapeMarkup(text).replace(/\*\*(.+?)\*\*/g, "<strong>$1</strong>");
}

export function escapeMarkup(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return String(text).replace(/[&<>"]/g, (character) => entities[character]);
}

const STYLE = `
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --page: #ffffff; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --page: #0d1117; --band: #151b23; }
}
body { margin: 2rem auto; padding: 0 1.5rem; max-width: 72rem; color: var(--ink); background: var(--page);
  font: 15px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 0.75rem; }
h1, h2 { padding-bottom: 0.3rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 60rem; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--band); }
.right { text-align: right; }
td.wraps { white-space: normal; }
`;

export function toHtml(blocks, title) {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeMarkup(title)}</title>
<style>${STYLE}</style>
</head>
<body>
${blocks.map((block) => HTML[block.kind](block)).join("\n")}
</body>
</html>
`;
}
