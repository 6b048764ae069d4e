/** What every call of the fake driver has in common: it is counted, and can be made to fail. */

import type { Driver } from "../../../src/execution/cuda/driver/driver.ts";
import { CudaError } from "../../../src/execution/cuda/driver/errors.ts";

export class FakeCalls {
  /** How often each call was made. */
  readonly counts = new Map<string, number>();
  /** After this every call fails. */
  protected lost: CudaError | undefined;
  readonly #failures = new Map<string, { skip: number; result: number }>();
  #nextHandle = 1n;

  count(call: keyof Driver): number {
    return this.counts.get(call) ?? 0;
  }

  /** Makes a call fail, once, after so many that succeed. */
  fail(call: keyof Driver, { skip = 0, result = 999 } = {}): void {
    this.#failures.set(call, { skip, result });
  }

  protected handle(): bigint {
    this.#nextHandle += 1n;
    return this.#nextHandle;
  }

  protected call(name: keyof Driver): void {
    if (this.lost !== undefined) throw this.lost;
    this.counts.set(name, this.count(name) + 1);
    const failure = this.#failures.get(name);
    if (failure === undefined) return;
    if (failure.skip > 0) {
      failure.skip -= 1;
      return;
    }
    this.#failures.delete(name);
    throw failed(name, failure.result);
  }
}

export function failed(call: string, result: number): CudaError {
  return new CudaError(call, result, `FAKE_ERROR_${result}`);
}
