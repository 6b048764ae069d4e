/**
 * Memory of the device's own that belongs to a caller's buffer: made when an
 * operator first needs it, found again by its sizes, closed with the buffer.
 *
 * A buffer keeps one for each set of sizes it was used with: a graph captured with
 * others goes on using its own.
 */

import type { CudaBuffer } from "../buffer.ts";

export class Scratch<T extends { readonly buffer: CudaBuffer }> {
  readonly #of = new WeakMap<CudaBuffer, Map<string, T>>();

  /** What was made for these sizes, if it was. */
  find(owner: CudaBuffer, ...sizes: readonly number[]): T | undefined {
    return this.#of.get(owner)?.get(sizes.join(" "));
  }

  /** What was made for these sizes, or what `make` gives. */
  of(owner: CudaBuffer, sizes: readonly number[], make: () => T): T {
    const key = sizes.join(" ");
    let known = this.#of.get(owner);
    if (known === undefined) {
      known = new Map();
      this.#of.set(owner, known);
    }
    const found = known.get(key);
    if (found !== undefined) return found;
    const made = make();
    owner.attach(made.buffer);
    known.set(key, made);
    return made;
  }
}
