/**
 * What happens before what on the fake driver's streams, and whether two pieces of work
 * that nothing orders touch the same memory.
 *
 * Eager work has a vector clock: for every stream how far it had come. Inside a graph a
 * node knows its ancestors, and a launch of the graph is one tick of its stream. The check
 * follows from the calls alone, so a race is found even where the order that was drawn
 * happened to be a good one.
 */

import type { Accesses, Span } from "./memory.ts";

type Clock = Map<bigint, number>;

/** A node of a graph. */
export interface OrderedNode {
  readonly id: number;
  readonly ancestors: ReadonlySet<number>;
}

/** A place in the order: a tick of a stream. */
export interface Tick {
  readonly stream: bigint;
  readonly number: number;
  /** Everything that is before it, itself included. */
  readonly clock: Clock;
}

interface Done {
  readonly name: string;
  readonly tick: Tick;
  readonly node: OrderedNode | undefined;
  readonly accesses: Accesses;
}

interface StreamState {
  readonly clock: Clock;
  /** Nodes that the next one of a capture comes after; undefined outside of captures. */
  after: Set<number> | undefined;
  capture: bigint | undefined;
}

interface EventState {
  readonly clock: Clock;
  readonly after: ReadonlySet<number> | undefined;
  readonly capture: bigint | undefined;
}

export class Order {
  readonly #streams = new Map<bigint, StreamState>();
  readonly #events = new Map<bigint, EventState>();
  /** What the host has seen to be over: everything issued from now on is after it. */
  readonly #host: Clock = new Map();
  readonly #pending = new Set<Tick>();
  #done: Done[] = [];
  #nodes = 0;

  /** How often two pieces of work were compared, for tests to see that it was done. */
  comparisons = 0;

  capturing(stream: bigint): boolean {
    return this.#state(stream).after !== undefined;
  }

  /** The next piece of eager work on a stream. */
  tick(stream: bigint): Tick {
    const { clock } = this.#state(stream);
    join(clock, this.#host);
    const number = (clock.get(stream) ?? 0) + 1;
    clock.set(stream, number);
    const tick = { stream, number, clock: new Map(clock) };
    this.#pending.add(tick);
    return tick;
  }

  /** The next node of a capture. */
  node(stream: bigint): OrderedNode {
    const after = this.#state(stream).after as Set<number>;
    this.#nodes += 1;
    const node = { id: this.#nodes, ancestors: new Set(after) };
    after.add(node.id);
    return node;
  }

  record(event: bigint, stream: bigint): void {
    const { clock, after, capture } = this.#state(stream);
    const known = new Map(clock);
    join(known, this.#host);
    this.#events.set(event, { clock: known, after: after && new Set(after), capture });
  }

  wait(stream: bigint, event: bigint): void {
    const state = this.#state(stream);
    const point = this.#events.get(event);
    if (point === undefined) return;
    if (point.after === undefined) {
      join(state.clock, point.clock);
      return;
    }
    state.after ??= new Set();
    state.capture = point.capture;
    for (const node of point.after) state.after.add(node);
  }

  hostSaw(event: bigint): void {
    const point = this.#events.get(event);
    if (point === undefined) return;
    join(this.#host, point.clock);
    const pending = [...this.#pending];
    this.#done = this.#done.filter(
      ({ tick }) => !isIn(tick, this.#host) || pending.some(({ clock }) => !isIn(tick, clock)),
    );
  }

  beginCapture(stream: bigint): void {
    const state = this.#state(stream);
    state.after = new Set();
    state.capture = stream;
  }

  endCapture(origin: bigint): void {
    for (const state of this.#streams.values()) {
      if (state.capture !== origin) continue;
      state.after = undefined;
      state.capture = undefined;
    }
  }

  /** Nothing is left of a stream's tick to run. */
  over(tick: Tick): void {
    this.#pending.delete(tick);
  }

  /** @throws Error if it touched what other work, neither before nor after it, touches too */
  ran(name: string, tick: Tick, node: OrderedNode | undefined, accesses: Accesses): void {
    for (const earlier of this.#done) {
      this.comparisons += 1;
      if (isBefore(earlier, tick, node)) continue;
      const shared = conflict(earlier.accesses, accesses);
      if (shared === undefined) continue;
      throw new Error(
        `Race: ${earlier.name} and ${name} touch 0x${shared.begin.toString(16)} to 0x${shared.end.toString(16)}, and nothing orders them.`,
      );
    }
    this.#done.push({ name, tick, node, accesses });
  }

  #state(stream: bigint): StreamState {
    let state = this.#streams.get(stream);
    if (state === undefined) {
      state = { clock: new Map(), after: undefined, capture: undefined };
      this.#streams.set(stream, state);
    }
    return state;
  }
}

function isBefore({ tick, node }: Done, of: Tick, inGraph: OrderedNode | undefined): boolean {
  if (tick === of && node !== undefined && inGraph !== undefined) {
    return inGraph.ancestors.has(node.id);
  }
  return isIn(tick, of.clock);
}

function isIn({ stream, number }: Tick, clock: Clock): boolean {
  return (clock.get(stream) ?? 0) >= number;
}

function join(into: Clock, from: Clock): void {
  for (const [stream, number] of from) {
    if (number > (into.get(stream) ?? 0)) into.set(stream, number);
  }
}

function conflict(a: Accesses, b: Accesses): Span | undefined {
  return (
    overlap(a.writes, b.writes) ??
    overlap(a.writes, b.reads) ??
    overlap(a.reads, b.writes) ??
    overlap(a.atomics, b.reads) ??
    overlap(a.atomics, b.writes) ??
    overlap(a.reads, b.atomics) ??
    overlap(a.writes, b.atomics)
  );
}

/** Of two sorted lists. */
function overlap(a: readonly Span[], b: readonly Span[]): Span | undefined {
  let j = 0;
  for (const { begin, end } of a) {
    while (j < b.length && (b[j] as Span).end <= begin) j += 1;
    const other = b[j];
    if (other !== undefined && other.begin < end) {
      return { begin: Math.max(begin, other.begin), end: Math.min(end, other.end) };
    }
  }
  return undefined;
}
