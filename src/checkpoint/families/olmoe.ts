/**
 * OLMoE (allenai/OLMoE-1B-7B-0924): softmax, top-k, as a rule not renormalised. Every
 * layer has experts, and `intermediate_size` is an expert's.
 */

import { z } from "zod";
import { matrix } from "../layout.ts";
import { findBlock } from "./block.ts";
import {
  activationOf,
  checkTopK,
  flag,
  gated,
  routedExperts,
  size,
  WEIGHTED_SUM,
} from "./common.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(2048),
  intermediate_size: size.default(2048),
  num_hidden_layers: size.default(16),
  num_experts: size.default(64),
  num_experts_per_tok: size.default(8),
  norm_topk_prob: flag.default(false),
  hidden_act: z.string().default("silu"),
});

export const olmoe: ModelFamily = {
  name: "OLMoE",
  modelTypes: ["olmoe"],
  describe(config, layer, names) {
    const c = config.parse(schema);
    checkTopK(config, c.num_experts_per_tok, c.num_experts);
    const block = findBlock({
      config,
      layer,
      names,
      layers: c.num_hidden_layers,
      isSparse: () => true,
      blocks: ["mlp"],
      routers: ["gate"],
    });
    const experts = gated(c.hidden_size, c.intermediate_size, activationOf(config, c.hidden_act));
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
