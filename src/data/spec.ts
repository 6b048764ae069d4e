/**
 * What an MoE layer is, as a plain value: sizes, routing rule, expert form,
 * aggregation. Everything that decides the result of a forward pass is here or
 * in the weights; nothing about placement, devices or files is.
 */

import type { Activation, RoutingRule } from "../execution/operators.ts";
import type { DType } from "../tensor.ts";

/** From hidden states to expert ids and weights. */
export interface RouterSpec {
  /** Number of experts, 1 to 1024; need not be a power of two. */
  readonly experts: number;
  /** Experts per token, 1 to 32 and at most `experts`. */
  readonly topK: number;
  readonly rule: RoutingRule;
  /** The gate adds a bias to the logits (gpt-oss). */
  readonly bias?: boolean;
  /** A bias is added to the scores for selection only (DeepSeek-V3's e_score_correction_bias). */
  readonly selectionBias?: boolean;
  /** Most rows per expert, as a multiple of the even share; later tokens are dropped and reported. Default: no limit. */
  readonly capacityFactor?: number;
}

/**
 * The form of every expert: a chain of matrix products.
 *
 * - `gated`: down(activation(gate(x), up(x))).
 * - `mlp`: `depth` products with the activation between them (2: fc2(act(fc1(x)));
 *   3: fc3(act(fc2(act(fc1(x)))), the middle one square).
 */
export interface ExpertsSpec {
  readonly form: "gated" | "mlp";
  /** Only for `mlp`: number of products, 2 or 3. */
  readonly depth?: 2 | 3;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly activation: Activation;
  /** Every product adds a bias. */
  readonly bias: boolean;
  /** Element type the weights are kept in. */
  readonly dtype: DType;
}

/** An expert every token goes through, beside the routed ones. */
export interface SharedExpertSpec {
  readonly experts: ExpertsSpec;
  /** The output is multiplied by sigmoid(hidden . gate) for each token (Qwen2-MoE). */
  readonly gate: boolean;
}

/** From expert rows back to tokens. */
export interface AggregationSpec {
  /** Weighted sum of the k rows, or the k weighted rows side by side. */
  readonly mode: "sum" | "concat";
  /** Where the routing weight is applied: to the expert's output, or to its input (Llama-4). */
  readonly weightsApplyTo: "output" | "input";
  /** Add the layer's input to its output. */
  readonly residual: boolean;
}

/** One MoE layer. */
export interface LayerSpec {
  readonly hiddenSize: number;
  readonly router: RouterSpec;
  readonly experts: ExpertsSpec;
  readonly shared?: SharedExpertSpec;
  readonly aggregation: AggregationSpec;
}
