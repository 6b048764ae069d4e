/**
 * Reports on results of the peer benchmark.
 *
 *   node bench/report/main.mjs RESULT.json [MORE.json ...] --out DIR
 *
 * Several results are parts of one benchmark on one device; files of the drift, traffic
 * and counter measurements and of `nexus bench --ablation --json` may stand among them. Other files of
 * JSON are left out and named on standard error. Writes
 * DIR/report.md with its charts (*.svg) beside it, and DIR/index.html with everything in it. Needs dist/.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { toHtml, toMarkdown } from "./document.mjs";
import { merge } from "./merge.mjs";
import { ResultError, readResults } from "./read.mjs";
import { reportOf } from "./report.mjs";

const EXIT_BAD_INPUT = 2;

function main() {
  const { values, positionals: files } = parseArgs({
    options: { out: { type: "string" } },
    allowPositionals: true,
  });
  if (values.out === undefined || files.length === 0) {
    throw new ResultError(
      "usage: node bench/report/main.mjs RESULT.json [MORE.json ...] --out DIR",
    );
  }
  const { results, others } = readResults(files);
  if (others.length > 0)
    console.error(`Left out, nothing that a report shows: ${others.join(", ")}`);
  const { title, blocks } = reportOf(merge(results));
  mkdirSync(values.out, { recursive: true });
  const write = (name, content) => writeFileSync(path.join(values.out, name), content);
  for (const { kind, file, svg } of blocks) if (kind === "figure") write(file, `${svg}\n`);
  write("report.md", toMarkdown(blocks));
  write("index.html", toHtml(blocks, title));
  console.log(`${path.join(values.out, "report.md")} and index.html`);
}

try {
  main();
} catch (error) {
  if (!(error instanceof ResultError) && error.code?.startsWith("ERR_PARSE_ARGS") !== true)
    throw error;
  console.error(error.message);
  process.exitCode = EXIT_BAD_INPUT;
}
