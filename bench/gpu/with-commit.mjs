/** Adds the commit that is measured (NEXUS_COMMIT) to a report of the package's own commands, which do not know it: standard input to standard output. */

import { readFileSync } from "node:fs";

const report = JSON.parse(readFileSync(0, "utf8"));
const commit = process.env.NEXUS_COMMIT ?? "unknown";
process.stdout.write(`${JSON.stringify({ ...report, commit }, null, 2)}\n`);
