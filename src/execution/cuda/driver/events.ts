/**
 * Events for reuse. Making one costs a call and a bigint, so a launch takes those it
 * needs from here and gives them back.
 */

import { DisposedError } from "../../../errors.ts";
import type { Driver } from "./driver.ts";
import { release } from "./errors.ts";

type EventDriver = Pick<Driver, "createEvent" | "destroyEvent">;

export class EventPool {
  readonly #driver: EventDriver;
  readonly #timing: boolean;
  readonly #all = new Set<bigint>();
  readonly #idle = new Set<bigint>();
  #closed = false;

  /** @param timing whether `elapsedMilliseconds` may be asked of them; costs the GPU a little */
  constructor(driver: EventDriver, timing: boolean) {
    this.#driver = driver;
    this.#timing = timing;
  }

  /** Events made so far, in use or idle. */
  get size(): number {
    return this.#all.size;
  }

  /** @throws CudaError, DisposedError */
  take(): bigint {
    if (this.#closed) throw new DisposedError("The event pool");
    for (const event of this.#idle) {
      this.#idle.delete(event);
      return event;
    }
    const event = this.#driver.createEvent(this.#timing);
    this.#all.add(event);
    return event;
  }

  /** Back for reuse: nothing waits for it any more. Twice is once; events of other pools are not taken. */
  give(event: bigint): void {
    if (this.#all.has(event)) this.#idle.add(event);
  }

  /** Destroys all events, those in use too. */
  close(): void {
    this.#closed = true;
    for (const event of this.#all) release(() => this.#driver.destroyEvent(event));
    this.#all.clear();
    this.#idle.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
