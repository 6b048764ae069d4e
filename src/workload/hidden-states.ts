/**
 * Hidden states that send tokens to wanted experts through a layer's real gate:
 * every token is normal noise of variance 1 (as after a layer norm) plus the gate
 * rows of the experts it shall go to. Random rows of length 1 are nearly
 * orthogonal, so a row added raises its own expert's logit by SIGNAL and hardly
 * touches the others, whose logits are standard normal from the noise.
 *
 * What the router then chooses is up to it: nearly always the wanted experts, so
 * load follows popularity closely, not exactly.
 */

import type { Tensor } from "../tensor.ts";
import { drawExperts } from "./logits.ts";
import type { ExpertPopularity } from "./popularity.ts";
import type { Random } from "./random.ts";
import type { RandomLayer } from "./random-layer.ts";

/**
 * Logit of a wanted expert, in standard deviations of the others'. The largest of
 * 128 standard normal numbers is about 2.7; at 6, two choices in a thousand stray.
 */
const SIGNAL = 6;

/** @returns float32 [tokens, hidden] */
export function makeHiddenStates(
  layer: RandomLayer,
  popularity: ExpertPopularity,
  tokens: number,
  random: Random,
): Tensor<Float32Array> {
  const { hiddenSize, topK } = layer.shape;
  const wanted = drawExperts(popularity, tokens, topK, random);
  const data = random.fillNormal(new Float32Array(tokens * hiddenSize));
  wanted.forEach((expert, slot) => {
    const token = Math.floor(slot / topK) * hiddenSize;
    const row = expert * hiddenSize;
    for (let i = 0; i < hiddenSize; i++) {
      data[token + i] = (data[token + i] as number) + SIGNAL * (layer.gateRows[row + i] as number);
    }
  });
  return { dtype: "float32", shape: [tokens, hiddenSize], data };
}
