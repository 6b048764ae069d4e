/** Mixtral (mistralai/Mixtral-8x7B-v0.1): softmax, top-k, always renormalised. Every layer has experts. */

import { z } from "zod";
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
  intermediate_size: size.default(14336),
  num_hidden_layers: size.default(32),
  num_experts: size.default(8),
  num_experts_per_tok: size.default(2),
  hidden_act: z.string().default("silu"),
});

export const mixtral: ModelFamily = {
  name: "Mixtral",
  modelTypes: ["mixtral"],
  describe(config, layer, names) {
    const c = config.parse(schema);
    checkTopK(config, c.num_experts_per_tok, c.num_experts);
    const block = findBlock({
      config,
      layer,
      names,
      layers: c.num_hidden_layers,
      isSparse: () => true,
      blocks: ["block_sparse_moe", "mlp"],
      routers: ["gate"],
    });
    const experts = gated(c.hidden_size, c.intermediate_size, activationOf(config, c.hidden_act));
    return {
      hiddenSize: c.hidden_size,
      router: {
        experts: c.num_experts,
        topK: c.num_experts_per_tok,
        rule: { scoring: "softmax", renormalize: true, scale: 1 },
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
