/** What the command line asks for, or a sentence on what is wrong with it. Which peers there are is known later. */

import { parseArgs } from "node:util";
import { PARTS, ROUTINGS, TOKENS } from "./cells.mjs";
import { BATCHES } from "./loops.mjs";

/** Rounds of bursts; every contender has one burst in each. */
const ROUNDS = 5;
const MOST_ROUNDS = 100;

/** Wrong use, or something that the machine lacks: the message is all that is to be said. */
export class Refused extends Error {}

/** @throws Refused */
export function optionsOf(argv) {
  const { values, positionals } = parsed(argv);
  const parts = positionals.length > 0 ? positionals : ["quick"];
  for (const part of parts) oneOf("part", part, [...PARTS, "loops"]);
  const rounds = Number(values.rounds);
  if (!(Number.isInteger(rounds) && rounds >= 1 && rounds <= MOST_ROUNDS)) {
    throw new Refused(
      `--rounds is "${values.rounds}". Use a whole number from 1 to ${MOST_ROUNDS}.`,
    );
  }
  const tokens = listed(values.tokens);
  for (const each of tokens ?? []) oneOf("token count", each, [...TOKENS, ...BATCHES].map(String));
  const routings = listed(values.routings);
  for (const each of routings ?? []) oneOf("routing", each, ROUTINGS);
  return {
    parts,
    rounds,
    out: values.out,
    python: values.python,
    peers: listed(values.peers),
    /** How Nexus keeps its weights. */
    packWeights: packing(values["pack-weights"]),
    withEnergy: !values["without-energy"],
    withSortedLoop: values["with-sorted-loop"],
    /** Cells that are asked for, where not all are. */
    ...(tokens && { tokens: tokens.map(Number) }),
    ...(routings && { routings }),
    /** Whether a cell is asked for. */
    wants: (cell) =>
      (tokens?.includes(String(cell.tokens)) ?? true) && (routings?.includes(cell.routing) ?? true),
  };
}

/** @throws Refused if `value` is none of those */
export function oneOf(what, value, known) {
  if (known.includes(value)) return;
  throw new Refused(`There is no ${what} "${value}". Use some of: ${known.join(", ")}.`);
}

function parsed(argv) {
  try {
    return parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        out: { type: "string", default: "." },
        python: { type: "string", default: "python3" },
        rounds: { type: "string", default: String(ROUNDS) },
        tokens: { type: "string" },
        routings: { type: "string" },
        peers: { type: "string" },
        "pack-weights": { type: "string" },
        "without-energy": { type: "boolean", default: false },
        "with-sorted-loop": { type: "boolean", default: false },
      },
    });
  } catch (error) {
    throw new Refused(error.message);
  }
}

/** @throws Refused */
function packing(how) {
  if (how === undefined) return false;
  oneOf("way to pack weights", how, ["instead", "beside"]);
  return how === "instead" ? true : how;
}

function listed(list) {
  return list?.split(",");
}
