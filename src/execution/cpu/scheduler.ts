/**
 * How a worker walks a program: which tile it takes next, and what it does when
 * it finishes the last tile of an operator. There is no master and no lock; the
 * workers meet only in atomic counters.
 *
 * An operator is closed until its predecessors are finished. The worker that
 * finishes the last of them opens it: counts its tiles, sets its bit. Every worker
 * takes tiles from open operators until there are none; the worker that takes the
 * last tile clears the bit, and the one that finishes the last tile retires the
 * operator and opens what waited for it alone.
 *
 * Which operator to take from is start-time fair queueing (Goyal, Vin and Cheng,
 * SIGCOMM 1996): a tile of a group starts, in virtual time, when the group's
 * previous tile finished, or now if the group had nothing to do meanwhile; it
 * finishes its cost, divided by the group's share, later; the tile that starts
 * first goes first. So groups progress in proportion to their shares while all
 * have work, and nobody waits while there is work. Ties go to the higher stream
 * priority, then to the earlier operator.
 *
 * The order decides when things are done, never what is computed.
 */

import { SHARES_PER_UNIT } from "./budgets.ts";
import type { TileContext, TileOperator } from "./context.ts";
import { BOUND, GATE, PAGES, PROGRAM, RUNNING, SERVES, SHARES, SLEEPERS, WAKE } from "./control.ts";
import {
  COST,
  CURSOR,
  DONE,
  FAULT,
  FINISH,
  GROUP,
  KIND,
  LEFT,
  OPEN,
  OPEN_WORDS,
  OPERATOR_WORDS,
  OPERATORS,
  PRIORITY,
  SUCCESSOR_COUNT,
  SUCCESSORS,
  TILES,
  VIRTUAL_TIME,
  WAITS_FOR,
} from "./program.ts";

const PAGE = 65536;

export class Scheduler {
  readonly #control: Int32Array;
  readonly #context: TileContext;
  readonly #operators: readonly TileOperator[];
  /** Which groups this worker serves in the running program. */
  #serves = 0;
  #bound = false;
  readonly #worker: number;
  /** First word of the running program's operators. */
  #first = 0;

  constructor(
    control: Int32Array,
    context: TileContext,
    operators: readonly TileOperator[],
    worker: number,
  ) {
    this.#control = control;
    this.#context = context;
    this.#operators = operators;
    this.#worker = worker;
  }

  /**
   * Steps into the running program, takes tiles until there are none to take, and steps out.
   *
   * @returns true if the program is over and this worker is the one to say so
   */
  work(): boolean {
    if (!this.#enter()) return false;
    const context = this.#context;
    context.refresh((this.#control[PAGES] as number) * PAGE);
    context.program = (this.#control[PROGRAM] as number) >>> 2;
    this.#first = context.program + (context.i32[context.program + OPERATORS] as number);
    this.#serves = this.#control[SERVES + this.#worker] as number;
    this.#bound = this.#control[BOUND] === 1;
    for (let operator = this.#pick(); operator !== 0; operator = this.#pick()) {
      this.#take(operator);
    }
    return this.#leave();
  }

  #enter(): boolean {
    const control = this.#control;
    for (;;) {
      const gate = Atomics.load(control, GATE);
      if (gate < RUNNING) return false;
      if (Atomics.compareExchange(control, GATE, gate, gate + 1) === gate) return true;
    }
  }

  /**
   * The last worker to step out of a finished program ends it. Until then the
   * program stays where it is, so a worker that was held up inside never looks at
   * words that mean something else by now.
   */
  #leave(): boolean {
    const control = this.#control;
    const { i32, program } = this.#context;
    for (;;) {
      const gate = Atomics.load(control, GATE);
      // Read after the gate: if another worker finishes the program and leaves between the two reads, the exchange fails.
      const over = Atomics.load(i32, program + LEFT) === 0 && gate === RUNNING + 1;
      const next = over ? 0 : gate - 1;
      if (Atomics.compareExchange(control, GATE, gate, next) === gate) return over;
    }
  }

  /** The open operator whose group is furthest behind its share, as its first word; 0 if none is open. */
  #pick(): number {
    const { i32, program } = this.#context;
    const now = Atomics.load(i32, program + VIRTUAL_TIME);
    const words = i32[program + OPEN_WORDS] as number;
    let best = 0;
    let bestStart = 0;
    let bestPriority = 0;
    for (let word = 0; word < words; word++) {
      let bits = Atomics.load(i32, program + OPEN + word);
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits & -bits);
        bits &= bits - 1;
        const operator = this.#first + (word * 32 + bit) * OPERATOR_WORDS;
        const group = i32[operator + GROUP] as number;
        if (((this.#serves >> group) & 1) === 0) continue;
        const start = later(Atomics.load(i32, program + FINISH + group), now);
        const priority = i32[operator + PRIORITY] as number;
        const better =
          best === 0 ||
          (start !== bestStart ? isBefore(start, bestStart) : priority > bestPriority);
        if (better) {
          best = operator;
          bestStart = start;
          bestPriority = priority;
        }
      }
    }
    return best;
  }

  /** Takes the next tile of an operator, unless others were faster, and runs it. */
  #take(operator: number): void {
    const context = this.#context;
    const { i32 } = context;
    const tile = Atomics.add(i32, operator + CURSOR, 1);
    const tiles = i32[operator + TILES] as number;
    if (tile >= tiles) return;
    // Only the taker of the last tile clears the bit, so it is cleared once.
    if (tile === tiles - 1) this.#clearOpen(operator);
    this.#charge(i32[operator + GROUP] as number, i32[operator + COST] as number);
    const kind = i32[operator + KIND] as number;
    (this.#operators[kind] as TileOperator).run(context, operator, tile);
    if (Atomics.add(i32, operator + DONE, 1) === tiles - 1) this.#retire(operator);
  }

  /** Moves a group's finish tag on by the cost of a tile over the group's share. */
  #charge(group: number, cost: number): void {
    const { i32, program } = this.#context;
    const word = program + FINISH + group;
    const now = Atomics.load(i32, program + VIRTUAL_TIME);
    const finish = Atomics.load(i32, word);
    const start = later(finish, now);
    const share = this.#control[SHARES + group] as number;
    const duration = Math.max(1, Math.round((cost * SHARES_PER_UNIT) / share));
    // If another worker charged the group meanwhile, both charges still count.
    if (Atomics.compareExchange(i32, word, finish, (start + duration) | 0) !== finish) {
      Atomics.add(i32, word, duration);
    }
    if (isBefore(now, start)) Atomics.store(i32, program + VIRTUAL_TIME, start);
  }

  /** Marks an operator finished and opens those that waited for it alone; they may be empty and retire at once. */
  #retire(operator: number): void {
    const context = this.#context;
    const { i32, program } = context;
    const finished = [operator];
    let opened = 0;
    for (let done = finished.pop(); done !== undefined; done = finished.pop()) {
      const successors = program + (i32[done + SUCCESSORS] as number);
      const count = i32[done + SUCCESSOR_COUNT] as number;
      for (let i = 0; i < count; i++) {
        const successor = program + (i32[successors + i] as number);
        if (Atomics.sub(i32, successor + WAITS_FOR, 1) !== 1) continue;
        const tiles = this.#open(successor);
        if (tiles === 0) finished.push(successor);
        else opened += tiles;
      }
      Atomics.sub(i32, program + LEFT, 1);
    }
    if (opened > 0) this.#wakeOthers(opened);
  }

  /** Lets the workers at an operator's tiles; returns how many there are. A program with a fault does no further work. */
  #open(operator: number): number {
    const context = this.#context;
    const { i32, program } = context;
    if (Atomics.load(i32, program + FAULT) !== 0) return 0;
    const kind = i32[operator + KIND] as number;
    const tiles = (this.#operators[kind] as TileOperator).open(context, operator);
    if (tiles === 0) return 0;
    i32[operator + TILES] = tiles;
    Atomics.store(i32, operator + CURSOR, 0);
    const index = (operator - this.#first) / OPERATOR_WORDS;
    Atomics.or(i32, program + OPEN + (index >> 5), 1 << (index & 31));
    return tiles;
  }

  #clearOpen(operator: number): void {
    const { i32, program } = this.#context;
    const index = (operator - this.#first) / OPERATOR_WORDS;
    Atomics.and(i32, program + OPEN + (index >> 5), ~(1 << (index & 31)));
  }

  #wakeOthers(opened: number): void {
    const control = this.#control;
    Atomics.add(control, WAKE, 1);
    // A single tile goes to this worker, which looks for work next, unless groups are bound to workers.
    if (opened === 1 && !this.#bound) return;
    if (Atomics.load(control, SLEEPERS) > 0) Atomics.notify(control, WAKE);
  }
}

/** Whether a point in virtual time comes before another; the clock wraps around. */
function isBefore(a: number, b: number): boolean {
  return ((a - b) | 0) < 0;
}

function later(a: number, b: number): number {
  return isBefore(a, b) ? b : a;
}
