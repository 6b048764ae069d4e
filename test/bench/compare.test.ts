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

const { cellsOf, peersOf, PARTS, ROUTINGS, SHAPES, TOKENS } = await load("cells.mjs");
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
    const experts = (memory: number, peers?: string[]) =>
      (cellsOf("deepseek-v3", memory, peers) as PartShape[])[0]?.shape;
    assert.equal(experts(141 * GIB)?.experts, 256);
    assert.equal(experts(79 * GIB)?.experts, 128);
    assert.match(experts(79 * GIB)?.note ?? "", /128 of 256 experts, for memory/);
    assert.equal(experts(79 * GIB, ["a", "b", "c"])?.experts, 256);
    assert.equal(experts(79 * GIB, ["a", "b", "c", "d"])?.experts, 128);
    assert.equal(experts(39 * GIB, ["a"])?.experts, 128);
    assert.equal((cellsOf("mixtral-8x7b", 79 * GIB) as PartShape[])[0]?.shape.experts, 8);
    // The sorted loop takes next to nothing beside three others.
    assert.equal(experts(79 * GIB, ["a", "b", "c", "loop-sorted"])?.experts, 256);
  });

  it("have the sorted loop, if asked, where it may come near: many tokens and large experts", () => {
    const peers = (shape: string, tokens: number, named?: string[], asked = true) =>
      peersOf(named, asked, { name: shape }, { tokens });
    const with1024 = (SHAPES as { name: string }[]).flatMap(({ name }) =>
      peers(name, 1024, ["a"]).includes("loop-sorted") ? [name] : [],
    );
    assert.deepEqual(with1024, ["large", "mixtral-8x7b", "deepseek-v3", "gpt-oss-20b"]);
    assert.deepEqual(peers("large", 256, ["a"]), ["a"]);
    assert.deepEqual(peers("large", 4096, ["a"], false), ["a"]);
    assert.deepEqual(peers("large", 4096, ["loop-sorted"]), ["loop-sorted"]);
    assert.equal(
      peers("large", 4096),
      undefined,
      "all peers take part, the sorted loop among them",
    );
  });
});

const cell = "qwen3-30b-a3b 1 uniform";

describe("turns", () => {
  const takeTurns = async (plan: object) => {
    const { takeTurns: take } = await load("rounds.mjs");
    const asked: string[] = [];
    const contender = (name: string, us: number) => ({
      async time(replays: number) {
        asked.push(`${name} ${replays}`);
        return new Array(replays).fill(us);
      },
    });
    const contenders = [contender("a", 10), contender("b", 1000), contender("c", 50_000)];
    const { taken, failed } = await take(contenders, plan);
    assert.equal(failed.size, 0);
    return { asked, rounds: contenders.map((each) => taken.get(each) as number[][]) };
  };

  it("give everybody a burst a round, as long as a step calls for", async () => {
    const { asked, rounds } = await takeTurns({ rounds: 4, batches: 1, seed: 1, cell });
    assert.deepEqual(asked.slice(0, 3), ["a 1", "b 1", "c 1"], "a look at how long a step takes");
    for (let round = 0; round < 4; round++) {
      const bursts = asked.slice(3 + 3 * round, 6 + 3 * round);
      // 20 ms each, but 60 replays at most and 3 at least.
      assert.deepEqual(bursts.sort(), ["a 60", "b 20", "c 3"]);
    }
    assert.deepEqual(
      rounds.map((each) => each.map(({ length }) => length)),
      [60, 20, 3].map((length) => new Array(4).fill(length)),
    );
  });

  it("go through all batches equally often", async () => {
    const { rounds } = await takeTurns({ rounds: 1, batches: 16, seed: 1, cell });
    assert.deepEqual(
      rounds.map(([burst]) => burst?.length),
      [64, 32, 16],
    );
  });

  it("of an eager contender are half a second together, however short its steps", async () => {
    const { takeTurns: take } = await load("rounds.mjs");
    for (const [us, rounds] of [
      [900, 5],
      [40, 3],
      [400_000, 5],
    ] as const) {
      const eager = { eager: true, time: async (replays: number) => new Array(replays).fill(us) };
      const { taken } = await take([eager], { rounds, batches: 2, seed: 1, cell });
      const samples = (taken.get(eager) as number[][]).flat();
      assert.ok(samples.length * us >= 500_000, `${samples.length} steps of ${us} us`);
      assert.ok(samples.length >= 3 * rounds);
    }
  });

  it("come in an order that changes from round to round and cell to cell, the same for the same seed", async () => {
    const order = async (seed: number, of = cell) =>
      (await takeTurns({ rounds: 12, batches: 1, seed, cell: of })).asked.slice(3).join();
    assert.equal(await order(1), await order(1));
    assert.notEqual(await order(1), await order(2));
    assert.notEqual(await order(1), await order(1, "qwen3-30b-a3b 4 uniform"));
    const asked = (await order(1)).split(",");
    const before = new Set(asked.flatMap((each, i) => (each === "a 60" ? [asked[i - 1]] : [])));
    assert.ok(before.size > 1, "not always after the same other");
  });
});

describe("a contender that cannot be timed", () => {
  const plan = { rounds: 4, batches: 1, seed: 1, cell };
  const good = { time: async (replays: number) => new Array(replays).fill(1000) };
  /** Times as many bursts as it is told to, and then fails. */
  const failing = (bursts: number, error: Error) => {
    let left = bursts;
    return {
      mayFail: true,
      async time(replays: number) {
        left--;
        if (left < 0) throw error;
        return new Array(replays).fill(1000);
      },
    };
  };

  it("has no more turns, and its reason is kept; the others have all of theirs", async () => {
    const { takeTurns } = await load("rounds.mjs");
    for (const bursts of [0, 3]) {
      const bad = failing(bursts, new Error("not queued within 2560 us each"));
      const { taken, failed } = await takeTurns([good, bad], plan);
      assert.deepEqual([...failed], [[bad, "not queued within 2560 us each"]]);
      assert.equal(taken.get(good).length, 4);
    }
  });

  it("ends the cell if it is Nexus, or if nobody is left to ask", async () => {
    const { takeTurns } = await load("rounds.mjs");
    const { Refused } = await load("options.mjs");
    const nexus = { ...failing(1, new Error("wrong")), mayFail: false };
    await assert.rejects(takeTurns([good, nexus], plan), /wrong/);
    const gone = failing(1, new Refused("the peers' process is gone"));
    await assert.rejects(takeTurns([good, gone], plan), /is gone/);
  });
});

describe("a run without a pause", () => {
  it("has short steps in graphs of all batches, and launches long ones one by one", async () => {
    const { paceOf } = await load("pace.mjs");
    for (const [us, batches] of [
      [7.5, 16],
      [395, 4],
      [1999, 1],
    ] as const) {
      const { rounds, launches } = paceOf(us, batches);
      const graph = us * batches * rounds;
      assert.ok(graph >= 2000 && graph - us * batches < 2000, `${rounds} rounds of ${us} us`);
      assert.ok(Math.abs(launches * graph - 1e5) <= graph / 2, "a tenth of a second at once");
    }
    assert.deepEqual(paceOf(6000, 4), { rounds: 0, launches: 20 });
    assert.deepEqual(paceOf(1e6, 1), { rounds: 0, launches: 1 });
  });

  it("lasts five seconds or more between two looks at the counter, whose readings are 0.1 s old at most", async () => {
    const { energyOf, WINDOW_SECONDS } = await load("energy.mjs");
    assert.ok(WINDOW_SECONDS - 2 * 0.1 >= 5, `${WINDOW_SECONDS} s`);
    const asked: number[] = [];
    let joules = 0;
    const energy = {
      available: true,
      domain: "made up",
      minimumWindowSeconds: 0,
      joules: async () => joules,
    };
    const { steps, joules: counted } = await energyOf({ energy }, async (seconds: number) => {
      asked.push(seconds);
      joules += 100 * seconds;
      return { steps: 1000 * seconds, seconds };
    });
    assert.equal(asked.at(-1), WINDOW_SECONDS);
    assert.equal(steps, 1000 * WINDOW_SECONDS);
    assert.ok(Math.abs(counted - 100 * WINDOW_SECONDS) < 1e-6, "without the steps to warm up");
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

  for (const [what, asked, expected] of [
    ["rounds", ["--rounds", "0"], /--rounds is "0"\. Use a whole number from 1 to 100\./],
    ["tokens", ["--tokens", "1,3"], /There is no token count "3"\. Use some of: 1, 4, /],
    ["routings", ["--routings", "zipf"], /There is no routing "zipf"\. Use some of: uniform, /],
    ["an option", ["--fast"], /--fast/],
  ] as const) {
    it(`has a sentence for ${what} that are none`, async () => {
      const { optionsOf, Refused } = await load("options.mjs");
      assert.throws(
        () => optionsOf(asked),
        (error: Error) => error instanceof Refused && expected.test(error.message),
      );
    });
  }

  it("knows which cells are asked for", async () => {
    const { optionsOf } = await load("options.mjs");
    const { wants, parts, withEnergy } = optionsOf(["--tokens", "4,64", "--routings", "hot"]);
    assert.deepEqual(parts, ["quick"]);
    assert.equal(withEnergy, true);
    const { tokens, routings, withSortedLoop } = optionsOf(["--tokens", "4", "--with-sorted-loop"]);
    assert.deepEqual([tokens, routings, withSortedLoop], [[4], undefined, true]);
    assert.equal(wants({ tokens: 4, routing: "hot" }), true);
    assert.equal(wants({ tokens: 4, routing: "uniform" }), false);
    assert.equal(wants({ tokens: 16, routing: "hot" }), false);
    assert.equal(optionsOf([]).wants({ tokens: 16, routing: "hot" }), true);
  });
});
