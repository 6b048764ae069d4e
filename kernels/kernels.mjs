/**
 * The command line of the kernels' build.
 *
 *     npm run kernels            compile, and pack into kernels/bundle
 *     npm run kernels:check      is kernels/bundle what the sources give? 1 if not, naming what differs
 *
 * The check first holds the bundle against its own hashes and those of the sources, which
 * takes no time, and then compiles everything anew. Without Python, a registry to have
 * Triton from, or the right to fix addresses (see build.py), it ends with 2; `--if-possible`
 * makes that 0, saying what was left out.
 * `--jobs N` compiles N kernels at a time; as many as there are processors otherwise.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import {
  BUNDLE,
  committed,
  inconsistencies,
  MANIFEST,
  pack,
  rebuiltDifferences,
  write,
} from "./pack.mjs";
import { BuildNotPossible, build } from "./triton.mjs";

/** Where build.py puts its files, for kernels/triton/launch.py and the tests beside it. */
const BUILT = fileURLToPath(new URL("triton/bundle", import.meta.url));
const DIFFERENT = 1;
const NOT_POSSIBLE = 2;
/** Of the differences, the most that are named. */
const MOST_NAMED = 40;

function kilobytes(bytes) {
  return `${Math.round(bytes / 1000)} kB`;
}

function make(jobs) {
  build(BUILT, { jobs });
  const files = write(pack(BUILT));
  for (const { name, bytes } of files) console.log(`kernels/bundle/${name}: ${kilobytes(bytes)}`);
  console.log(`${kilobytes(files.reduce((sum, { bytes }) => sum + bytes, 0))} in all`);
}

/** Ends the process if there are any. */
function fail(differences) {
  if (differences.length === 0) return;
  const named = differences.slice(0, MOST_NAMED);
  const others = differences.length - named.length;
  console.error(named.join("\n") + (others > 0 ? `\nand ${others} more` : ""));
  console.error("kernels/bundle is not what the sources give. Build it with: npm run kernels");
  process.exit(DIFFERENT);
}

function readCommitted() {
  try {
    return committed();
  } catch (error) {
    return fail([`kernels/bundle/manifest.json cannot be read: ${error.message}`]);
  }
}

function check(jobs) {
  const manifest = readCommitted();
  fail(inconsistencies(manifest));
  console.log(
    `kernels/bundle fits its hashes and its sources (${manifest.kernels.length} kernels)`,
  );
  const folder = mkdtempSync(join(tmpdir(), "nexus-kernels-"));
  let found = [];
  try {
    build(folder, { jobs, like: join(BUNDLE, MANIFEST) });
    found = rebuiltDifferences(manifest, pack(folder).manifest);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  fail(found);
  console.log("compiled anew, the kernels are the same");
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { "if-possible": { type: "boolean" }, jobs: { type: "string" } },
});
const commands = { build: make, check };
const command = commands[positionals[0]];
if (command === undefined || positionals.length !== 1) {
  console.error("usage: node kernels/kernels.mjs build | check [--if-possible] [--jobs N]");
  process.exit(NOT_POSSIBLE);
}
try {
  command(values.jobs);
} catch (error) {
  if (!(error instanceof BuildNotPossible)) throw error;
  console.error(error.message);
  if (!values["if-possible"]) process.exit(NOT_POSSIBLE);
  console.log("the kernels were not compiled anew");
}
