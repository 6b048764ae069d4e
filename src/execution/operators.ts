/**
 * The operators a device runs: what they read, what they write, and nothing
 * about how. An operator is a plain value; enqueueing it on a stream is the only
 * thing that can be done with it.
 *
 * Letters: T tokens in this batch, B = `mostTokens` the most it may have (T <= B, T is
 * read from device memory when the operator runs, written there by the host and by no
 * operator, B may decide which kernel runs; the buffers have room for B tokens or more),
 * E experts, k experts per token (top_k), S = B * k slots, H hidden size, I intermediate size.
 * Weights of choices come from `route` or from the host.
 *
 * "rows" of width W are activations in the device's own layout and element type, from
 * `Device.rowLayout(W, weights)`. Everything else is without gaps, float32 or int32.
 * No operator writes anything of size T x E except `project` when it is asked to
 * compute logits.
 */

import type { DType } from "../tensor.ts";
import type { DeviceBuffer, Projection } from "./device.ts";

// ---------------------------------------------------------------------------
// Routing

/** Restricts selection to the best groups of experts (DeepSeek's group-limited routing). */
export interface GroupLimit {
  /** Number of groups; experts are divided among them evenly, in order. */
  readonly groups: number;
  /** Number of groups that may be selected from. */
  readonly keep: number;
  /** A group's score: the sum of its two best selection scores (DeepSeek-V3), or the best one (V2). */
  readonly score: "top2-sum" | "max";
}

/**
 * How logits become expert ids and weights.
 *
 * - `softmax`: softmax over all experts, then top-k of the probabilities.
 * - `sigmoid`: sigmoid of every logit, then top-k.
 * - `topk-softmax`: top-k of the logits, then softmax over the k (gpt-oss).
 * - `topk-sigmoid`: top-k of the logits, then sigmoid of each (Llama-4).
 * - `sparsemixer`: Phi's rule: repeatedly take the best logit; its weight is its
 *   share of a softmax over the logits within `2 * jitter` of it, relative.
 *
 * Ties go to the lower expert index.
 */
export interface RoutingRule {
  readonly scoring: "softmax" | "sigmoid" | "topk-softmax" | "topk-sigmoid" | "sparsemixer";
  /** Divide the k weights by their sum. Only for `softmax` and `sigmoid`. */
  readonly renormalize: boolean;
  /** Multiplies every weight at the end. */
  readonly scale: number;
  /** Only for `softmax` and `sigmoid`. */
  readonly groupLimit?: GroupLimit;
  /** Only for `sparsemixer`. */
  readonly jitter?: number;
}

/** Logits to ids, weights and per-expert counts, in one pass. */
export interface RouteOperator {
  readonly kind: "route";
  readonly rule: RoutingRule;
  readonly experts: number;
  readonly topK: number;
  /** B. */
  readonly mostTokens: number;
  /** int32 [1]: T. */
  readonly tokens: DeviceBuffer;
  /** [B, E] without gaps, of `logitsType`. */
  readonly logits: DeviceBuffer;
  /** One of the device's `logitsDTypes`; default float32. */
  readonly logitsType?: DType;
  /** float32 [E], added to the scores for selection only, never to the weights. */
  readonly selectionBias?: DeviceBuffer;
  /** Out: int32 [B, k], best first. */
  readonly ids: DeviceBuffer;
  /** Out: float32 [B, k]. */
  readonly weights: DeviceBuffer;
  /** Out: int32 [E], tokens per expert, overwritten; there once `bucket` has run, if `bucketed`. */
  readonly counts: DeviceBuffer;
  /** Whether a `bucket` operator of the same launch follows for these ids. */
  readonly bucketed: boolean;
}

/** Where a token's rows stand once they are sorted by expert. Built by `bucket`, read by `project` and `combine`. */
export interface BucketBuffers {
  /** int32 [E + 1]: rows of expert e are offsets[e] to offsets[e + 1] - 1. */
  readonly offsets: DeviceBuffer;
  /** int32 [S]: slot (token * k + choice) of each row; within an expert, slots ascend. */
  readonly order: DeviceBuffer;
  /** int32 [S]: row of each slot, or -1 where the slot was dropped for want of capacity. */
  readonly inverse: DeviceBuffer;
  /** int32 [E]: which lane's work list each expert is put on. Input: written by the host between steps. */
  readonly laneOf: DeviceBuffer;
  /** Bytes of the weights that the rows will meet, those of all experts; with B, k and E it decides how tall tiles are. */
  readonly weightBytes?: number;
  /** Whether those weights are there packed, too: then tiles may be of several heights, for experts with few rows and with many. */
  readonly packedBeside?: boolean;
}

/** Ids to buckets, and a work list of tiles for every lane (kept by the device, in a form of its own). */
export interface BucketOperator {
  readonly kind: "bucket";
  readonly experts: number;
  readonly topK: number;
  /** Number of lanes that `laneOf` speaks of. */
  readonly lanes: number;
  /** Element type of the rows that will be worked on: with B it decides how tall tiles are. */
  readonly rowType: DType;
  readonly mostTokens: number;
  readonly tokens: DeviceBuffer;
  /** int32 [B, k]; a token's experts are distinct. */
  readonly ids: DeviceBuffer;
  /** Whether a `route` operator of the same launch writes the ids; otherwise the host did. */
  readonly routed: boolean;
  /**
   * Rows an expert may have, as a multiple of the even share: ceil(factor * T * k / E).
   * Later slots are dropped. Absent: no limit.
   */
  readonly capacityFactor?: number;
  readonly buckets: BucketBuffers;
}

// ---------------------------------------------------------------------------
// Matrix products

/**
 * What is done to a product before it is stored. With g the gate and u the value:
 *
 * - `none`, `relu`, `silu`, `gelu` (exact, by erf), `gelu-tanh`, `sigmoid`: applied to an ungated
 *   output; with a gate, f(g) * u (`none` there is g * u).
 * - `swiglu-clamped`: gated only; gpt-oss: g = min(g, limit), u = clamp(u, -limit, limit),
 *   (u + 1) * g * sigmoid(alpha * g).
 */
export type Activation =
  | {
      readonly kind: "none" | "relu" | "silu" | "gelu" | "gelu-tanh" | "sigmoid";
    }
  | {
      readonly kind: "swiglu-clamped";
      readonly alpha: number;
      readonly limit: number;
    };

/** Every row of the input, through one matrix of the projection: row i to row i. */
export interface AllRows {
  readonly from: "all";
  readonly tokens: DeviceBuffer;
  readonly mostTokens: number;
  /** Which matrix of the projection. */
  readonly matrix: number;
}

/** The rows of the experts on one lane, each through its expert's matrix. */
export interface BucketRows {
  readonly from: "bucket";
  readonly buckets: BucketBuffers;
  readonly lane: number;
  /** As in the bucket operator that built them: lanes, k, B. */
  readonly lanes: number;
  readonly topK: number;
  readonly mostTokens: number;
  /** Input row is the row's token (order / k) if true, the row itself if false. Output row is always the row itself. */
  readonly gather: boolean;
  /** float32 [B, k]: multiplies a row's product by its slot's weight before bias and activation (Llama-4). */
  readonly inputScale?: DeviceBuffer;
  /** int32 [E]: time spent on each expert is added here, in units of 100 ns. Not part of the bit-for-bit promise. */
  readonly busy?: DeviceBuffer;
}

/** output = activation(input x matrix^T + bias). Products accumulate in float32. */
export interface ProjectOperator {
  readonly kind: "project";
  readonly projection: Projection;
  readonly activation: Activation;
  /** Rows of width `inputs`. */
  readonly input: DeviceBuffer;
  /** Out: rows of width `outputs`, or float32 [*, outputs], as the projection says. */
  readonly output: DeviceBuffer;
  readonly rows: AllRows | BucketRows;
}

// ---------------------------------------------------------------------------
// Aggregation

/**
 * Expert rows back to tokens. `sum`: the k rows of a token, times their weights,
 * added in the order of its choices; then the shared output; then the residual.
 * `concat`: the k weighted rows side by side, [B, k * H]; a dropped slot gives zeros.
 */
export interface CombineOperator {
  readonly kind: "combine";
  readonly mode: "sum" | "concat";
  readonly topK: number;
  /** H. */
  readonly width: number;
  /** Element type of `rows`, `shared` and `residual`. */
  readonly rowType: DType;
  readonly mostTokens: number;
  readonly tokens: DeviceBuffer;
  /** Rows of width H, S of them, by expert. */
  readonly rows: DeviceBuffer;
  readonly inverse: DeviceBuffer;
  /** float32 [B, k]; absent: every weight is 1. */
  readonly weights?: DeviceBuffer;
  /** `sum` only: rows of width H, by token, added to every token. */
  readonly shared?: DeviceBuffer;
  /** float32 [B, 1]: multiplies the shared output of each token. */
  readonly sharedScale?: DeviceBuffer;
  /** `sum` only: rows of width H, by token, added last. */
  readonly residual?: DeviceBuffer;
  /** `rowType`, or float32. */
  readonly outputType: DType;
  /** Out: [B, H] or [B, k * H] without gaps. */
  readonly output: DeviceBuffer;
  /**
   * If set, nobody reads `rows` after this, nor `inner`, S rows of width `innerWidth` that they were made of: what these hold may
   * be lost, so that a device need not write it to memory.
   */
  readonly spent?: {
    readonly inner?: DeviceBuffer;
    readonly innerWidth: number;
    readonly experts: number;
    /** As of `BucketBuffers`. */
    readonly weightBytes?: number;
  };
}

/**
 * The experts of a handful of tokens (B is at most the device's `decodeTokens`) and
 * their aggregation, straight from the ids: no buckets, no lanes. One or two matrix
 * products of a row each are bound by reading weights, and a kernel made for that
 * reads them once, at memory speed. The sum of a token is in the order of its experts'
 * ids (of a negative one nothing is added), so it is a function of its own choices alone.
 */
export interface DecodeOperator {
  readonly kind: "decode";
  /** The experts' first product and their second. */
  readonly first: Projection;
  readonly second: Projection;
  /** Of the first product. */
  readonly activation: Activation;
  readonly topK: number;
  readonly mostTokens: number;
  readonly tokens: DeviceBuffer;
  /** Rows of width H, by token. */
  readonly input: DeviceBuffer;
  /** int32 [B, k]: a token's are distinct, but for dropped ones, which are negative. */
  readonly ids: DeviceBuffer;
  /**
   * If set, it is done first, as if it were in front of this operator: routing of these tokens, with no `bucket` operator to follow.
   * `ids` are then what it puts out, and so should `weights` be, which are not taken from it by themselves. A device may have
   * kernels that do both.
   */
  readonly routing?: RouteOperator;
  /** float32 [B, k]: multiplies each row's first product before bias and activation. */
  readonly inputScale?: DeviceBuffer;
  /** Scratch: rows of width I, S of them. */
  readonly inner: DeviceBuffer;
  /** As in `combine` with mode `sum`. */
  readonly weights?: DeviceBuffer;
  readonly shared?: DeviceBuffer;
  readonly sharedScale?: DeviceBuffer;
  readonly residual?: DeviceBuffer;
  readonly outputType: DType;
  readonly output: DeviceBuffer;
}

export type Operator =
  | RouteOperator
  | BucketOperator
  | ProjectOperator
  | CombineOperator
  | DecodeOperator;
