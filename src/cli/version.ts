/** The version of this package, from its package.json. */

import { readFileSync } from "node:fs";

const MANIFEST = new URL("../../../package.json", import.meta.url);

export function packageVersion(): string {
  return (JSON.parse(readFileSync(MANIFEST, "utf8")) as { version: string }).version;
}
