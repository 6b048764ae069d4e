/**
 * Qwen2-MoE (Qwen/Qwen1.5-MoE-A2.7B): softmax, top-k, as a rule not renormalised, and
 * a shared expert that every token scales with a sigmoid gate of its own.
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
  linearExpert,
  qwenSparsity,
  routedExperts,
  size,
  WEIGHTED_SUM,
} from "./common.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(2048),
  moe_intermediate_size: size.default(1408),
  shared_expert_intermediate_size: count.default(5632),
  num_hidden_layers: size.default(24),
  num_experts: count.default(60),
  num_experts_per_tok: size.default(4),
  norm_topk_prob: flag.default(false),
  hidden_act: z.string().default("silu"),
  ...qwenSparsity,
});

export const qwen2Moe: ModelFamily = {
  name: "Qwen2-MoE",
  modelTypes: ["qwen2_moe"],
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
    const activation = activationOf(config, c.hidden_act);
    const experts = gated(c.hidden_size, c.moe_intermediate_size, activation);
    const shared = gated(c.hidden_size, c.shared_expert_intermediate_size, activation);
    const hasShared = c.shared_expert_intermediate_size > 0;
    return {
      hiddenSize: c.hidden_size,
      router: {
        experts: c.num_experts,
        topK: c.num_experts_per_tok,
        rule: { scoring: "softmax", renormalize: c.norm_topk_prob, scale: 1 },
      },
      experts,
      ...(hasShared && { shared: { experts: shared, gate: true } }),
      aggregation: WEIGHTED_SUM,
      parts: {
        gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
        expert: routedExperts(block.name, names, c.num_experts, experts),
        ...(hasShared && {
          shared: linearExpert(`${block.name}.shared_expert`, shared),
          sharedGate: matrix(`${block.name}.shared_expert_gate.weight`, 1, c.hidden_size),
        }),
      },
    };
  },
};
