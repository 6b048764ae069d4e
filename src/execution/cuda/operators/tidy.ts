/**
 * What is left to do when routing is done, beside the products: counts and fault to the
 * host, and what routing filled empty again for the next launch. One kernel, which
 * writes to page-locked memory by itself.
 */

import type { CudaBuffer } from "../buffer.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid } from "./grids.ts";

export interface Tidying {
  readonly experts: number;
  /** int32 [experts]. */
  readonly counts: CudaBuffer;
  /** Where the counts are wanted, if that is elsewhere. */
  readonly out?: CudaBuffer;
  /** Whether there can be a fault. */
  readonly fault: boolean;
  /** Scratch memory to clear, in words. */
  readonly clear: CudaBuffer;
  readonly clearWords: number;
}

/** Writes the tidying up down, beside what follows. */
export function tidyUp(tidying: Tidying, to: OperatorEncoder): void {
  const { experts, counts, out, fault, clear, clearWords } = tidying;
  const { kernels, fault: word } = to.context;
  const { mirror } = out ?? counts;
  const kernel = kernels.find({ operator: "tidy" });
  const bits = kernels.manifest.options["tidy"] ?? {};
  const bit = (name: string, set: boolean) => (set ? (bits[name] ?? 0) : 0);
  to.kernelBeside(
    kernel,
    {
      counts: counts.address,
      out: out?.address ?? null,
      counts_host: mirror?.address ?? null,
      clear: clear.address,
      fault: word.device,
      fault_host: word.host,
      experts,
      clear_words: clearWords,
      options:
        bit("out", out !== undefined) |
        bit("counts_host", mirror !== undefined) |
        bit("fault_host", fault),
    },
    coverGrid(kernel.entry, { words: Math.max(experts, clearWords) }),
    mirror === undefined ? {} : { mirrors: [mirror.address] },
  );
}
