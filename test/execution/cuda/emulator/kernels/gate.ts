/** kernels/triton/routing/gate.py */

import type { KernelCall } from "../call.ts";
import { sigmoid } from "./activation.ts";
import { dot } from "./project.ts";

const BIAS = 1;
const SIGMOID = 2;

/** Program (e, t): output e of token t. */
export function gateFew(call: KernelCall): void {
  const [n, k, options] = [call.number("n"), call.number("k"), call.number("options")];
  const live = call.pointer("tokens").int(0);
  for (let token = 0; token < call.grid.y; token++) {
    // Loaded before it is known whether the token is there.
    const x = call.pointer("x").load(token * call.number("x_pitch"), k);
    const results = new Float32Array(call.grid.x);
    for (let column = 0; column < call.grid.x; column++) {
      const total = dot(x, call.pointer("w").load(column * k, k));
      results[column] = finish(call, total, column, options);
    }
    if (token < live) call.pointer("out").store(token * n, results);
  }
}

/** Program (i, j): outputs from BLOCK_N * i on of the tokens from BLOCK_M * j on. */
export function gate(call: KernelCall): void {
  const [n, k, options] = [call.number("n"), call.number("k"), call.number("options")];
  const live = call.pointer("tokens").int(0);
  const [height, width] = [call.constant("BLOCK_M"), call.constant("BLOCK_N")];
  const columns = call.grid.x * width;
  if (call.grid.y === 0 || live === 0) return;
  const weights = Array.from({ length: columns }, (_, i) => call.pointer("w").load(i * k, k));
  for (let row = 0; row < Math.min(live, call.grid.y * height); row++) {
    const x = call.pointer("x").load(row * call.number("x_pitch"), k);
    const results = Float32Array.from(weights, (w, i) => finish(call, dot(x, w), i, options));
    call.pointer("out").store(row * n, results.subarray(0, Math.min(n, columns)));
  }
}

function finish(call: KernelCall, total: number, column: number, options: number): number {
  const sum = options & BIAS ? total + call.pointer("bias").float(column) : total;
  return options & SIGMOID ? sigmoid(sum) : sum;
}
