/**
 * The cache of captured graphs: which step runs eagerly, which is captured and
 * which is replayed, and what is forgotten when there are too many.
 *
 * A graph holds for one key: what the layer is, how many tokens the step is for at
 * most, what goes in and comes out, how the device is partitioned and how lanes are
 * laid out. What the key does not say (routing, contents, the lane of each expert,
 * budgets that are shared) a graph reads anew with every launch. The manager knows
 * nothing of what is recorded.
 */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../errors.ts";
import { type Fields, requireFields } from "../execution/checks.ts";
import type { Device, Graph, Stream, Substitute } from "../execution/device.ts";
import { runEagerly } from "../execution/run-eagerly.ts";

/** Kernels are loaded, and scratch memory found, by the first run of a step; a capture must not see that. */
const DEFAULT_WARMUP = 1;

/** A few batch sizes times a few budgets in use at a time. */
const DEFAULT_CAPACITY = 16;

/** Keys that are remembered to be warm, per graph that is kept: a key costs its string, a graph a program. */
const WARM_KEYS_PER_GRAPH = 16;

/** Up to this many tokens buckets are powers of two, above they are multiples of it. */
const LARGEST_POWER_BUCKET = 256;

/** How a step was run. */
export type RunMode = "eager" | "captured" | "replayed";

/** What a `GraphManager` captures on, and how many graphs it keeps. */
export interface GraphManagerOptions {
  /** What graphs are captured on: the part of a device that this uses. */
  readonly device: Pick<Device, "capture" | "synchronize">;
  /** Eager runs of a key before it is captured, 0 or more; default 1. */
  readonly warmup?: number;
  /** Most graphs kept, 1 or more; default 16. */
  readonly capacity?: number;
}

const OPTIONS: Fields<GraphManagerOptions> = { device: true, warmup: true, capacity: true };

/** A step to run. */
export interface RecordedStep {
  /** Stream that the step begins on and ends on. */
  readonly origin: Stream;
  /** Enqueues the step; called for eager runs and for captures, never for replays. */
  readonly record: () => void;
  /** Buffers in the place of those that `record` says; for replays alone, so only where `has(key)`. */
  readonly substitutes?: readonly Substitute[];
}

/** How steps have been run since the manager was made, and what it keeps now. */
export interface GraphStatistics {
  /** Eager runs. */
  readonly warmups: number;
  readonly captures: number;
  readonly replays: number;
  /** Graphs closed to make room. */
  readonly evictions: number;
  /** Graphs kept now, and operators in them. */
  readonly graphs: number;
  readonly nodes: number;
}

interface Entry {
  readonly graph: Graph;
  /** Launches that have not come back. */
  inFlight: number;
  /** No longer in the cache; closed as soon as nothing is in flight. */
  retired: boolean;
}

/** Runs steps eagerly, captures those that come again, and replays them; keeps a limited number of graphs. */
export class GraphManager implements Disposable {
  readonly #device: GraphManagerOptions["device"];
  readonly #warmup: number;
  readonly #capacity: number;
  /** Least recently used first. */
  readonly #entries = new Map<string, Entry>();
  /** Eager runs by key, the key that last ran so longest ago first. */
  readonly #warm = new Map<string, number>();
  #closed = false;
  #warmups = 0;
  #captures = 0;
  #replays = 0;
  #evictions = 0;

  /** @throws InvalidArgumentError for options out of range */
  constructor(options: GraphManagerOptions) {
    requireFields(options, "options", "an object such as { device }", OPTIONS);
    const { device, warmup = DEFAULT_WARMUP, capacity = DEFAULT_CAPACITY } = options;
    checkGraphOptions(options);
    if (typeof device?.capture !== "function" || typeof device.synchronize !== "function") {
      throw new InvalidArgumentError(
        `options.device is ${shown(device)}; it must be a device from openDevice().`,
      );
    }
    this.#device = device;
    this.#warmup = warmup;
    this.#capacity = capacity;
  }

  /** Whether the next run of this key replays a graph. */
  has(key: string): boolean {
    return this.#entries.has(key);
  }

  /**
   * Runs a step in the cheapest way there is for its key, and waits for it. When
   * a run fails the cache stays as usable as it was: a graph whose launch failed
   * is kept, a capture that failed leaves nothing behind. The step of a capture
   * that the device refused, for want of memory say, runs as those before it did.
   *
   * @throws DisposedError; and whatever recording, capturing or running throws
   */
  async run(key: string, step: RecordedStep): Promise<RunMode> {
    if (this.#closed) throw new DisposedError("The graph manager");
    const { origin, record, substitutes = [] } = step ?? {};
    if (typeof record !== "function") {
      throw new InvalidArgumentError(
        `step is ${shown(step)}; it must be an object with origin, a stream, and record, a function that enqueues the step.`,
      );
    }
    const known = this.#entries.get(key);
    if (known !== undefined) {
      // Last in a Map is most recently used.
      this.#entries.delete(key);
      this.#entries.set(key, known);
      await this.#launch(known, substitutes);
      this.#replays++;
      return "replayed";
    }
    if (substitutes.length > 0) {
      throw new InvalidArgumentError(
        "step.substitutes are for replays, and there is no graph of this key yet. Ask has(key) first.",
      );
    }
    const runs = this.#warm.get(key) ?? 0;
    if (runs < this.#warmup) return this.#runEagerly(key, record, runs + 1);
    let graph: Graph;
    try {
      graph = this.#device.capture(origin, record);
    } catch (error) {
      if (error instanceof InvalidArgumentError || error instanceof DisposedError) throw error;
      // If the recording or the device is at fault, the eager run fails, too, and says why. Otherwise the key has to warm up
      // again before the next capture.
      return this.#runEagerly(key, record, 0);
    }
    this.#captures++;
    const entry: Entry = { graph, inFlight: 0, retired: false };
    this.#entries.set(key, entry);
    if (this.#entries.size > this.#capacity) this.#evict();
    await this.#launch(entry, []);
    return "captured";
  }

  stats(): GraphStatistics {
    let nodes = 0;
    for (const { graph } of this.#entries.values()) nodes += graph.nodes;
    return {
      warmups: this.#warmups,
      captures: this.#captures,
      replays: this.#replays,
      evictions: this.#evictions,
      graphs: this.#entries.size,
      nodes,
    };
  }

  /** Forgets the graphs of the keys that `matches` says yes to, such as those of buffers about to be freed. Those in flight are closed when they come back. */
  invalidate(matches: (key: string) => boolean): void {
    for (const key of this.#warm.keys()) if (matches(key)) this.#warm.delete(key);
    for (const [key, entry] of this.#entries) {
      if (!matches(key)) continue;
      this.#entries.delete(key);
      retire(entry);
    }
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    this.invalidate(() => true);
  }

  /** @param runs as how many eager runs of the key this counts, those before it included */
  async #runEagerly(key: string, record: () => void, runs: number): Promise<RunMode> {
    await runEagerly(this.#device, record);
    this.#warmups++;
    this.#remember(key, runs);
    return "eager";
  }

  async #launch(entry: Entry, substitutes: readonly Substitute[]): Promise<void> {
    entry.inFlight++;
    try {
      await entry.graph.launch(substitutes);
    } finally {
      entry.inFlight--;
      if (entry.retired) retire(entry);
    }
  }

  #remember(key: string, runs: number): void {
    this.#warm.delete(key);
    this.#warm.set(key, runs);
    const [oldest] = this.#warm.keys();
    if (this.#warm.size > this.#capacity * WARM_KEYS_PER_GRAPH) this.#warm.delete(oldest as string);
  }

  #evict(): void {
    const [oldest] = this.#entries;
    if (oldest === undefined) return;
    this.#entries.delete(oldest[0]);
    this.#evictions++;
    retire(oldest[1]);
  }
}

/** @throws InvalidArgumentError for numbers out of range */
export function checkGraphOptions({
  warmup = DEFAULT_WARMUP,
  capacity = DEFAULT_CAPACITY,
}: Omit<GraphManagerOptions, "device">): void {
  if (!Number.isInteger(warmup) || warmup < 0) {
    throw new InvalidArgumentError(
      `warmup is ${shown(warmup)}; it must be a whole number, 0 or more.`,
    );
  }
  if (!Number.isInteger(capacity) || capacity < 1) {
    throw new InvalidArgumentError(
      `capacity is ${shown(capacity)}; it must be a whole number, 1 or more.`,
    );
  }
}

/** Closes a graph, or has it closed by its last launch to come back. */
function retire(entry: Entry): void {
  entry.retired = true;
  if (entry.inFlight === 0) entry.graph[Symbol.dispose]();
}

/**
 * Tokens that buffers and graphs are made for, at least `tokens`: powers of two
 * up to 256, multiples of 256 above. Small batches differ in kind (one token, a
 * few, a tile full) and nine buckets cover them; large ones take memory in
 * proportion, which doubling would waste, and 256 rows are two of the largest
 * row tiles. The work itself does not grow with the bucket, as the token count
 * is read by every launch.
 *
 * @throws InvalidArgumentError unless `tokens` is a whole number, 0 or more
 */
export function tokenBucket(tokens: number): number {
  if (!Number.isSafeInteger(tokens) || tokens < 0) {
    throw new InvalidArgumentError(
      `tokens is ${shown(tokens)}; it must be a whole number, 0 or more.`,
    );
  }
  if (tokens > LARGEST_POWER_BUCKET) {
    return Math.ceil(tokens / LARGEST_POWER_BUCKET) * LARGEST_POWER_BUCKET;
  }
  let bucket = 1;
  while (bucket < tokens) bucket *= 2;
  return bucket;
}

/** What a graph holds for. */
export interface GraphKeyParts {
  /** Everything about the layer that decides which operators run. */
  readonly spec: string;
  /** From `tokenBucket`. */
  readonly bucket: number;
  /** In what else steps of the layer differ: where its logits come from, what its output is made of. */
  readonly variant: string;
  /** A plan's `budgetKey`, or what stands for all of them where graphs follow the budgets in force. */
  readonly budgets: string;
  /** A stream assignment's `laneKey`. */
  readonly lanes: string;
}

/** One string for all of it; different parts give different strings. */
export function graphKey({ spec, bucket, variant, budgets, lanes }: GraphKeyParts): string {
  return JSON.stringify([spec, bucket, variant, budgets, lanes]);
}
