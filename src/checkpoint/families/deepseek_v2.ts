/**
 * DeepSeek-V2 (deepseek-ai/DeepSeek-V2-Lite, DeepSeek-V2): softmax over all experts,
 * never renormalised, times a scaling factor. Selection is plain top-k (`greedy`) or
 * limited to the best groups by their best expert (`group_limited_greedy`). Shared
 * experts without a gate; the first layers are dense.
 *
 * `norm_topk_prob` is not read: transformers does not, and every release says false.
 * `mlp_bias` puts biases on the shared experts but not on the routed ones.
 */

import { z } from "zod";
import { quote } from "../../errors/wording.ts";
import { CheckpointError } from "../../errors.ts";
import { matrix } from "../layout.ts";
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
  hidden_size: size.default(4096),
  moe_intermediate_size: size.default(1407),
  num_hidden_layers: size.default(32),
  first_k_dense_replace: count.default(0),
  num_experts: size.default(64),
  n_shared_experts: count.nullable().default(2),
  num_experts_per_tok: size,
  /** A statement, not a choice: the family has no other. */
  scoring_func: z.literal("softmax").default("softmax"),
  topk_method: z.string().nullable().default("greedy"),
  n_group: size.nullable().default(null),
  topk_group: size.nullable().default(null),
  routed_scaling_factor: z.number().default(1),
  mlp_bias: flag.default(false),
  hidden_act: z.string().default("silu"),
});

export const deepseekV2: ModelFamily = {
  name: "DeepSeek-V2",
  modelTypes: ["deepseek_v2"],
  describe(config, layer, names) {
    const c = config.parse(schema);
    const router = { experts: c.num_experts, topK: c.num_experts_per_tok };
    checkTopK(config, router.topK, router.experts);
    if (c.topk_method !== "greedy" && c.topk_method !== "group_limited_greedy") {
      throw new CheckpointError(
        "unsupported",
        config.file,
        `"topk_method" is ${quote(c.topk_method)}; DeepSeek-V2 has "greedy" and "group_limited_greedy".`,
      );
    }
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
    const shared = gated(c.hidden_size, sharedSize, activation, c.mlp_bias);
    return {
      hiddenSize: c.hidden_size,
      router: {
        ...router,
        rule: {
          scoring: "softmax",
          renormalize: false,
          scale: c.routed_scaling_factor,
          ...(c.topk_method === "group_limited_greedy" &&
            groupLimit(config, router, c.n_group, c.topk_group, "max")),
        },
      },
      experts,
      ...(sharedSize > 0 && { shared: { experts: shared, gate: false } }),
      aggregation: WEIGHTED_SUM,
      parts: {
        gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
        expert: routedExperts(block.name, names, c.num_experts, experts),
        ...(sharedSize > 0 && { shared: linearExpert(`${block.name}.shared_experts`, shared) }),
      },
    };
  },
};
