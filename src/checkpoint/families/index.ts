/** The model families, by the `model_type` in config.json. A new family is a file beside this one and a line here. */

import { z } from "zod";
import { quote } from "../../errors/wording.ts";
import { CheckpointError } from "../../errors.ts";
import type { ModelConfig } from "../config.ts";
import { rejectQuantisedConfig } from "./block.ts";
import { deepseekV2 } from "./deepseek_v2.ts";
import { deepseekV3 } from "./deepseek_v3.ts";
import type { ModelFamily } from "./family.ts";
import { glm4Moe } from "./glm4_moe.ts";
import { gptOss } from "./gpt_oss.ts";
import { llama4 } from "./llama4.ts";
import { mixtral } from "./mixtral.ts";
import { olmoe } from "./olmoe.ts";
import { phimoe } from "./phimoe.ts";
import { qwen2Moe } from "./qwen2_moe.ts";
import { qwen3Moe } from "./qwen3_moe.ts";

export const FAMILIES: readonly ModelFamily[] = [
  mixtral,
  qwen2Moe,
  qwen3Moe,
  olmoe,
  deepseekV2,
  deepseekV3,
  glm4Moe,
  gptOss,
  phimoe,
  llama4,
];

/**
 * The family of a checkpoint.
 *
 * @throws CheckpointError `bad-config` without a `model_type`; `unsupported` for one no family has, or for quantised weights
 */
export function familyOf(config: ModelConfig): ModelFamily {
  const { model_type: type } = config.parse(z.object({ model_type: z.string() }));
  const family = FAMILIES.find(({ modelTypes }) => modelTypes.includes(type));
  if (family === undefined) {
    const known = FAMILIES.flatMap(({ modelTypes }) => modelTypes).join(", ");
    throw new CheckpointError(
      "unsupported",
      config.file,
      `"model_type" is ${quote(type)}, a family Nexus does not know. It knows ${known}.`,
    );
  }
  rejectQuantisedConfig(config);
  return family;
}
