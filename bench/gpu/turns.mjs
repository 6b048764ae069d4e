/**
 * What a change does to steps: builds of Nexus in turn on one GPU, each in a process of its own.
 *
 *   node bench/gpu/turns.mjs --cells CELL,... [--rounds N] [--out FILE.json] NAME=FOLDER NAME=FOLDER...
 *
 * A folder is a copy of the project, built (dist/, bench/, kernels/bundle/, node_modules/ where Node finds them), and with +packed
 * or +beside behind it the same with weights packed or kept both ways; cells are those of steps.mjs. Prints for every cell what
 * each round of each build took, and how much more or less than the first build's best the others' best is. Rounds of one build tell how much of that is noise. FILE.json is written after every
 * round of every build.
 */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseCell } from "./steps.mjs";

const STEPS = fileURLToPath(new URL("steps.mjs", import.meta.url));
const USAGE =
  "usage: node bench/gpu/turns.mjs --cells CELL,... [--rounds N] [--out FILE.json] NAME=FOLDER NAME=FOLDER...";

/** Something that is asked for wrongly: the message, a line, is all that is to be said. */
class Refused extends Error {}
/** A build that did not end well. */
class BuildFailed extends Error {}

/** @throws Refused */
function optionsOf(argv) {
  const { values, positionals } = orRefused(() =>
    parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        cells: { type: "string", default: "" },
        rounds: { type: "string", default: "2" },
        out: { type: "string" },
      },
    }),
  );
  const cells = values.cells.split(",").filter(Boolean);
  const builds = positionals.map((text) => text.split("="));
  const rounds = Number(values.rounds);
  const fits =
    cells.length > 0 &&
    builds.length > 1 &&
    builds.every((each) => each.length === 2 && !each.includes("")) &&
    Number.isInteger(rounds) &&
    rounds > 0;
  if (!fits) throw new Refused(USAGE);
  for (const cell of cells) orRefused(() => parseCell(cell));
  const names = builds.map(([name]) => name);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) throw new Refused(`Two builds are called "${twice}": name them apart.`);
  return { cells, builds, rounds, out: values.out };
}

function orRefused(attempt) {
  try {
    return attempt();
  } catch (error) {
    throw new Refused(error.message, { cause: error });
  }
}

/** One round of one build. @throws BuildFailed */
function timeBuild(folder, cells) {
  const { status, stdout } = spawnSync(process.execPath, [STEPS, folder, ...cells], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (status !== 0) throw new BuildFailed(`the build in ${folder} failed (${status})`);
  const lines = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  return Object.fromEntries(lines.map(({ cell, us }) => [cell, us]));
}

/**
 * Every build once a round, in the order in which they are named.
 *
 * @param time what a round of the build in a folder takes
 * @param save called with the rounds so far: before the first, and after each, so that one that fails loses none
 */
export function takeTurns({ builds, rounds }, time, save) {
  const done = [];
  save(done);
  for (let round = 0; round < rounds; round++) {
    for (const [build, folder] of builds) {
      done.push({ build, us: time(folder) });
      save(done);
    }
  }
  return done;
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
  const { cells, out, ...plan } = optionsOf(argv);
  const date = new Date().toISOString();
  const save = (rounds) => {
    if (out === undefined) return;
    const text = `${JSON.stringify({ date, unit: "us", rounds })}\n`;
    orRefused(() => writeFileSync(out, text));
  };
  const done = takeTurns(plan, (folder) => timeBuild(folder, cells), save);
  for (const line of comparison(done)) console.log(line);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    main(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof Refused || error instanceof BuildFailed)) throw error;
    console.error(error.message);
    process.exitCode = error instanceof Refused ? 2 : 1;
  }
}
