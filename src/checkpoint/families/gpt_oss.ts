/**
 * gpt-oss (openai/gpt-oss-20b, -120b) in its bfloat16 form: the router has a bias; top-k
 * of the logits, then softmax over the k. Experts have biases, their gate and up
 * columns take turns, and both are clamped before they are joined. Every layer has
 * experts. The MXFP4 form the hub serves by default is refused as quantised.
 */

import { z } from "zod";
import { matrix, vector } from "../layout.ts";
import { findBlock } from "./block.ts";
import { checkTopK, gated, size, transposedExperts, WEIGHTED_SUM } from "./common.ts";
import type { ModelFamily } from "./family.ts";

/** Slope of the sigmoid in the gate; a constant of the architecture, not of any config. */
const ALPHA = 1.702;

const schema = z.object({
  hidden_size: size.default(2880),
  intermediate_size: size.default(2880),
  num_hidden_layers: size.default(36),
  num_experts: size.default(128),
  num_experts_per_tok: size.default(4),
  swiglu_limit: z.number().positive().default(7),
});

export const gptOss: ModelFamily = {
  name: "gpt-oss",
  modelTypes: ["gpt_oss"],
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
      routers: ["router"],
    });
    const activation = { kind: "swiglu-clamped", alpha: ALPHA, limit: c.swiglu_limit } as const;
    const experts = gated(c.hidden_size, c.intermediate_size, activation, true);
    return {
      hiddenSize: c.hidden_size,
      router: {
        experts: c.num_experts,
        topK: c.num_experts_per_tok,
        rule: { scoring: "topk-softmax", renormalize: false, scale: 1 },
        bias: true,
      },
      experts,
      aggregation: WEIGHTED_SUM,
      parts: {
        gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
        gateBias: vector(`${block.router}.bias`, c.num_experts),
        expert: transposedExperts(block.name, c.num_experts, experts, "interleaved"),
      },
    };
  },
};
