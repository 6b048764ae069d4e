/** A made-up layer with biases of its experts, which it has none of by itself. */

import type { LayerWeights, ProductWeights } from "../../src/data/weights.ts";
import type { Random } from "../../src/workload/random.ts";
import type { RandomLayer } from "../../src/workload/random-layer.ts";
import { normal } from "./seed.ts";

/** Normal biases, as large as what they are added to; an expert's are the same whenever it is asked for. */
export function biased(layer: RandomLayer, random: Random): LayerWeights {
  const { hiddenSize, intermediateSize } = layer.shape;
  const scale = Math.sqrt(intermediateSize / hiddenSize);
  return {
    gate: () => layer.gate(),
    expert: async (index) => {
      const [first, second] = (await layer.expert(index)) as [ProductWeights, ProductWeights];
      const its = random.fork(`${index}`);
      const [gateBias, valueBias] = [normal(its, intermediateSize), normal(its, intermediateSize)];
      return [
        { ...first, gateBias, valueBias },
        { ...second, valueBias: normal(its, hiddenSize, scale) },
      ];
    },
  };
}
