/**
 * `route`: logits to ids and weights in one kernel, and who chose whom.
 *
 * With a `bucket` operator to follow, counts are left to it: it counts the sets of
 * choices anyway. Without one the kernel adds counts up itself, in memory that is
 * zero when it starts; the copy to the caller's buffer, and the clearing, are left to
 * tidy.ts.
 */

import type { RouteOperator } from "../../operators.ts";
import { byLogits, checkRule } from "../../routing-rule.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid } from "./grids.ts";
import { Scratch } from "./scratch.ts";
import { kernelForExperts, MOST_CHOICES, setsOf } from "./sets.ts";
import { tidyUp } from "./tidy.ts";

/** What the fault word holds when no row was at fault: above every row. */
export const NO_FAULT = 0x7fffffff;

/** Counts of `route` operators without a `bucket` operator: zero between launches. */
const ownCounts = new Scratch<{ readonly buffer: CudaBuffer }>();

export function encodeRoute(operator: RouteOperator, to: OperatorEncoder): void {
  const { context } = to;
  const { manifest } = context.kernels;
  const experts = to.integer("experts", operator.experts, 1);
  const topK = to.integer("topK", operator.topK, 1, Math.min(experts, MOST_CHOICES));
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1);
  const slots = to.slots("mostTokens", mostTokens, topK);
  const rule = checkRule(operator.rule, experts, topK, to);
  const tokens = to.input("tokens", operator.tokens, 1);
  const element = to.rowType("logitsType", operator.logitsType ?? "float32");
  const logits = to.input("logits", operator.logits, mostTokens * experts, element);
  const bias = to.optional("selectionBias", operator.selectionBias, experts);
  const ids = to.output("ids", operator.ids, slots);
  const weights = to.output("weights", operator.weights, slots, "float32");
  const counts = to.output("counts", operator.counts, experts);

  const { scoring, groupLimit, scale, jitter } = rule;
  // The plain kernels leave out what few models need; not every architecture has them.
  const plain = byLogits(operator.rule, bias !== null);
  const selects = { element, plain };
  const some = context.kernels.all({ operator: "route", ...selects }).length > 0;
  const { kernel, padded } = kernelForExperts(to, context.kernels, "route", experts, {
    ...selects,
    plain: plain && some,
  });
  const bits = manifest.options["route"] ?? {};
  const bit = (name: string, set: boolean) => (set ? (bits[name] ?? 0) : 0);
  const sets = operator.bucketed ? setsOf(ids, padded, mostTokens, context) : undefined;
  const own = operator.bucketed ? undefined : zeroCounts(ids, experts, to);
  if (sets !== undefined) sets.counts = counts;

  to.afterBeside = true;
  to.kernel(
    kernel,
    {
      logits: logits.address,
      bias,
      tokens: tokens.address,
      ids: ids.address,
      weights: weights.address,
      sets: sets?.buffer.address ?? null,
      counts: own?.address ?? null,
      fault: context.fault.device,
      experts,
      top_k: topK,
      most_tokens: mostTokens,
      scoring: manifest.scorings[scoring] as number,
      options:
        bit("bias", bias !== null) |
        bit("renormalize", operator.rule.renormalize) |
        bit("top2_sum", groupLimit?.score === "top2-sum") |
        bit("sets", sets !== undefined) |
        bit("counts", own !== undefined),
      groups: groupLimit?.groups ?? 0,
      keep: groupLimit?.keep ?? 0,
      scale,
      jitter,
    },
    coverGrid(kernel.entry, { most_tokens: mostTokens }),
  );
  to.mirror(ids, weights);
  if (own === undefined) return;
  tidyUp({ experts, counts: own, out: counts, fault: true, clear: true }, to);
}

function zeroCounts(ids: CudaBuffer, experts: number, { context }: OperatorEncoder): CudaBuffer {
  return ownCounts.of(ids, [experts], () => ({
    buffer: context.scratch(experts * 4, `counts of ${ids.label}`),
  })).buffer;
}
