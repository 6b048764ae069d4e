/** What bench/compare decides by itself: which cells there are, whose turn it is, what a broken peers' process looks like. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, it } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../..");
const load = (file: string) => import(pathToFileURL(path.join(root, "bench/compare", file)).href);

interface Cell {
  readonly tokens: number;
  readonly routing: string;
  readonly energy: boolean;
}
interface PartShape {
  readonly shape: { readonly name: string; readonly experts: number; readonly note?: string };
  readonly cells: readonly Cell[];
}

const { cellsOf, PARTS, ROUTINGS, SHAPES, TOKENS } = await load("cells.mjs");
const GIB = 2 ** 30;

describe("the cells of a comparison", () => {
  it("are all tokens with all routings for a shape, and every shape is a part", () => {
    for (const { name } of SHAPES as { name: string }[]) {
      assert.ok(PARTS.includes(name));
      const [part, ...more] = cellsOf(name, 141 * GIB) as PartShape[];
      assert.equal(more.length, 0);
      assert.equal(part?.shape.name, name);
      const keys = new Set(part?.cells.map(({ tokens, routing }) => `${tokens} ${routing}`));
      assert.equal(keys.size, TOKENS.length * ROUTINGS.length);
      assert.equal(part?.cells.filter(({ energy }) => energy).length, 4);
    }
  });

  it("are some of those, of two shapes, in the quick part", () => {
    const parts = cellsOf("quick", 80 * GIB) as PartShape[];
    assert.deepEqual(
      parts.map(({ shape }) => shape.name),
      ["qwen3-30b-a3b", "mixtral-8x7b"],
    );
    for (const { cells } of parts) {
      for (const { tokens, routing } of cells) {
        assert.ok(TOKENS.includes(tokens) && ROUTINGS.includes(routing), `${tokens} ${routing}`);
      }
    }
  });

  it("take half of the experts of the largest shape where memory is short, and say so", () => {
    const experts = (memory: number) => (cellsOf("deepseek-v3", memory) as PartShape[])[0]?.shape;
    assert.equal(experts(141 * GIB)?.experts, 256);
    assert.equal(experts(79 * GIB)?.experts, 128);
    assert.match(experts(79 * GIB)?.note ?? "", /128 of 256 experts, for memory/);
    assert.equal((cellsOf("mixtral-8x7b", 79 * GIB) as PartShape[])[0]?.shape.experts, 8);
  });
});

describe("turns", () => {
  it("go round, beginning with another contender each time, in bursts by how long a step takes", async () => {
    const { takeTurns } = await load("rounds.mjs");
    const asked: string[] = [];
    const contender = (name: string, us: number) => ({
      name,
      async time(replays: number) {
        asked.push(`${name} ${replays}`);
        return new Array(replays).fill(us);
      },
    });
    const contenders = [contender("a", 10), contender("b", 1000), contender("c", 50_000)];
    const taken = await takeTurns(contenders, 3);
    // The first look, then 20 ms each, 60 replays at most and 3 at least.
    assert.deepEqual(asked.slice(0, 3), ["a 3", "b 3", "c 3"]);
    assert.deepEqual(asked.slice(3), [
      ...["a 60", "b 20", "c 3"],
      ...["b 20", "c 3", "a 60"],
      ...["c 3", "a 60", "b 20"],
    ]);
    for (const each of contenders) assert.equal(taken.get(each).length, 3);
    assert.equal(taken.get(contenders[1]).flat().length, 60);
  });
});

describe("the peers' process", () => {
  const withPython = async (script: string, body: (python: string) => Promise<void>) => {
    const folder = mkdtempSync(path.join(tmpdir(), "nexus-peers-"));
    try {
      const python = path.join(folder, "python");
      writeFileSync(python, `#!/bin/sh\n${script}\n`);
      chmodSync(python, 0o755);
      await body(python);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  };

  it("answers a request a line, errors included", () =>
    withPython(
      `read line; echo '{"steps": 3}'; read line; echo '{"error": "RuntimeError: too large"}'; read line`,
      async (python) => {
        const { Peers } = await load("peers.mjs");
        const peers = new Peers(python);
        assert.deepEqual(await peers.ask("run", { contender: "x" }), { steps: 3 });
        await assert.rejects(peers.ask("cell"), /peers, cell: RuntimeError: too large/);
        await peers.close();
      },
    ));

  it("is missed with the reason when it ends, or was never there", async () => {
    const { Peers } = await load("peers.mjs");
    await withPython("exit 7", async (python) => {
      await assert.rejects(new Peers(python).ask("hello"), /gone: it ended with 7.*--python/);
    });
    await assert.rejects(new Peers("/nowhere/python").ask("hello"), /ENOENT.*--python/);
  });
});

describe("the command", () => {
  it("names the parts there are when asked for another", () => {
    const main = path.join(root, "bench/compare/main.mjs");
    const { status, stderr } = spawnSync(process.execPath, [main, "everything"], {
      encoding: "utf8",
    });
    assert.equal(status, 2);
    assert.match(stderr, /There is no part "everything"\. Use some of: quick, small, .*loops\./);
  });
});
