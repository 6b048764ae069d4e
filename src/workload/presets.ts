/**
 * Named layer shapes to measure: three synthetic ones from small to large, and
 * the MoE layers of three public models. Shapes only; weights are made up
 * (random-layer.ts).
 */

import type { LayerSpec } from "../data/spec.ts";
import { InvalidArgumentError } from "../errors.ts";
import type { DType } from "../tensor.ts";

/** The sizes and the rule of a layer of gated SiLU experts with softmax routing. */
export interface LayerShape {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly experts: number;
  readonly topK: number;
  /** The k weights are divided by their sum. */
  readonly renormalize: boolean;
}

export interface Preset extends LayerShape {
  readonly name: string;
  /**
   * Element type the weights are kept in unless another is asked for: float32
   * where that is a few hundred megabytes, bfloat16 (as published) beyond.
   */
  readonly dtype: DType;
}

function preset(
  name: string,
  hiddenSize: number,
  intermediateSize: number,
  experts: number,
  topK: number,
  dtype: DType,
  renormalize = true,
): Preset {
  return { name, hiddenSize, intermediateSize, experts, topK, renormalize, dtype };
}

export const PRESETS: readonly Preset[] = [
  preset("small", 512, 1024, 8, 2, "float32"),
  preset("medium", 1024, 2048, 16, 2, "float32"),
  preset("large", 2048, 4096, 32, 4, "bfloat16"),
  preset("mixtral-8x7b", 4096, 14336, 8, 2, "bfloat16"),
  preset("qwen3-30b-a3b", 2048, 768, 128, 8, "bfloat16"),
  preset("olmoe-1b-7b", 2048, 1024, 64, 8, "bfloat16", false),
];

/** @throws InvalidArgumentError listing the names there are */
export function presetOf(name: string): Preset {
  const found = PRESETS.find((each) => each.name === name);
  if (found !== undefined) return found;
  throw new InvalidArgumentError(
    `There is no preset "${name}". Use one of ${PRESETS.map((each) => each.name).join(", ")}.`,
  );
}

/** The layer spec of a shape. */
export function layerSpecOf(shape: LayerShape, dtype: DType): LayerSpec {
  const { hiddenSize, intermediateSize, experts, topK, renormalize } = shape;
  return {
    hiddenSize,
    router: { experts, topK, rule: { scoring: "softmax", renormalize, scale: 1 } },
    experts: {
      form: "gated",
      hiddenSize,
      intermediateSize,
      activation: { kind: "silu" },
      bias: false,
      dtype,
    },
    aggregation: { mode: "sum", weightsApplyTo: "output", residual: false },
  };
}
