/** GLM-4.5 and 4.5-Air (zai-org/GLM-4.5): DeepSeek-V3's block with other sizes, as a rule in one group. */

import { z } from "zod";
import { count, flag, size } from "./common.ts";
import { correctedSigmoid } from "./deepseek_v3.ts";
import type { ModelFamily } from "./family.ts";

const schema = z.object({
  hidden_size: size.default(4096),
  moe_intermediate_size: size.default(1408),
  num_hidden_layers: size.default(46),
  first_k_dense_replace: count.default(1),
  num_experts: size.default(128),
  n_shared_experts: count.nullable().default(1),
  num_experts_per_tok: size.default(8),
  scoring_func: z.literal("sigmoid").default("sigmoid"),
  n_group: size.default(1),
  topk_group: size.default(1),
  norm_topk_prob: flag.default(true),
  routed_scaling_factor: z.number().default(1),
  hidden_act: z.string().default("silu"),
});

export const glm4Moe: ModelFamily = {
  name: "GLM-4-MoE",
  modelTypes: ["glm4_moe"],
  describe: (config, layer, names) => correctedSigmoid(config, config.parse(schema), layer, names),
};
