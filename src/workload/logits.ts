/**
 * Router logits that realise a wanted popularity: log probability plus Gumbel
 * noise. The largest of such logits is a draw from the probabilities (the Gumbel
 * maximum trick), and the k largest are k draws without replacement (Vieira,
 * "Gumbel-max trick and weighted reservoir sampling", 2014).
 */

import type { Tensor } from "../tensor.ts";
import type { ExpertPopularity } from "./popularity.ts";
import type { Random } from "./random.ts";

/** @returns float32 [tokens, experts] */
export function makeLogits(
  popularity: ExpertPopularity,
  tokens: number,
  random: Random,
): Tensor<Float32Array> {
  const logProbabilities = popularity.probabilities.map(Math.log);
  const experts = logProbabilities.length;
  const data = new Float32Array(tokens * experts);
  for (let i = 0; i < data.length; i++) {
    data[i] = (logProbabilities[i % experts] as number) + random.gumbel();
  }
  return { dtype: "float32", shape: [tokens, experts], data };
}

/**
 * Draws the k experts of every token by popularity, without replacement.
 *
 * @returns int32 [tokens, k], best first
 */
export function drawExperts(
  popularity: ExpertPopularity,
  tokens: number,
  topK: number,
  random: Random,
): Int32Array {
  const { data } = makeLogits(popularity, tokens, random);
  const experts = popularity.probabilities.length;
  const drawn = new Int32Array(tokens * topK);
  for (let token = 0; token < tokens; token++) {
    const row = data.subarray(token * experts, (token + 1) * experts);
    for (let choice = 0; choice < topK; choice++) {
      let best = 0;
      for (let expert = 1; expert < experts; expert++) {
        if ((row[expert] as number) > (row[best] as number)) best = expert;
      }
      drawn[token * topK + choice] = best;
      row[best] = Number.NEGATIVE_INFINITY;
    }
  }
  return drawn;
}
