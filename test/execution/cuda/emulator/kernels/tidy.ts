/** kernels/triton/routing/tidy.py */

import type { KernelCall } from "../call.ts";

const OUT = 1;
const COUNTS_HOST = 2;
const FAULT_HOST = 4;

/** Program i: words BLOCK * i and on. */
export function tidy(call: KernelCall): void {
  const covered = call.grid.x * call.constant("BLOCK");
  const experts = Math.min(covered, call.number("experts"));
  const cleared = Math.min(covered, call.number("clear_words"));
  const options = call.number("options");
  const counts = [...call.pointer("counts").loadInts(0, experts)];
  if (options & OUT) call.pointer("out").storeInts(0, counts);
  if (options & COUNTS_HOST) call.pointer("counts_host").storeInts(0, counts);
  call.pointer("clear").storeInts(0, new Array<number>(cleared).fill(0));
  if (options & FAULT_HOST) {
    call.pointer("fault_host").storeInts(0, [call.pointer("fault").int(0)]);
  }
}
