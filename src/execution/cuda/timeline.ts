/**
 * The device's time as the host sees it: submissions, which run one at a time in the
 * order in which they were made, and the finding out that they are over.
 *
 * Everything the device does is ordered by the one launch stream, so what is under way
 * is over in the order in which it began, and only the oldest is asked after. Asking is
 * a query between two turns of the event loop: nothing here ever waits.
 *
 * What a submission does is its owner's business (graph.ts, core.ts).
 */

import { shown } from "../../errors/wording.ts";
import { DeviceFailedError, type NexusError } from "../../errors.ts";
import type { CudaBudgets } from "./budgets.ts";
import type { Context } from "./driver/context.ts";
import type { Driver } from "./driver/driver.ts";
import { CudaError } from "./driver/errors.ts";
import type { EventPool } from "./driver/events.ts";

/** What a submission does. */
export interface Job {
  /** Readies the device for it. What the driver refuses here fails this submission alone: none of it is under way. */
  prepare(budgets: CudaBudgets): void;
  /** Hands its work to the launch stream. What it throws ends the device: some of the work may be under way. */
  issue(budgets: CudaBudgets): void;
  /** Told when the work is done; returns the fault that it found in its input, if any. */
  finish(): NexusError | undefined;
}

/** For so long a wait is polled in every turn of the event loop: a step of inference takes no longer. */
const EAGER_POLLING_MS = 20;

/** After that it is polled so often, and the processor can rest. */
const PATIENT_POLLING_MS = 1;

/** A submission whose end says that all before it are over. */
const NOTHING: Job = { prepare() {}, issue() {}, finish: () => undefined };

/** A place on the launch stream: a promise to settle when all before it is over. */
interface Entry {
  /** Only a submission has one. */
  readonly job: Job | undefined;
  readonly resolve: () => void;
  readonly reject: (error: NexusError) => void;
  /** Recorded behind its work; 0 until it is issued. */
  event: bigint;
  /** What to do once it is over, however it ends. */
  afterwards: (() => void)[] | undefined;
}

interface Submission extends Entry {
  job: Job;
  readonly budgets: CudaBudgets;
}

export class Timeline {
  readonly #driver: Driver;
  readonly #context: Context;
  readonly #events: EventPool;
  readonly #launchStream: bigint;
  /** Submissions that wait for the one before them. */
  readonly #queue: Submission[] = [];
  /** What is on the launch stream, oldest first: at most one submission, and any number of copies. */
  readonly #under: Entry[] = [];
  /** What waited for work when `stop` came; done when the GPU is known to be idle. */
  readonly #leftovers: (() => void)[] = [];
  readonly #poll = (): void => this.#look();
  #polling = false;
  /** Whether a submission is under way. */
  #running = false;
  /** When something was last seen to be over, or began after a pause. */
  #since = 0;
  #end: NexusError | undefined;

  /** @param events without timing */
  constructor(driver: Driver, context: Context, events: EventPool, launchStream: bigint) {
    this.#driver = driver;
    this.#context = context;
    this.#events = events;
    this.#launchStream = launchStream;
  }

  /** Why nothing runs any more, once that is so. */
  get end(): NexusError | undefined {
    return this.#end;
  }

  /** Runs a job after all that were submitted before; resolves when its work is done. */
  submit(job: Job, budgets: CudaBudgets): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#end !== undefined) {
        reject(this.#end);
        return;
      }
      this.#queue.push({ job, budgets, resolve, reject, event: 0n, afterwards: undefined });
      if (!this.#running) this.#next();
    });
  }

  /**
   * Puts something on the launch stream behind all that was submitted before, at once where none of
   * that waits. Resolves when it is there, or later.
   */
  async inTurn(enqueue: () => void, budgets: CudaBudgets): Promise<void> {
    await this.#put(enqueue, budgets);
  }

  /** As `inTurn`, but resolves when it is done. */
  async carriedOut(enqueue: () => void, budgets: CudaBudgets): Promise<void> {
    await (this.#put(enqueue, budgets) ?? this.reached());
  }

  /** Resolves once everything handed to the launch stream so far is done. */
  reached(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#end !== undefined) {
        reject(this.#end);
        return;
      }
      const entry = { job: undefined, resolve, reject, event: 0n, afterwards: undefined };
      this.#under.push(entry);
      this.#track(entry);
    });
  }

  /** Resolves once everything submitted so far is over; rejects if the device ends first. */
  settled(budgets: CudaBudgets): Promise<void> {
    return this.#running ? this.submit(NOTHING, budgets) : this.reached();
  }

  /** Does something once everything submitted so far is over; at once if it is. What it throws ends the device. */
  afterwards(action: () => void): void {
    const last = this.#queue.at(-1) ?? this.#under.at(-1);
    if (last === undefined) {
      this.#perform([action]);
      return;
    }
    last.afterwards ??= [];
    last.afterwards.push(action);
  }

  /** Rejects all that is under way or waiting, and whatever comes later. */
  stop(error: NexusError): void {
    if (this.#end !== undefined) return;
    this.#end = error;
    const entries = [...this.#under.splice(0), ...this.#queue.splice(0)];
    for (const entry of entries) this.#settle(entry, error);
  }

  /**
   * After `stop`: resolves when the GPU has done all it was given, or has failed. Then
   * does what waited for that and destroys the events.
   */
  async drain(): Promise<void> {
    const driver = this.#driver;
    try {
      this.#context.current();
      const event = this.#events.take();
      driver.recordEvent(event, this.#launchStream);
      while (!driver.eventDone(event)) {
        await new Promise((resolve) => setTimeout(resolve, PATIENT_POLLING_MS));
        this.#context.current();
      }
      this.#events.give(event);
    } catch {
      // The GPU failed: nothing runs on it any more.
    }
    this.#perform(this.#leftovers.splice(0));
  }

  /** @returns undefined if it is there; else what resolves when it is there and done */
  #put(enqueue: () => void, budgets: CudaBudgets): Promise<void> | undefined {
    if (this.#end !== undefined) throw this.#end;
    if (this.#queue.length > 0) return this.submit({ ...NOTHING, issue: enqueue }, budgets);
    enqueue();
    return undefined;
  }

  /** Issues the next submission, if there is one. */
  #next(): void {
    const entry = this.#queue.shift();
    this.#running = entry !== undefined;
    if (entry === undefined) return;
    this.#under.push(entry);
    let ready = false;
    try {
      entry.job.prepare(entry.budgets);
      ready = true;
      entry.job.issue(entry.budgets);
    } catch (error) {
      if (ready || !(error instanceof CudaError) || error.contextLost) {
        this.stop(failure(error));
        return;
      }
      // It keeps its place: what waits for it waits for what is under way before it, too.
      entry.job = { ...NOTHING, finish: () => error };
    }
    this.#track(entry);
  }

  /** Puts an event behind what is on the launch stream and asks after it from now on. */
  #track(entry: Entry): void {
    try {
      entry.event = this.#events.take();
      this.#driver.recordEvent(entry.event, this.#launchStream);
    } catch (error) {
      this.stop(failure(error));
      return;
    }
    if (this.#polling) return;
    this.#polling = true;
    this.#since = performance.now();
    setImmediate(this.#poll);
  }

  #look(): void {
    let progress = false;
    try {
      this.#context.current();
      // What begins meanwhile is left to the next look: callers whose work is over come first.
      for (let left = this.#under.length; left > 0; left--) {
        const oldest = this.#under[0];
        if (oldest === undefined || !this.#driver.eventDone(oldest.event)) break;
        progress = true;
        const fault = oldest.job?.finish();
        this.#under.shift();
        // Not before its faults are known: the next one writes where they are.
        if (oldest.job !== undefined) this.#next();
        this.#settle(oldest, fault);
      }
    } catch (error) {
      this.stop(failure(error));
    }
    if (this.#under.length === 0) {
      this.#polling = false;
      return;
    }
    const now = performance.now();
    if (progress) this.#since = now;
    if (now - this.#since < EAGER_POLLING_MS) setImmediate(this.#poll);
    else setTimeout(this.#poll, PATIENT_POLLING_MS);
  }

  /** Ends an entry that is no longer anywhere else, as a failure if there is an error. */
  #settle({ event, afterwards, resolve, reject }: Entry, error: NexusError | undefined): void {
    this.#events.give(event);
    if (afterwards !== undefined) {
      if (this.#end === undefined) this.#perform(afterwards);
      else this.#leftovers.push(...afterwards);
    }
    if (error === undefined) resolve();
    else reject(error);
  }

  #perform(actions: readonly (() => void)[]): void {
    for (const action of actions) {
      try {
        action();
      } catch (error) {
        this.stop(failure(error));
      }
    }
  }
}

/** What the driver threw, or anything else that went wrong while handing over work, as the end of a device. */
function failure(cause: unknown): DeviceFailedError {
  if (cause instanceof DeviceFailedError) return cause;
  return new DeviceFailedError(
    `The CUDA device failed while work was handed to it: ${shown(cause)}. Open a new device.`,
    { cause },
  );
}
