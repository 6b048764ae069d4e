/**
 * What is left to do when routing is done, beside the products: counts and fault to the host, and counts that
 * routing added up by itself empty again for the next launch. Done by a kernel that writes to page-locked memory by
 * itself: the one that ends the step, if it can (`tidiesUp`, `tidiesOwn`), or one of its own.
 */

import type { CudaBuffer } from "../buffer.ts";
import type { KernelValues } from "../launch/launch.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid } from "./grids.ts";

/** What parameters of the tidying are called in a kernel that does it along with its own work. */
const prefixed = (values: KernelValues): KernelValues =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [`tidy_${name}`, value]));

/** The parameters of a kernel that could tidy up and has nothing to: routing/tidy.py. */
export const NOTHING_TO_TIDY = prefixed({
  counts: null,
  out: null,
  counts_host: null,
  fault: null,
  fault_host: null,
  experts: 0,
  options: 0,
});

export interface Tidying {
  readonly experts: number;
  /** int32 [experts]. */
  readonly counts: CudaBuffer;
  /** Where the counts are wanted, if that is elsewhere. */
  readonly out?: CudaBuffer;
  /** Whether there can be a fault. */
  readonly fault: boolean;
  /** Whether the counts are to be cleared. */
  readonly clear: boolean;
}

/** Writes the tidying up down, beside what follows. */
export function tidyUp(tidying: Tidying, to: OperatorEncoder): void {
  const { experts, counts, out, fault, clear } = tidying;
  const { kernels, fault: word } = to.context;
  const { mirror } = out ?? counts;
  const kernel = kernels.find({ operator: "tidy" });
  const bits = kernels.manifest.options["tidy"] ?? {};
  const bit = (name: string, set: boolean) => (set ? (bits[name] ?? 0) : 0);
  const values = {
    counts: counts.address,
    out: out?.address ?? null,
    counts_host: mirror?.address ?? null,
    fault: word.device,
    fault_host: word.host,
    experts,
    options:
      bit("out", out !== undefined) |
      bit("counts_host", mirror !== undefined) |
      bit("fault_host", fault) |
      bit("clear", clear),
  };
  to.kernelBeside(kernel, values, coverGrid(kernel.entry, { experts }), {
    tidying: prefixed(values),
    ...(mirror && { mirrors: [mirror.address] }),
  });
}
