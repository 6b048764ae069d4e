/**
 * The scheduler alone, on the main thread, with operators that only take notes:
 * what runs before what, and how groups share one worker.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  equalShares,
  type WorkerShares,
  workerShares,
} from "../../../src/execution/cpu/budgets.ts";
import { TileContext, type TileOperator } from "../../../src/execution/cpu/context.ts";
import {
  BOUND,
  controlWords,
  GATE,
  PAGES,
  PROGRAM,
  RUNNING,
  SERVES,
  SHARES,
} from "../../../src/execution/cpu/control.ts";
import type { Kernels } from "../../../src/execution/cpu/kernels.ts";
import {
  ARGUMENTS,
  ArgumentWords,
  buildProgram,
  FAULT,
  FAULT_CODE,
  FAULT_INDEX,
  FAULT_OPERATOR,
  FAULT_VALUE,
  type ProgramNode,
} from "../../../src/execution/cpu/program.ts";
import { cpuProperties } from "../../../src/execution/cpu/properties.ts";
import { Scheduler } from "../../../src/execution/cpu/scheduler.ts";
import { between, chance, randomFor } from "../../support/seed.ts";

const NAME = ARGUMENTS;
const TILES = ARGUMENTS + 1;
const TIME = ARGUMENTS + 2;

interface NodeLike {
  readonly tiles?: number;
  readonly group?: number;
  readonly priority?: number;
  readonly after?: readonly number[];
  readonly nanoseconds?: number;
  /** Reports a fault in its first tile. */
  readonly fault?: boolean;
}

/** Runs a program on a pool whose workers take turns; returns the operators' indices, tile by tile. */
function run(nodes: readonly NodeLike[], shares: WorkerShares = equalShares(1)): number[] {
  const workers = shares.serves.length;
  const memory = new WebAssembly.Memory({ initial: 16, maximum: 16, shared: true });
  const control = new Int32Array(new SharedArrayBuffer(controlWords(workers) * 4));
  const context = new TileContext({} as Kernels, memory, workers, 0);
  const log: number[] = [];
  let worker = 0;
  const start: TileOperator = { open: () => 1, run: () => {} };
  const note: TileOperator = {
    open({ i32, estimate }, operator) {
      estimate.call(context, operator, i32[operator + TIME] as number);
      return i32[operator + TILES] as number;
    },
    run({ i32 }, operator) {
      const name = i32[operator + NAME] as number;
      log.push(name);
      const { group = 0, fault } = nodes[name] as NodeLike;
      const served = ((shares.serves[worker] as number) >> group) & 1;
      assert.ok(served, `worker ${worker} runs group ${group}`);
      if (fault) context.faultRow(name);
    },
  };
  const image = buildProgram(
    nodes.map(({ tiles = 1, group = 0, priority = 0, after = [], nanoseconds = 1000 }, i) => {
      const args = new ArgumentWords();
      args.int(NAME, i);
      args.int(TILES, tiles);
      args.int(TIME, nanoseconds);
      return { kind: 1, group, priority, predecessors: after, words: args.words };
    }) satisfies ProgramNode[],
  );
  new Int32Array(memory.buffer, 4096).set(image);
  control[PROGRAM] = 4096;
  control[PAGES] = 16;
  control[BOUND] = shares.bound ? 1 : 0;
  control.set(shares.shares, SHARES);
  control.set(shares.serves, SERVES);
  // As if another worker were inside: only the last one to leave ends the program.
  control[GATE] = RUNNING + 1;
  const schedulers = Array.from(
    shares.serves,
    (_, each) => new Scheduler(control, context, [start, note], each),
  );
  for (let i = 0; i < nodes.length * workers; i++) {
    worker = i % workers;
    assert.equal(schedulers[worker]?.work(), false);
    assert.equal(control[GATE], RUNNING + 1);
  }
  control[GATE] = RUNNING;
  assert.equal(schedulers[0]?.work(), true);
  assert.equal(control[GATE], 0);
  const faulty = nodes.some((node) => node.fault);
  assert.equal((context.i32[4096 / 4 + FAULT] as number) !== 0, faulty);
  return log;
}

const shared = (...sixteenths: number[]): WorkerShares => {
  const shares = new Int32Array(8);
  shares.set(sixteenths);
  return { bound: false, shares, serves: Int32Array.of(255) };
};

describe("TileContext", () => {
  it("keeps the first fault that is not of logits", () => {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
    const context = new TileContext({} as Kernels, memory, 1, 0);
    context.program = 1024;
    context.fault("expert", 1100, 77, 5);
    context.fault("lane", 1200, 88, 6);
    const words = [FAULT, FAULT_OPERATOR, FAULT_VALUE, FAULT_INDEX];
    assert.deepEqual(
      words.map((word) => context.i32[1024 + word]),
      [FAULT_CODE.expert, 1100 - 1024, 77, 5],
    );
  });
});

describe("Scheduler", () => {
  it("runs every tile once, and no operator before its predecessors", () => {
    const random = randomFor("programs");
    for (let round = 0; round < 200; round++) {
      const nodes = Array.from({ length: between(random, 1, 90) }, (_, i) => ({
        tiles: chance(random, 0.2) ? 0 : between(random, 1, 5),
        group: random.integer(8),
        priority: random.integer(3),
        after: Array.from({ length: i }, (_, j) => j).filter(() => chance(random, 2 / i)),
      }));
      const log = run(nodes);
      for (const [i, node] of nodes.entries()) {
        assert.equal(log.filter((name) => name === i).length, node.tiles);
        for (const before of node.after) {
          if (node.tiles === 0 || nodes[before]?.tiles === 0) continue;
          assert.ok(log.lastIndexOf(before) < log.indexOf(i), `${i} ran before ${before}`);
        }
      }
    }
  });

  it("orders equal claims by priority, then by position", () => {
    assert.deepEqual(run([{}, { priority: 1 }, { priority: 1 }, { priority: -1 }]), [1, 2, 0, 3]);
  });

  it("divides a worker among groups in proportion to their shares", () => {
    const log = run(
      [
        { group: 0, tiles: 400 },
        { group: 1, tiles: 400 },
        { group: 2, tiles: 400 },
      ],
      shared(12, 3, 1),
    );
    const first = log.slice(0, 320);
    const share = (group: number) => first.filter((g) => g === group).length / 320;
    assert.ok(Math.abs(share(0) - 12 / 16) < 0.02, `${share(0)}`);
    assert.ok(Math.abs(share(1) - 3 / 16) < 0.02, `${share(1)}`);
    assert.ok(Math.abs(share(2) - 1 / 16) < 0.02, `${share(2)}`);
  });

  it("counts the estimated time of tiles, not their number", () => {
    const log = run(
      [
        { group: 0, tiles: 300, nanoseconds: 4000 },
        { group: 1, tiles: 300, nanoseconds: 1000 },
      ],
      shared(8, 8),
    );
    const long = log.slice(0, 250).filter((g) => g === 0).length;
    assert.ok(Math.abs(long - 50) <= 2, `${long} of 250`);
  });

  it("gives a group that comes late its share from now on, not the past", () => {
    const log = run(
      [
        { group: 0, tiles: 200 },
        { group: 0, tiles: 300, after: [0] },
        { group: 2, tiles: 100, after: [0] },
      ],
      shared(8, 1, 8),
    );
    const begin = log.indexOf(2);
    const early = log.slice(begin, begin + 100).filter((g) => g === 2).length;
    assert.ok(Math.abs(early - 50) <= 3, `${early} of the first 100 tiles`);
  });

  it("divides fairly beyond the end of the clock's 32 bits", () => {
    const long = { tiles: 300, nanoseconds: 1e9 };
    const log = run(
      [
        { group: 0, ...long },
        { group: 1, ...long },
      ],
      shared(8, 8),
    );
    for (let from = 0; from < 600; from += 100) {
      const first = log.slice(from, from + 100).filter((g) => g === 0).length;
      assert.ok(Math.abs(first - 50) <= 2, `${first} of 100 from ${from} on`);
    }
  });

  it("keeps groups that are bound to workers to these", () => {
    const random = randomFor("bound groups");
    for (let round = 0; round < 50; round++) {
      const nodes = Array.from({ length: between(random, 1, 20) }, (_, i) => ({
        tiles: between(random, 1, 4),
        group: random.integer(4),
        after: Array.from({ length: i }, (_, j) => j).filter(() => chance(random, 2 / i)),
      }));
      const budgets = { realisation: "partitioned", units: [1, 1, 0.5] } as const;
      const log = run(nodes, workerShares(budgets, cpuProperties(3, 2 ** 32, "simd")));
      assert.equal(
        log.length,
        nodes.reduce((sum, { tiles }) => sum + tiles, 0),
      );
    }
  });

  it("lets work without a budget go ahead of a small budget's, and starves neither", () => {
    const { shares } = workerShares(
      { realisation: "shared", units: [0.25] },
      cpuProperties(1, 2 ** 32, "simd"),
    );
    const log = run(
      [
        { group: 0, tiles: 100 },
        { group: 7, tiles: 100 },
      ],
      shared(...shares),
    );
    const early = log.slice(0, 100).filter((g) => g === 1).length;
    assert.ok(Math.abs(early - 80) <= 2, `${early} of the first 100 tiles`);
  });

  it("opens nothing more after a fault, but finishes", () => {
    const log = run([{ tiles: 4, fault: true }, { after: [0] }, { after: [1] }, { tiles: 2 }]);
    assert.deepEqual([...log].sort(), [0, 0, 0, 0, 3, 3]);
  });
});
