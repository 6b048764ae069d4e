/**
 * `bucket`: offsets, order, inverse, the counts that `route` left open, and the work
 * lists of all lanes and classes of tiles, in one kernel.
 *
 * Beside what follows, or by the kernel itself where nothing does, counts and the fault word go to the host.
 */

import type { BucketOperator } from "../../operators.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid, fixedGrid } from "./grids.ts";
import { listSizes, listsOf } from "./lists.ts";
import { Scratch } from "./scratch.ts";
import {
  type ChoiceSets,
  findSets,
  kernelForExperts,
  MOST_CHOICES,
  setsOf,
  WORD_TOKENS,
} from "./sets.ts";
import { NOTHING_TO_TIDY, tidyUp } from "./tidy.ts";

/** Counts that the kernel writes and nobody asked for. */
const unreadCounts = new Scratch<{ readonly buffer: CudaBuffer }>();

export function encodeBucket(operator: BucketOperator, to: OperatorEncoder): void {
  const { context } = to;
  const experts = to.integer("experts", operator.experts, 1);
  const topK = to.integer("topK", operator.topK, 1, Math.min(experts, MOST_CHOICES));
  const lanes = to.integer("lanes", operator.lanes, 1);
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1);
  const slots = to.slots("mostTokens", mostTokens, topK);
  const rowType = to.rowType("rowType", operator.rowType);
  const { buckets, capacityFactor } = operator;
  if (capacityFactor !== undefined && to.finite("capacityFactor", capacityFactor) <= 0) {
    to.fail(`capacityFactor is ${capacityFactor}`, "Use more than 0.");
  }
  const tokens = to.input("tokens", operator.tokens, 1);
  const ids = to.input("ids", operator.ids, slots);
  const laneOf = to.input("buckets.laneOf", buckets.laneOf, experts);
  const offsets = to.output("buckets.offsets", buckets.offsets, experts + 1);
  const order = to.output("buckets.order", buckets.order, slots);
  const inverse = to.output("buckets.inverse", buckets.inverse, slots);

  const { kernel, padded } = kernelForExperts(to, context.kernels, "bucket", experts);
  const choices = operator.routed
    ? routedSets(ids, padded, operator, to)
    : markedSets(ids, tokens, padded, operator, to);
  const sizes = listSizes(context, rowType, buckets, { experts, lanes, mostTokens, topK });
  const lists = listsOf(order, sizes, context);
  const fillPrograms = Math.min(context.facts.multiprocessors, Math.ceil(mostTokens / WORD_TOKENS));
  const listPrograms = kernel.entry.grid.shares_of_a_list ?? 1;
  to.kernel(
    kernel,
    {
      ids: ids.address,
      sets: choices.buffer.address,
      tokens: tokens.address,
      lane_of: laneOf.address,
      lists: lists.told,
      counts: choices.counts.address,
      offsets: offsets.address,
      order: order.address,
      inverse: inverse.address,
      tiles: lists.tiles,
      tile_counts: lists.counts,
      capacity_factor: capacityFactor ?? Number.POSITIVE_INFINITY,
      experts,
      top_k: topK,
      most_tokens: mostTokens,
      lanes,
      classes: sizes.classes.length,
      fill_programs: fillPrograms,
      ...NOTHING_TO_TIDY,
    },
    fixedGrid(fillPrograms + listPrograms * lanes * sizes.classes.length),
    // Small, and all latency.
    { early: true, tidiesOwn: true },
  );
  to.mirror(offsets, order, inverse);
  // Nobody asked for the counts of ids that the host wrote, and they cannot be at fault.
  if (operator.routed) {
    tidyUp({ experts, counts: choices.counts, fault: true, clear: false }, to);
  }
}

type CountedSets = ChoiceSets & { readonly counts: CudaBuffer };

/** What the `route` operator in front of this one leaves. */
function routedSets(
  ids: CudaBuffer,
  padded: number,
  { experts, mostTokens }: BucketOperator,
  to: OperatorEncoder,
): CountedSets {
  const found = findSets(ids, padded, mostTokens);
  if (found?.counts === undefined) {
    return to.fail(
      `routed is set, but no route operator writes ids ("${ids.label}") for ${experts} experts and up to ${mostTokens} tokens`,
      "Enqueue one first, with bucketed set and the same sizes, or leave routed false.",
    );
  }
  to.hold("counts of the route operator", found.counts);
  return { ...found, counts: found.counts };
}

/** The choices in ids that the host wrote, by a kernel in front of this one. */
function markedSets(
  ids: CudaBuffer,
  tokens: CudaBuffer,
  padded: number,
  { experts, topK, mostTokens }: BucketOperator,
  to: OperatorEncoder,
): CountedSets {
  const { context } = to;
  const found = setsOf(ids, padded, mostTokens, context);
  const kernel = context.kernels.find({ operator: "mark" });
  to.clear(found.buffer, found.words);
  to.kernel(
    kernel,
    {
      ids: ids.address,
      tokens: tokens.address,
      sets: found.buffer.address,
      experts,
      padded_experts: padded,
      top_k: topK,
    },
    coverGrid(kernel.entry, { slots: mostTokens * topK }),
  );
  const { buffer } = unreadCounts.of(ids, [experts], () => ({
    buffer: context.scratch(experts * 4, `unread counts of ${ids.label}`),
  }));
  return { ...found, counts: buffer };
}
