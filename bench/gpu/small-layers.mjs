/**
 * The layers of the small run (small.mjs): forms by name, how large each is, its weights and its inputs. What
 * is done with them, and which kernels that must launch, is not said here.
 */

import {
  ExpertPopularity,
  makeLogits,
  parseSkew,
  roundToBfloat16,
  uniformBlock,
} from "./support.mjs";

export const TOP_K = 2;

const SMALL = { experts: 6, hidden: 72, inner: 40, tokens: [1, 4, 33, 300] };
/**
 * On sm_90 such rows are padded to 384 and 192 elements: six steps of a product of many rows, and the
 * three that are the least; in both products one and a half tiles of columns. So few weights lie in the
 * L2, where it takes a thousand rows an expert.
 */
const MANY = { experts: 6, hidden: 328, inner: 136, tokens: [3300, 3190], skew: "zipf:5.5" };
/** Rows of a tile there; skew leaves one expert with fewer than an eighth, and others with several tiles. */
export const TILE_ROWS = 128;
/** Up to so many rows an expert tiles are lower (src/execution/cuda/operators/choice.ts): [rows, of a tile]. */
export const LOW_SHARES = [
  [16, 32],
  [48, 64],
];
/**
 * 69 MB of experts, more than the L2 holds. With 96 rows on average (700 tokens are recorded as 768) and with 64 programs claim
 * their pieces, and tiles of few rows take half the time; with 32 they go in step, through tiles of 64 rows, and with 14 through tiles of
 * 32. Always with all blocks: on one for each of three streams these would take minutes under racecheck.
 */
const BEYOND = {
  experts: 16,
  hidden: 1032,
  inner: 700,
  tokens: [700, 500, 250, 110],
  skew: "zipf:1.5",
  whole: true,
};
/** The same with biases, and three of them. */
const BIASED = { ...BEYOND, bias: true, tokens: [500, 250, 110] };
/** 40 rows an expert on average, which makes tiles of 64. */
const FEWER = { experts: 6, hidden: 328, inner: 136, tokens: [120], skew: "zipf:1.5" };
/** 99 MB of experts, 74 packed: more than the L2 holds. */
const PACKED = { ...BEYOND, inner: 1000, packWeights: true };
const PACKED_BIASED = { ...PACKED, bias: true };
/**
 * For as few tokens as decode takes, in which one of its kernels is as good as another. Outputs are as wide as it takes for several tokens to
 * be taken together in both products (src/execution/cuda/operators/decode-joint.ts).
 */
const DECODING = {
  experts: 6,
  hidden: 2200,
  inner: 136,
  tokens: [1, 4],
  packWeights: true,
  bias: true,
};
/** Rows that lie without gaps and batches that fill their buckets: what a replayed step reads where the caller has it. */
const IN_PLACE = { experts: 6, hidden: 128, inner: 40, tokens: [4, 64] };
const FEW = { ...SMALL, tokens: [1, 4, 33] };
const SIZES = {
  many: MANY,
  beyond: BEYOND,
  biased: BIASED,
  fewer: FEWER,
  packed: PACKED,
  "packed, biased": PACKED_BIASED,
  "packed, decoding": DECODING,
  "packed, grouped": DECODING,
  shared: FEW,
  grouped: FEW,
  sparsemixer: FEW,
  "narrow logits": FEW,
  filled: FEW,
  "in place": IN_PLACE,
  scheduled: { ...SMALL, tokens: [33] },
  partitioned: { ...SMALL, tokens: [33, 300] },
};

const SOFTMAX = { scoring: "softmax", renormalize: true, scale: 1 };
/** As DeepSeek-V3's, with a bias for the selection. */
const GROUPED = {
  scoring: "sigmoid",
  renormalize: true,
  scale: 2.5,
  groupLimit: { groups: 2, keep: 1, score: "top2-sum" },
};
/** Rules that choices do not follow from by the logits alone. */
const RULES = {
  grouped: GROUPED,
  "packed, grouped": GROUPED,
  sparsemixer: { scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 0.1 },
};

export function sizesOf(form) {
  return SIZES[form] ?? SMALL;
}

/** Weights as the element type has them. */
export function weightsOf(random, dtype, shape, bound) {
  const length = shape.reduce((a, b) => a * b);
  return { dtype, shape, data: uniformBlock(dtype, length, bound, random) };
}

/** @returns { spec, weights: host tensors } */
export function layerOf(random, dtype, form) {
  const { experts: count, hidden, inner, bias = false } = sizesOf(form);
  const isMlp = form === "mlp";
  const isShared = form === "shared";
  const rule = RULES[form] ?? SOFTMAX;
  const selectionBias = rule === GROUPED;
  const gated = { form: "gated", hiddenSize: hidden, activation: { kind: "silu" }, dtype };
  const spec = {
    hiddenSize: hidden,
    router: {
      experts: count,
      topK: TOP_K,
      rule,
      ...(selectionBias && { selectionBias }),
      ...(form === "capacity" && { capacityFactor: 1 }),
    },
    experts: {
      ...gated,
      intermediateSize: inner,
      bias,
      ...(isMlp && { form: "mlp", depth: 3, activation: { kind: "gelu" } }),
    },
    ...(isShared && {
      shared: { experts: { ...gated, intermediateSize: inner, bias: false }, gate: true },
    }),
    aggregation: {
      mode: form === "concat" ? "concat" : "sum",
      weightsApplyTo: form === "concat" ? "input" : "output",
      residual: form === "plain" || isShared,
    },
  };
  const matrix = (of, outputs, inputs) =>
    weightsOf(random, dtype, [of, outputs, inputs], Math.sqrt(3 / inputs));
  const vector = (outputs) => weightsOf(random, "float32", [count, outputs], 1);
  const gatedMatrices = (of) => ({
    gate: matrix(of, inner, hidden),
    up: matrix(of, inner, hidden),
    down: matrix(of, hidden, inner),
  });
  const experts = isMlp
    ? {
        layers: [
          matrix(count, inner, hidden),
          matrix(count, inner, inner),
          matrix(count, hidden, inner),
        ],
      }
    : {
        ...gatedMatrices(count),
        ...(bias && {
          gateBias: vector(inner),
          upBias: vector(inner),
          downBias: vector(hidden),
        }),
      };
  const weights = {
    gate: weightsOf(random, "float32", [count, hidden], 0.4),
    experts,
    ...(selectionBias && { selectionBias: weightsOf(random, "float32", [count], 0.2) }),
    ...(isShared && {
      shared: gatedMatrices(1),
      sharedGate: weightsOf(random, "float32", [1, hidden], 0.2),
    }),
  };
  return { spec, weights };
}

/** Normal hidden states that every element type holds, in float32; or such in that of the rows. */
export function hiddenFor(random, dtype, form, tokens) {
  const shape = [tokens, sizesOf(form).hidden];
  if (form === "in place") return weightsOf(random, dtype, shape, 2);
  const values = random.fillNormal(new Float32Array(shape[0] * shape[1]));
  return { data: values.map(roundToBfloat16), shape };
}

/** Logits as forward() takes them: such as load the experts of many rows unevenly, or are as narrow as the rows; the other forms have gates. */
export function logitsFor(random, dtype, form, tokens) {
  const { experts, skew } = sizesOf(form);
  if (skew !== undefined) {
    const popularity = ExpertPopularity.draw(parseSkew(skew), experts, random);
    return { logits: makeLogits(popularity, tokens, random) };
  }
  if (form !== "narrow logits" && form !== "in place") return {};
  return { logits: weightsOf(random, dtype, [tokens, experts], 4) };
}
