/** kernels/triton/experts/decode.py and decode_packed.py, whose sums are in this one's order here. */

import type { KernelCall } from "../call.ts";
import type { Element } from "../memory.ts";
import { keyOf } from "../numbers.ts";
import { activate, activationNumbers, joinGate } from "./activation.ts";
import { addSharedAndResidual, WEIGHTS } from "./aggregation.ts";
import { GROUP, unpackRowsByAddress } from "./packed.ts";
import { loadRows, type PaneledMatrix } from "./panels.ts";
import { dot } from "./project.ts";
import { routeRow } from "./route.ts";
import { tidyUp } from "./tidy.ts";

const BIAS = 2;
const INPUT_SCALE = 4;
const SECOND_BIAS = 16;
/** By `logits_kind`. */
const LOGITS = ["fp32", "bf16", "fp16"] as const satisfies readonly Element[];

/** How a kernel has its weights. */
interface Weights {
  /** That a program has. */
  rows(call: KernelCall): number;
  gated(call: KernelCall): boolean;
  load(call: KernelCall, matrix: PaneledMatrix, count: number): readonly Float32Array[];
}

const PLAIN: Weights = {
  rows: (call) => call.constant("ROWS"),
  gated: (call) => call.flag("GATED"),
  load: (call, matrix, count) => loadRows(call.pointer("w"), matrix, 0, count),
};

const PACKED: Weights = {
  rows: () => GROUP,
  gated: () => true,
  load: (call, matrix, count) => unpackRowsByAddress(call, matrix, 0, count),
};

export const decodeFirst = (call: KernelCall): void => first(call, PLAIN);
export const decodePackedFirst = (call: KernelCall): void => first(call, PACKED);
export const decodeRouting = (call: KernelCall): void => routing(call, PLAIN);
export const decodePackedRouting = (call: KernelCall): void => routing(call, PACKED);
export const decodeSecond = (call: KernelCall): void =>
  second(call, PLAIN, call.grid.x, call.grid.y);
export const decodePackedSecond = (call: KernelCall): void =>
  second(call, PACKED, call.grid.x, call.grid.y);
/** All tokens there are, by programs of a grid of one axis. */
export const decodePackedSecondJoint = (call: KernelCall): void =>
  second(call, PACKED, call.pointer("tokens").int(0), call.grid.x);

function first(call: KernelCall, kept: Weights): void {
  firstProduct(call, kept, call.grid.y, (slot) => call.pointer("ids").int(slot));
}

/** Programs of the first row route, those of the others look for their experts themselves. */
function routing(call: KernelCall, kept: Weights): void {
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
  firstProduct(call, kept, call.grid.y - 1, (slot) => {
    const token = Math.floor(slot / topK);
    return picked(logits.load(token * experts, experts), slot % topK);
  });
}

function firstProduct(
  call: KernelCall,
  kept: Weights,
  parts: number,
  matrixOf: (slot: number) => number,
): void {
  const number = (name: string) => call.number(name);
  const [n, k, topK, options] = [number("n"), number("k"), number("top_k"), number("options")];
  const gated = kept.gated(call);
  const numbers = activationNumbers(call);
  // Nothing masks the rows: the grid says how many there are.
  const rows = parts * kept.rows(call);
  for (let slot = 0; slot < call.grid.x; slot++) {
    const token = Math.floor(slot / topK);
    if (token >= call.pointer("tokens").int(0)) continue;
    const matrix = matrixOf(slot);
    if (matrix < 0) continue;
    const x = call.pointer("x").load(token * number("x_pitch"), k);
    const scale = options & INPUT_SCALE ? call.pointer("input_scale").float(slot) : 1;
    const bias = options & BIAS ? call.pointer("bias").load(matrix * n, rows) : undefined;
    const weights = kept.load(call, { matrix, n, k }, rows);
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

function second(call: KernelCall, kept: Weights, mostTokens: number, parts: number): void {
  tidyUp(call);
  const number = (name: string) => call.number(name);
  const [n, k, topK, options] = [number("n"), number("k"), number("top_k"), number("options")];
  const width = number("width");
  const rows = parts * kept.rows(call);
  for (let token = 0; token < mostTokens; token++) {
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
      const weights = kept.load(call, { matrix, n, k }, rows);
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
