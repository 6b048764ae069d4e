/**
 * `route`: logits to ids and weights in one kernel, and who chose whom; or as a part of another kernel's work (decode.ts).
 *
 * With a `bucket` operator to follow, counts are left to it: it counts the sets of
 * choices anyway. Without one the kernel adds counts up itself, in memory that is
 * zero when it starts; the copy to the caller's buffer, and the clearing, are left to
 * tidy.ts.
 */

import type { RouteOperator } from "../../operators.ts";
import { byLogits, checkRule } from "../../routing-rule.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { KernelValues } from "../launch/launch.ts";
import type { RowType } from "../rows.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid } from "./grids.ts";
import { Scratch } from "./scratch.ts";
import { kernelForExperts, MOST_CHOICES, setsOf } from "./sets.ts";
import { tidyUp } from "./tidy.ts";

/** What the fault word holds when no row was at fault: above every row. */
export const NO_FAULT = 0x7fffffff;

/** Counts of `route` operators without a `bucket` operator: zero between launches. */
const ownCounts = new Scratch<{ readonly buffer: CudaBuffer }>();

/** A `route` operator whose arguments are checked. */
interface Routing {
  /** Of parameters that every kernel that routes has. */
  readonly values: KernelValues;
  /** Of parameters that only `route` has. */
  readonly others: KernelValues;
  /** Bits of `route`'s options that the rule asks for. */
  readonly options: number;
  /** Whether choices follow from the logits alone: what the plain kernels know. */
  readonly plain: boolean;
  /** Of the logits. */
  readonly element: RowType;
  readonly ids: CudaBuffer;
  readonly weights: CudaBuffer;
  readonly counts: CudaBuffer;
}

export function encodeRoute(operator: RouteOperator, to: OperatorEncoder): void {
  const { context } = to;
  const routing = checked(operator, to);
  const { element, ids, counts } = routing;
  const { experts, mostTokens } = operator;
  // The plain kernels leave out what few models need; not every architecture has them.
  const plain =
    routing.plain && context.kernels.all({ operator: "route", element, plain: true }).length > 0;
  const { kernel, padded } = kernelForExperts(to, context.kernels, "route", experts, {
    element,
    plain,
  });
  const bits = context.kernels.manifest.options["route"] ?? {};
  const sets = operator.bucketed ? setsOf(ids, padded, mostTokens, context) : undefined;
  const own = operator.bucketed ? undefined : zeroCounts(ids, experts, to);
  if (sets !== undefined) sets.counts = counts;
  to.kernel(
    kernel,
    {
      ...routing.values,
      ...routing.others,
      sets: sets?.buffer.address ?? null,
      counts: own?.address ?? null,
      options: routing.options | (bits[own === undefined ? "sets" : "counts"] ?? 0),
    },
    coverGrid(kernel.entry, { most_tokens: mostTokens }),
  );
  finish(operator, routing, own, to);
}

/**
 * Routing by a kernel that does other work as well, and leaves nothing to tidy up: its parameters for that, and the mirrors that it
 * brings up to date. The rule goes by the logits alone (`byLogits`), and no `bucket` operator follows.
 */
export function routedAlong(operator: RouteOperator, to: OperatorEncoder): RoutedAlong {
  const routing = checked(operator, to);
  const { counts, element, options, values } = routing;
  const { fault, kernels } = to.context;
  finish(operator, routing, undefined, to);
  return {
    values: {
      ...values,
      logits_kind: kernels.manifest.logits[element] as number,
      counts: counts.address,
      counts_host: counts.mirror?.address ?? null,
      fault_host: fault.host,
      route_options: options,
    },
    mirrors: counts.mirror === undefined ? [] : [counts.mirror.address],
  };
}

export interface RoutedAlong {
  readonly values: KernelValues;
  readonly mirrors: readonly bigint[];
}

function checked(operator: RouteOperator, to: OperatorEncoder): Routing {
  const { manifest } = to.context.kernels;
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
  const bits = manifest.options["route"] ?? {};
  const bit = (name: string, set: boolean) => (set ? (bits[name] ?? 0) : 0);
  return {
    values: {
      logits: logits.address,
      tokens: tokens.address,
      ids: ids.address,
      weights: weights.address,
      fault: to.context.fault.device,
      experts,
      top_k: topK,
      most_tokens: mostTokens,
      scoring: manifest.scorings[scoring] as number,
      scale,
    },
    others: { bias, groups: groupLimit?.groups ?? 0, keep: groupLimit?.keep ?? 0, jitter },
    options:
      bit("bias", bias !== null) |
      bit("renormalize", operator.rule.renormalize) |
      bit("top2_sum", groupLimit?.score === "top2-sum"),
    plain: byLogits(operator.rule, bias !== null),
    element,
    ids,
    weights,
    counts,
  };
}

/** What is left to do when the kernel is done. @param own counts that it adds up itself */
function finish(
  { experts }: RouteOperator,
  { ids, weights, counts }: Routing,
  own: CudaBuffer | undefined,
  to: OperatorEncoder,
): void {
  to.afterBeside = true;
  to.mirror(ids, weights);
  if (own === undefined) return;
  tidyUp({ experts, counts: own, out: counts, fault: true, clear: true }, to);
}

function zeroCounts(ids: CudaBuffer, experts: number, { context }: OperatorEncoder): CudaBuffer {
  return ownCounts.of(ids, [experts], () => ({
    buffer: context.scratch(experts * 4, `counts of ${ids.label}`),
  })).buffer;
}
