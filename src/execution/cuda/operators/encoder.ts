/**
 * An operator on its way to becoming work: its checked arguments, and the launches,
 * copies and fills written so far. What was written is given back if a later check
 * fails, and when the encoded operator is disposed of.
 */

import type { CudaBuffer } from "../buffer.ts";
import type { Kernel } from "../bundle/kernel-set.ts";
import type { KernelValues, Launch } from "../launch/launch.ts";
import type { EncodedOperator, Work } from "../work.ts";
import { OperatorArguments } from "./arguments.ts";
import type { OperatorContext } from "./context.ts";
import type { Grid } from "./grids.ts";
import { kernelWork, type WorkOptions } from "./kernel-work.ts";

/** An encoded operator; disposing of it gives its launches back, once nothing will issue them again. */
export type OwnedOperator = EncodedOperator & Disposable;

export class OperatorEncoder extends OperatorArguments implements OwnedOperator {
  readonly context: OperatorContext;
  readonly work: Work[] = [];
  readonly beside: Work[] = [];
  /** Set where the operator reads or writes what the `beside` of an earlier one does. */
  afterBeside = false;
  readonly #operator: string;
  readonly #launches: Launch[] = [];

  constructor(context: OperatorContext, operator: string) {
    super(context.owner, operator);
    this.context = context;
    this.#operator = operator;
  }

  /**
   * Takes on the work of an operator that this one does along with its own, as what comes next. Its arguments are
   * checked by themselves: what it puts out may be what this one takes.
   */
  along<T>(name: string, encode: (to: OperatorEncoder) => T): T {
    const part = new OperatorEncoder(this.context, `${this.#operator}: ${name}`);
    try {
      const made = encode(part);
      part.checkOutputs();
      this.work.push(...part.work);
      this.beside.push(...part.beside);
      this.afterBeside ||= part.afterBeside;
      this.resources.push(...part.resources);
      return made;
    } finally {
      this.#launches.push(...part.#launches);
    }
  }

  kernel(kernel: Kernel, values: KernelValues, grid: Grid, options?: WorkOptions): void {
    this.work.push(this.#written(kernel, values, grid, options));
  }

  /** Sets so many 32-bit words of scratch memory to 0. */
  clear({ address }: CudaBuffer, words: number): void {
    this.work.push({ kind: "fill", address, value: 0, words });
  }

  kernelBeside(kernel: Kernel, values: KernelValues, grid: Grid, options?: WorkOptions): void {
    this.beside.push(this.#written(kernel, values, grid, options));
  }

  /** Brings buffers that were written to the host, those of them that are mirrored. */
  mirror(...written: readonly CudaBuffer[]): void {
    for (const { mirror, address, byteLength } of written) {
      if (mirror === undefined) continue;
      this.beside.push({
        kind: "mirror",
        target: mirror.address,
        source: address,
        bytes: byteLength,
      });
    }
  }

  #written(kernel: Kernel, values: KernelValues, grid: Grid, options?: WorkOptions): Work {
    const work = kernelWork(this.context, kernel, values, grid, options);
    this.#launches.push(work.launch);
    return work;
  }

  [Symbol.dispose](): void {
    for (const launch of this.#launches) launch[Symbol.dispose]();
  }
}
