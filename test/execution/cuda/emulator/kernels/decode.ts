/** kernels/triton/experts/decode.py */

import type { KernelCall } from "../call.ts";
import type { Element } from "../memory.ts";
import { keyOf } from "../numbers.ts";
import { activate, activationNumbers, joinGate } from "./activation.ts";
import { addSharedAndResidual, WEIGHTS } from "./aggregation.ts";
import { loadRows } from "./panels.ts";
import { dot } from "./project.ts";
import { tidyUp } from "./tidy.ts";

const BIAS = 2;
const INPUT_SCALE = 4;
const SECOND_BIAS = 16;
/** By `logits_kind`. */
const LOGITS = ["fp32", "bf16", "fp16"] as const satisfies readonly Element[];

export function decodeFirst(call: KernelCall): void {
  const number = (name: string) => call.number(name);
  const [n, k, topK, options] = [number("n"), number("k"), number("top_k"), number("options")];
  const gated = call.flag("GATED");
  const numbers = activationNumbers(call);
  // Nothing masks the rows: the grid says how many there are.
  const rows = call.grid.y * call.constant("ROWS");
  for (let slot = 0; slot < call.grid.x; slot++) {
    const token = Math.floor(slot / topK);
    if (token >= call.pointer("tokens").int(0)) continue;
    const picks = call.constant("EXPERTS") > 0;
    const matrix = picks ? picked(call, token, slot % topK) : call.pointer("ids").int(slot);
    if (matrix < 0) continue;
    const x = call.pointer("x").load(token * number("x_pitch"), k);
    const scale = options & INPUT_SCALE ? call.pointer("input_scale").float(slot) : 1;
    const bias = options & BIAS ? call.pointer("bias").load(matrix * n, rows) : undefined;
    const weights = loadRows(call.pointer("w"), { matrix, n, k }, 0, rows);
    const acc = weights.map((w, row) => dot(x, w) * scale + (bias?.[row] ?? 0));
    const result = new Float32Array(gated ? rows / 2 : rows);
    for (let i = 0; i < result.length; i++) {
      result[i] = gated
        ? joinGate(acc[2 * i] as number, acc[2 * i + 1] as number, numbers)
        : activate(acc[i] as number, numbers);
    }
    call.pointer("out").store(slot * number("out_pitch"), result);
  }
}

/** `pick` of kernels/triton/routing/route.py: number `nth` of a token's choices. */
function picked(call: KernelCall, token: number, nth: number): number {
  const experts = call.number("experts");
  const logits = call.pointer("logits").as(LOGITS[call.number("logits_kind")] as Element);
  const keys = Array.from(logits.load(token * experts, experts), keyOf);
  const order = keys.map((_, expert) => expert);
  order.sort((a, b) => (keys[b] as number) - (keys[a] as number) || a - b);
  return order[nth] as number;
}

export function decodeSecond(call: KernelCall): void {
  tidyUp(call);
  const number = (name: string) => call.number(name);
  const [n, k, topK, options] = [number("n"), number("k"), number("top_k"), number("options")];
  const width = number("width");
  const rows = call.grid.y * call.constant("ROWS");
  for (let token = 0; token < call.grid.x; token++) {
    if (token >= call.pointer("tokens").int(0)) continue;
    const total = new Float32Array(rows);
    const choices = Array.from({ length: topK }, (_, choice) => {
      const slot = token * topK + choice;
      return { slot, matrix: call.pointer("ids").int(slot) };
    });
    // Sorting is stable, as the kernel's ranks are.
    for (const { slot, matrix } of choices.sort((a, b) => a.matrix - b.matrix)) {
      const given = options & WEIGHTS ? call.pointer("weights").float(slot) : 1;
      if (matrix < 0) continue;
      const x = call.pointer("x").load(slot * number("x_pitch"), k);
      const bias = options & SECOND_BIAS ? call.pointer("bias").load(matrix * n, rows) : undefined;
      const weights = loadRows(call.pointer("w"), { matrix, n, k }, 0, rows);
      for (const [row, w] of weights.entries()) {
        const product = dot(x, w);
        total[row] = (total[row] as number) + given * (product + (bias?.[row] ?? 0));
      }
    }
    const stored = Math.min(rows, width);
    const sums = total.subarray(0, stored);
    addSharedAndResidual(call, sums, token, 0);
    call.pointer("out").store(token * width, sums);
  }
}
