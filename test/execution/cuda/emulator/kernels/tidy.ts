/** kernels/triton/routing/tidy.py */

import type { KernelCall } from "../call.ts";

const OUT = 1;
const COUNTS_HOST = 2;
const FAULT_HOST = 4;
const CLEAR = 8;

/** A kernel of its own: program i has words BLOCK * i and on. */
export function tidy(call: KernelCall): void {
  tidyUp(call, "");
}

/** What programs of a kernel do of it, in blocks of any size and as many turns as that takes. */
export function tidyUp(call: KernelCall, prefix = "tidy_"): void {
  const number = (name: string) => call.number(`${prefix}${name}`);
  const pointer = (name: string) => call.pointer(`${prefix}${name}`);
  const [experts, options] = [number("experts"), number("options")];
  if (experts > 0) {
    const counts = [...pointer("counts").loadInts(0, experts)];
    if (options & OUT) pointer("out").storeInts(0, counts);
    if (options & COUNTS_HOST) pointer("counts_host").storeInts(0, counts);
    if (options & CLEAR) pointer("counts").storeInts(0, counts.fill(0));
  }
  if (options & FAULT_HOST) pointer("fault_host").storeInts(0, [pointer("fault").int(0)]);
}
