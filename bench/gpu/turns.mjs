/**
 * What a change does to steps: builds of Nexus in turn on one GPU, each in a process of its own.
 *
 *   node bench/gpu/turns.mjs --cells CELL,... [--rounds N] [--out FILE.json] NAME=FOLDER NAME=FOLDER...
 *
 * A folder is a copy of the project, built (dist/, bench/, kernels/bundle/, node_modules/ where Node finds them); cells are
 * those of steps.mjs. Prints for every cell what each round of each build took, and how much more or less than the first
 * build's best the others' best is. Rounds of one build tell how much of that is noise.
 */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseCell } from "./steps.mjs";

const STEPS = fileURLToPath(new URL("steps.mjs", import.meta.url));
const USAGE =
  "usage: node bench/gpu/turns.mjs --cells CELL,... [--rounds N] [--out FILE.json] NAME=FOLDER NAME=FOLDER...";

function refuse(message) {
  console.error(message);
  process.exit(2);
}

/** One round of one build. @throws Error if it did not end well */
function timeBuild(folder, cells) {
  const { status, stdout } = spawnSync(process.execPath, [STEPS, folder, ...cells], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (status !== 0) throw new Error(`the build in ${folder} failed (${status})`);
  const lines = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  return Object.fromEntries(lines.map(({ cell, us }) => [cell, us]));
}

/**
 * @param rounds [{ build, us: { cell: microseconds } }], in the order in which they ran
 * @returns a line for each cell
 */
export function comparison(rounds) {
  const builds = [...new Set(rounds.map(({ build }) => build))];
  const cells = [...new Set(rounds.flatMap(({ us }) => Object.keys(us)))];
  return cells.map((cell) => {
    const times = builds.map((name) =>
      rounds.flatMap(({ build, us }) => (build === name && cell in us ? [us[cell]] : [])),
    );
    const [first, ...others] = times.map((each) => Math.min(...each));
    const changes = others.map((best) => `${((best / first - 1) * 100).toFixed(1)} %`);
    const listed = builds.map((name, i) => `${name} ${times[i].join(" ")}`);
    return `${cell}: ${listed.join("; ")}; ${changes.join(", ")}`;
  });
}

function main(argv) {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      cells: { type: "string", default: "" },
      rounds: { type: "string", default: "2" },
      out: { type: "string" },
    },
  });
  const cells = values.cells.split(",").filter(Boolean);
  const builds = positionals.map((text) => text.split("="));
  const rounds = Number(values.rounds);
  const fits =
    cells.length > 0 &&
    builds.length > 1 &&
    builds.every((each) => each.length === 2 && each[1] !== "");
  if (!fits || !(Number.isInteger(rounds) && rounds > 0)) refuse(USAGE);
  try {
    for (const cell of cells) parseCell(cell);
  } catch (error) {
    refuse(error.message);
  }
  const date = new Date().toISOString();
  const done = [];
  for (let round = 0; round < rounds; round++) {
    for (const [build, folder] of builds) done.push({ build, us: timeBuild(folder, cells) });
  }
  for (const line of comparison(done)) console.log(line);
  if (values.out !== undefined) {
    writeFileSync(values.out, `${JSON.stringify({ date, unit: "us", rounds: done })}\n`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main(process.argv.slice(2));
