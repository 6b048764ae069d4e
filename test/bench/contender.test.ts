/** The Python of the peers that can be tested without PyTorch and a GPU, by its own tests. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const peers = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../../bench/peers");
const script = path.join(peers, "test_contender.py");
/** The sources of the peers are written for this version or a later one. */
const LEAST = "import sys; sys.exit(sys.version_info < (3, 10))";

function whyNot(): string | false {
  if (!existsSync(script)) return "no bench/peers/ here";
  return spawnSync("python3", ["-c", LEAST]).status !== 0 && "no Python 3.10 or later here";
}

describe("bursts of the peers", { skip: whyNot() }, () => {
  it("are held back until they are queued, or given up with a reason", () => {
    const { status, stderr } = spawnSync("python3", ["-B", script], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
  });
});
