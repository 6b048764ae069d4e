/**
 * DeepSeek-V3 and R1 (deepseek-ai/DeepSeek-V3): sigmoid scores; a learned correction
 * bias is added for selection only, within the best groups by the sum of their two
 * best; the chosen experts' plain scores are renormalised and scaled. Shared experts
 * without a gate; the first layers are dense.
 *
 * The block is described by its keys alone, because GLM-4.5 took it over whole and
 * changed only what absent keys stand for.
 */

import { z } from "zod";
import type { ModelConfig } from "../config.ts";
import { type LayerLayout, matrix, vector } from "../layout.ts";
import { findBlock } from "./block.ts";
import {
  activationOf,
  checkTopK,
  count,
  flag,
  gated,
  groupLimit,
  linearExpert,
  routedExperts,
  size,
  WEIGHTED_SUM,
} from "./common.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(7168),
  moe_intermediate_size: size.default(2048),
  num_hidden_layers: size.default(61),
  first_k_dense_replace: count.default(3),
  num_experts: size.default(256),
  n_shared_experts: count.nullable().default(1),
  num_experts_per_tok: size.default(8),
  /** A statement, not a choice: the family has no other. */
  scoring_func: z.literal("sigmoid").default("sigmoid"),
  n_group: size.default(8),
  topk_group: size.default(4),
  norm_topk_prob: flag.default(true),
  routed_scaling_factor: z.number().default(2.5),
  hidden_act: z.string().default("silu"),
});

export const deepseekV3: ModelFamily = {
  name: "DeepSeek-V3",
  modelTypes: ["deepseek_v3"],
  describe: (config, layer, names) => correctedSigmoid(config, config.parse(schema), layer, names),
};

/** A layer of sigmoid scores with a correction bias, from its config's values. */
export function correctedSigmoid(
  config: ModelConfig,
  c: z.output<typeof schema>,
  layer: number,
  names: ReadonlySet<string>,
): LayerLayout {
  const router = { experts: c.num_experts, topK: c.num_experts_per_tok };
  checkTopK(config, router.topK, router.experts);
  const block = findBlock({
    config,
    layer,
    names,
    layers: c.num_hidden_layers,
    isSparse: (n) => n >= c.first_k_dense_replace,
    blocks: ["mlp"],
    routers: ["gate"],
  });
  const activation = activationOf(config, c.hidden_act);
  const experts = gated(c.hidden_size, c.moe_intermediate_size, activation);
  const sharedSize = c.moe_intermediate_size * (c.n_shared_experts ?? 0);
  const shared = gated(c.hidden_size, sharedSize, activation);
  return {
    hiddenSize: c.hidden_size,
    router: {
      ...router,
      rule: {
        scoring: "sigmoid",
        renormalize: c.norm_topk_prob,
        scale: c.routed_scaling_factor,
        ...groupLimit(config, router, c.n_group, c.topk_group, "top2-sum"),
      },
      selectionBias: true,
    },
    experts,
    ...(sharedSize > 0 && { shared: { experts: shared, gate: false } }),
    aggregation: WEIGHTED_SUM,
    parts: {
      gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
      selectionBias: vector(`${block.router}.e_score_correction_bias`, c.num_experts),
      expert: routedExperts(block.name, names, c.num_experts, experts),
      ...(sharedSize > 0 && { shared: linearExpert(`${block.name}.shared_experts`, shared) }),
    },
  };
}
