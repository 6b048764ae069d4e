/**
 * Phi-3.5-MoE (microsoft/Phi-3.5-MoE-instruct): sparsemixer, which is defined for two
 * experts a token and no other number. `router_jitter_noise` is no noise here: it is
 * the width of the band of logits that share a softmax, in inference as in training.
 * `input_jitter_noise` is noise, and training's alone. Every layer has experts.
 */

import { z } from "zod";
import { CheckpointError } from "../../errors.ts";
import { matrix } from "../layout.ts";
import { findBlock } from "./block.ts";
import {
  activationOf,
  checkTopK,
  gated,
  routedExperts,
  size,
  W1_W3_W2,
  WEIGHTED_SUM,
} from "./common.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(4096),
  intermediate_size: size.default(6400),
  num_hidden_layers: size.default(32),
  num_experts: size.default(16),
  num_experts_per_tok: size.default(2),
  router_jitter_noise: z.number().nonnegative().default(0.01),
  hidden_act: z.string().default("silu"),
});

export const phimoe: ModelFamily = {
  name: "Phi-MoE",
  modelTypes: ["phimoe"],
  describe(config, layer, names) {
    const c = config.parse(schema);
    if (c.num_experts_per_tok !== 2) {
      throw new CheckpointError(
        "unsupported",
        config.file,
        `"num_experts_per_tok" is ${c.num_experts_per_tok}; sparsemixer routes to exactly 2 experts.`,
      );
    }
    checkTopK(config, c.num_experts_per_tok, c.num_experts);
    const block = findBlock({
      config,
      layer,
      names,
      layers: c.num_hidden_layers,
      isSparse: () => true,
      blocks: ["block_sparse_moe", "mlp"],
      routers: ["gate", "router"],
    });
    const experts = gated(c.hidden_size, c.intermediate_size, activationOf(config, c.hidden_act));
    return {
      hiddenSize: c.hidden_size,
      router: {
        experts: c.num_experts,
        topK: c.num_experts_per_tok,
        rule: {
          scoring: "sparsemixer",
          renormalize: false,
          scale: 1,
          jitter: c.router_jitter_noise,
        },
      },
      experts,
      aggregation: WEIGHTED_SUM,
      parts: {
        gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
        expert: routedExperts(block.name, names, c.num_experts, experts, W1_W3_W2),
      },
    };
  },
};
