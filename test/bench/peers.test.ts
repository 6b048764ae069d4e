/** The Python of the peers that can be tested without PyTorch and a GPU, by its own tests. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const peers = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../../bench/peers");
/** The sources of the peers are written for this version or a later one. */
const LEAST = "import sys; sys.exit(sys.version_info < (3, 10))";

function whyNot(): string | false {
  if (!existsSync(peers)) return "no bench/peers/ here";
  return spawnSync("python3", ["-c", LEAST]).status !== 0 && "no Python 3.10 or later here";
}

describe("peers", { skip: whyNot() }, () => {
  for (const [what, script] of [
    ["bursts are held back until they are queued, or given up with a reason", "test_contender.py"],
    ["tiles: what vLLM would run, and the best that a search found", "test_tile_tables.py"],
  ] as const) {
    it(what, () => {
      const file = path.join(peers, script);
      const { status, stderr } = spawnSync("python3", ["-B", file], { encoding: "utf8" });
      assert.equal(status, 0, stderr);
    });
  }
});
