/**
 * Qwen3-MoE (Qwen/Qwen3-30B-A3B): softmax, top-k, renormalised where the config says
 * so. The released configs do; the library's default does not.
 */

import { z } from "zod";
import { matrix } from "../layout.ts";
import { findBlock } from "./block.ts";
import {
  activationOf,
  checkTopK,
  count,
  flag,
  gated,
  isQwenSparse,
  qwenSparsity,
  routedExperts,
  size,
  WEIGHTED_SUM,
} from "./common.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(2048),
  moe_intermediate_size: size.default(768),
  num_hidden_layers: size.default(24),
  num_experts: count.default(128),
  num_experts_per_tok: size.default(8),
  norm_topk_prob: flag.default(false),
  hidden_act: z.string().default("silu"),
  ...qwenSparsity,
});

export const qwen3Moe: ModelFamily = {
  name: "Qwen3-MoE",
  modelTypes: ["qwen3_moe"],
  describe(config, layer, names) {
    const c = config.parse(schema);
    const block = findBlock({
      config,
      layer,
      names,
      layers: c.num_hidden_layers,
      isSparse: (n) => isQwenSparse(n, c),
      blocks: ["mlp"],
      routers: ["gate"],
    });
    checkTopK(config, c.num_experts_per_tok, c.num_experts);
    const experts = gated(
      c.hidden_size,
      c.moe_intermediate_size,
      activationOf(config, c.hidden_act),
    );
    return {
      hiddenSize: c.hidden_size,
      router: {
        experts: c.num_experts,
        topK: c.num_experts_per_tok,
        rule: { scoring: "softmax", renormalize: c.norm_topk_prob, scale: 1 },
      },
      experts,
      aggregation: WEIGHTED_SUM,
      parts: {
        gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
        expert: routedExperts(block.name, names, c.num_experts, experts),
      },
    };
  },
};
