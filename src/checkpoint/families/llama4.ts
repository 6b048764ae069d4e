/**
 * Llama-4 (meta-llama/Llama-4-Scout-17B-16E, Maverick): top-k of the logits, as a rule
 * one, then sigmoid, and the weight scales the expert's input instead of its output.
 * One shared expert of the same size without a gate. Experts are packed and transposed.
 *
 * Multimodal checkpoints (`llama4`) keep the language model's config under
 * `text_config`; text-only ones (`llama4_text`) are that config.
 */

import { z } from "zod";
import { matrix } from "../layout.ts";
import { findBlock } from "./block.ts";
import { activationOf, checkTopK, gated, linearExpert, size, transposedExperts } from "./common.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(5120),
  intermediate_size: size.default(8192),
  num_hidden_layers: size.default(48),
  num_experts: size.default(16),
  num_experts_per_tok: size.default(1),
  /** Wins over the step where it is given, even if empty. */
  moe_layers: z.array(z.int()).nullable().default(null),
  interleave_moe_layer_step: size.default(1),
  hidden_act: z.string().default("silu"),
});

export const llama4: ModelFamily = {
  name: "Llama-4",
  modelTypes: ["llama4", "llama4_text"],
  describe(outer, layer, names) {
    const config = outer.has("text_config") ? outer.nested("text_config") : outer;
    const c = config.parse(schema);
    checkTopK(config, c.num_experts_per_tok, c.num_experts);
    const block = findBlock({
      config,
      layer,
      names,
      layers: c.num_hidden_layers,
      isSparse: (n) => c.moe_layers?.includes(n) ?? (n + 1) % c.interleave_moe_layer_step === 0,
      blocks: ["feed_forward"],
      routers: ["router"],
    });
    const experts = gated(c.hidden_size, c.intermediate_size, activationOf(config, c.hidden_act));
    return {
      hiddenSize: c.hidden_size,
      router: {
        experts: c.num_experts,
        topK: c.num_experts_per_tok,
        rule: { scoring: "topk-sigmoid", renormalize: false, scale: 1 },
      },
      experts,
      shared: { experts, gate: false },
      aggregation: { mode: "sum", weightsApplyTo: "input", residual: false },
      parts: {
        gate: matrix(`${block.router}.weight`, c.num_experts, c.hidden_size),
        expert: transposedExperts(block.name, c.num_experts, experts, "concatenated"),
        shared: linearExpert(`${block.name}.shared_expert`, experts),
      },
    };
  },
};
