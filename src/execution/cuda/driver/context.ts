/**
 * A GPU's primary context, the one that all code of a process shares.
 *
 * "Current" is a property of the thread and other code on it may change it, so
 * whoever is about to call the driver says `current()` first; it costs less than a
 * tenth of a microsecond.
 */

import { DisposedError } from "../../../errors.ts";
import type { Driver } from "./driver.ts";
import { release } from "./errors.ts";

type ContextDriver = Pick<Driver, "retainContext" | "setCurrent" | "releaseContext">;

export class Context {
  readonly ordinal: number;
  readonly #driver: ContextDriver;
  readonly #handle: bigint;
  #closed = false;

  /** Retains the context and makes it current. @throws CudaError */
  constructor(driver: ContextDriver, ordinal: number) {
    this.ordinal = ordinal;
    this.#driver = driver;
    this.#handle = driver.retainContext(ordinal);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Makes it this thread's current context. @throws DisposedError */
  current(): void {
    if (this.#closed) throw new DisposedError(`The context of GPU ${this.ordinal}`);
    this.#driver.setCurrent(this.#handle);
  }

  /** Gives it back; the driver destroys it once nobody else holds it. Close what lives in it before. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    release(() => this.#driver.releaseContext(this.ordinal));
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
