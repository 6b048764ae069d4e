/**
 * A compute unit: a thread that waits for programs and works at them. It keeps no
 * state between programs and knows nothing of graphs, streams or buffers.
 */

import { availableParallelism } from "node:os";
import { parentPort, workerData } from "node:worker_threads";
import { TileContext } from "./context.ts";
import { SEQUENCE, SLEEPERS, WAKE } from "./control.ts";
import { instantiateKernels } from "./kernels.ts";
import { TILE_OPERATORS } from "./operators/index.ts";
import { Scheduler } from "./scheduler.ts";

/** What the main thread starts a worker with. */
export interface WorkerSetup {
  readonly control: Int32Array;
  readonly memory: WebAssembly.Memory;
  readonly kernels: WebAssembly.Module;
  readonly worker: number;
  readonly workers: number;
  readonly scratch: number;
}

/** What a worker tells the main thread: it is up, or program number so-and-so is over. */
export type WorkerMessage = "ready" | number;

/**
 * How long a worker without work looks for more before it sleeps: 50 us, about what
 * it takes to wake it. That spans most single-tile operators inside a program and
 * the host's way from one launch to the next. Where there are as many workers as
 * cores, longer spins between programs keep the main thread from its core: with
 * 200 and 500 us, many round trips took that much longer.
 *
 * On a single core any spinning keeps the others from their work.
 */
const SPIN_MILLISECONDS = availableParallelism() > 1 ? 0.05 : 0;

const setup = workerData as WorkerSetup;
const { control } = setup;

/** Returns when there may be new work, that is when WAKE is no longer `seen`. */
function idle(seen: number, spinMilliseconds: number): void {
  const until = performance.now() + spinMilliseconds;
  while (performance.now() < until) {
    if (Atomics.load(control, WAKE) !== seen) return;
  }
  Atomics.add(control, SLEEPERS, 1);
  Atomics.wait(control, WAKE, seen);
  Atomics.sub(control, SLEEPERS, 1);
}

function main(): void {
  const kernels = instantiateKernels(setup.kernels, setup.memory);
  const context = new TileContext(kernels, setup.memory, setup.workers, setup.scratch);
  const scheduler = new Scheduler(control, context, TILE_OPERATORS, setup.worker);
  const say = (message: WorkerMessage) => parentPort?.postMessage(message);
  say("ready");
  let spin = SPIN_MILLISECONDS;
  for (;;) {
    // Read before looking for work: whatever is opened after the look changes it.
    const seen = Atomics.load(control, WAKE);
    if (scheduler.work()) {
      say(control[SEQUENCE] as number);
      // The message wakes the main thread on this core, which it should find free.
      spin = 0;
    } else {
      idle(seen, spin);
      spin = SPIN_MILLISECONDS;
    }
  }
}

main();
