/**
 * The word in which routing kernels report a row without finite weights: on the device,
 * where they lower it, and in page-locked memory, where each launch leaves it. It is put
 * back only after a fault, so that a launch without one spends nothing on it and one
 * that routes twice reports the first.
 */

import { InvalidLogitsError, type NexusError } from "../../errors.ts";
import type { CudaBuffer } from "./buffer.ts";
import type { Driver } from "./driver/driver.ts";
import { NO_FAULT } from "./operators/route.ts";

export class FaultWord {
  readonly device: bigint;
  readonly host: bigint;
  readonly #word: Int32Array;
  readonly #driver: Driver;
  readonly #stream: bigint;

  /** @param buffer a mirrored one of 4 bytes */
  constructor(driver: Driver, buffer: CudaBuffer, stream: bigint) {
    const { mirror } = buffer;
    if (mirror === undefined) throw new TypeError("The fault word needs a mirror.");
    this.device = buffer.address;
    this.host = mirror.address;
    this.#word = new Int32Array(mirror.bytes.buffer, mirror.bytes.byteOffset, 1);
    this.#driver = driver;
    this.#stream = stream;
    this.#reset();
  }

  /** What the work that is just done found, if anything; then forgets it. Nothing that routes may be under way. */
  take(): NexusError | undefined {
    const row = this.#word[0] as number;
    if (row === NO_FAULT) return undefined;
    this.#reset();
    return new InvalidLogitsError(row);
  }

  #reset(): void {
    this.#word[0] = NO_FAULT;
    this.#driver.fillWords(this.device, NO_FAULT, 1, this.#stream);
  }
}
