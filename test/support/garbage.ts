/** Collecting garbage, for tests that count what is left. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** One collection leaves up to some megabytes of dead arrays that are not given back. */
const COLLECTIONS = 4;

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

export function collectGarbage(): void {
  for (let i = 0; i < COLLECTIONS; i++) collect();
}
