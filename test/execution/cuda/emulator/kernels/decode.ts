/** kernels/triton/experts/decode.py */

import type { KernelCall } from "../call.ts";
import type { Element } from "../memory.ts";
import { keyOf } from "../numbers.ts";
import { activate, activationNumbers, joinGate } from "./activation.ts";
import { addSharedAndResidual, WEIGHTS } from "./aggregation.ts";
import { loadRows } from "./panels.ts";
import { dot } from "./project.ts";
import { routeRow } from "./route.ts";
import { tidyUp } from "./tidy.ts";

const BIAS = 2;
const INPUT_SCALE = 4;
const SECOND_BIAS = 16;
/** By `logits_kind`. */
const LOGITS = ["fp32", "bf16", "fp16"] as const satisfies readonly Element[];

export function decodeFirst(call: KernelCall): void {
  firstProduct(call, call.grid.y, (slot) => call.pointer("ids").int(slot));
}

/** Programs of the first row route, those of the others look for their experts themselves. */
export function decodeRouting(call: KernelCall): void {
  const [experts, topK] = [call.number("experts"), call.number("top_k")];
  const logits = call.pointer("logits").as(LOGITS[call.number("logits_kind")] as Element);
  const live = call.pointer("tokens").int(0);
  const counts = new Array<number>(experts).fill(0);
  for (let token = 0; token < live; token++) {
    const x = new Float32Array(call.constant("EXPERTS")).fill(Number.NEGATIVE_INFINITY);
    x.set(logits.load(token * experts, experts));
    for (const expert of routeRow(call, token, x, call.number("route_options"), true)) {
      counts[expert] = (counts[expert] as number) + 1;
    }
  }
  call.pointer("counts").storeInts(0, counts);
  if (!call.pointer("counts_host").isNull) call.pointer("counts_host").storeInts(0, counts);
  call.pointer("fault_host").storeInts(0, [call.pointer("fault").atomic(0)[0] as number]);
  firstProduct(call, call.grid.y - 1, (slot) => {
    const token = Math.floor(slot / topK);
    return picked(logits.load(token * experts, experts), slot % topK);
  });
}

function firstProduct(call: KernelCall, parts: number, matrixOf: (slot: number) => number): void {
  const number = (name: string) => call.number(name);
  const [n, k, topK, options] = [number("n"), number("k"), number("top_k"), number("options")];
  const gated = call.flag("GATED");
  const numbers = activationNumbers(call);
  // Nothing masks the rows: the grid says how many there are.
  const rows = parts * call.constant("ROWS");
  for (let slot = 0; slot < call.grid.x; slot++) {
    const token = Math.floor(slot / topK);
    if (token >= call.pointer("tokens").int(0)) continue;
    const matrix = matrixOf(slot);
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

/** `pick` of kernels/triton/routing/route.py: number `nth` of the choices of a token with these logits. */
function picked(logits: Float32Array, nth: number): number {
  const keys = Array.from(logits, keyOf);
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
