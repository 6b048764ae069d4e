/**
 * The worker threads as the main thread sees them: it hands over one program at a
 * time and is told when it is over. Everything in between happens among the
 * workers; the main thread neither computes nor waits.
 *
 * Programs queue here, first in, first out. Idle workers keep no process alive:
 * one of them is referenced only while a program is under way.
 */

import { Worker } from "node:worker_threads";
import { DeviceFailedError, DisposedError, type NexusError } from "../../errors.ts";
import type { WorkerShares } from "./budgets.ts";
import {
  BOUND,
  controlWords,
  GATE,
  PAGES,
  PROGRAM,
  RUNNING,
  SEQUENCE,
  SERVES,
  SHARES,
  SLEEPERS,
  WAKE,
} from "./control.ts";
import { faultOf } from "./faults.ts";
import type { CompiledKernels, Kernels } from "./kernels.ts";
import type { Block, DeviceMemory } from "./memory.ts";
import type { WorkerMessage, WorkerSetup } from "./worker.ts";

const PAGE = 65536;

/** Room for some 400 operators, so that hardly any program has to be given more. */
const PROGRAM_BYTES = 65536;

interface Submission {
  readonly image: Int32Array;
  readonly shares: WorkerShares;
  readonly resolve: () => void;
  readonly reject: (error: NexusError) => void;
  /** What to do once it is over, however it ends. */
  readonly afterwards: (() => void)[];
}

export class WorkerPool {
  readonly #memory: DeviceMemory;
  readonly #control: Int32Array;
  readonly #workers: Worker[] = [];
  readonly #queue: Submission[] = [];
  #running: Submission | undefined;
  #sequence = 0;
  /** Where the running program lies, and its words; moved when a longer one comes. */
  #place: Block;
  #words: Int32Array;
  /** Why nothing runs any more. */
  #end: NexusError | undefined;

  private constructor(threads: number, memory: DeviceMemory) {
    this.#memory = memory;
    this.#control = new Int32Array(new SharedArrayBuffer(controlWords(threads) * 4));
    this.#place = memory.allocate(PROGRAM_BYTES, "programs", false);
    this.#words = new Int32Array(memory.wasm.buffer, this.#place.address, PROGRAM_BYTES / 4);
  }

  /** Starts the threads and waits until all are up. @throws DeviceFailedError if one cannot start */
  static async start(
    threads: number,
    memory: DeviceMemory,
    compiled: CompiledKernels,
    kernels: Kernels,
  ): Promise<WorkerPool> {
    const pool = new WorkerPool(threads, memory);
    const scratchBytes = kernels.scratchBytes();
    const ready: Promise<void>[] = [];
    for (let worker = 0; worker < threads; worker++) {
      const setup: WorkerSetup = {
        control: pool.#control,
        memory: memory.wasm,
        kernels: compiled.module,
        worker,
        workers: threads,
        scratch: memory.allocate(scratchBytes, `scratch of worker ${worker}`).address,
      };
      ready.push(pool.#startWorker(setup));
    }
    try {
      await Promise.all(ready);
    } catch (error) {
      await pool.close();
      throw error;
    }
    for (const worker of pool.#workers) worker.unref();
    return pool;
  }

  /**
   * Queues a program; resolves when it is over.
   *
   * @throws InvalidLogitsError, InvalidArgumentError if it finds its input at fault
   * @throws DeviceFailedError if a worker ends, DisposedError if the pool is closed before it is over
   */
  submit(image: Int32Array, shares: WorkerShares): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#end !== undefined) {
        reject(this.#end);
        return;
      }
      this.#queue.push({ image, shares, resolve, reject, afterwards: [] });
      if (this.#running === undefined) {
        this.#workers[0]?.ref();
        this.#next();
      }
    });
  }

  /** Why nothing runs any more, once that is so. */
  get end(): NexusError | undefined {
    return this.#end;
  }

  /** Resolves once everything submitted so far is over; rejects if the pool ends first. */
  settled(): Promise<void> {
    return this.inTurn(() => {});
  }

  /** Does something once everything submitted so far is over, and before what is submitted later; rejects if the pool ends first. */
  inTurn(action: () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      this.afterwards(() => {
        if (this.#end !== undefined) {
          reject(this.#end);
          return;
        }
        // What it throws is its caller's: nobody else's work hangs on it.
        try {
          resolve(action());
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  /** Does something once everything submitted so far is over; at once if it is. */
  afterwards(action: () => void): void {
    const last = this.#queue.at(-1) ?? this.#running;
    if (last === undefined) action();
    else last.afterwards.push(action);
  }

  async close(): Promise<void> {
    this.#stop(new DisposedError("The device"));
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  #startWorker(setup: WorkerSetup): Promise<void> {
    return new Promise((resolve, reject) => {
      // Flags of the main thread, such as --input-type, need not make sense for a worker.
      const worker = new Worker(new URL("./worker.js", import.meta.url), {
        workerData: setup,
        name: `nexus-cpu-${setup.worker}`,
        execArgv: [],
      });
      this.#workers.push(worker);
      const fail = (why: string, cause?: unknown) => {
        const error = new DeviceFailedError(
          `Worker thread ${setup.worker} of the CPU device ${why}. Open a new device.`,
          { cause },
        );
        this.#stop(error);
        reject(error);
      };
      worker.on("error", (cause) => fail(`failed: ${cause.message}`, cause));
      worker.on("exit", (code) => fail(`ended with exit code ${code}`));
      worker.on("message", (message: WorkerMessage) => {
        if (message === "ready") resolve();
        else this.#finish(message);
      });
    });
  }

  /** Starts the next program in the queue, or lets the process go if there is none. */
  #next(): void {
    const submission = this.#queue.shift();
    this.#running = submission;
    if (submission === undefined) {
      this.#workers[0]?.unref();
      return;
    }
    const { image, shares } = submission;
    const control = this.#control;
    try {
      this.#reserve(image.byteLength);
    } catch (error) {
      this.#settle(submission, error as NexusError);
      this.#next();
      return;
    }
    this.#words.set(image);
    control[PROGRAM] = this.#place.address;
    control[SEQUENCE] = ++this.#sequence;
    control[PAGES] = this.#memory.wasm.buffer.byteLength / PAGE;
    control[BOUND] = shares.bound ? 1 : 0;
    control.set(shares.shares, SHARES);
    control.set(shares.serves, SERVES);
    Atomics.store(control, GATE, RUNNING);
    Atomics.add(control, WAKE, 1);
    if (Atomics.load(control, SLEEPERS) > 0) Atomics.notify(control, WAKE);
  }

  /** Makes sure that a program of that many bytes has a place. Nobody is inside the last one when this is called. */
  #reserve(byteLength: number): void {
    if (byteLength <= this.#place.byteLength) return;
    const larger = this.#memory.allocate(byteLength, "programs", false);
    this.#memory.release(this.#place);
    this.#place = larger;
    this.#words = new Int32Array(this.#memory.wasm.buffer, larger.address, byteLength / 4);
  }

  #finish(sequence: number): void {
    const submission = this.#running;
    if (submission === undefined || sequence !== this.#sequence) return;
    const fault = faultOf(this.#words);
    // Before the next one begins, which may write what is copied afterwards.
    this.#settle(submission, fault);
    this.#next();
  }

  #settle({ resolve, reject, afterwards }: Submission, error: NexusError | undefined): void {
    for (const action of afterwards) action();
    if (error === undefined) resolve();
    else reject(error);
  }

  /** Rejects all that is under way or waiting, and whatever comes later. */
  #stop(error: NexusError): void {
    if (this.#end !== undefined) return;
    this.#end = error;
    const submissions = this.#running === undefined ? [] : [this.#running];
    submissions.push(...this.#queue.splice(0));
    this.#running = undefined;
    for (const submission of submissions) this.#settle(submission, error);
    for (const worker of this.#workers) void worker.terminate();
  }
}
