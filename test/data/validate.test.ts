/** Specs that cannot be: each is refused with the field, its value and what it may be. */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { LayerSpec } from "../../src/data/spec.ts";
import { validateLayerSpec } from "../../src/data/validate.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { gatedExperts, plainSpec, randomSpec } from "../support/layers.ts";
import { between, randomFor } from "../support/seed.ts";

type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** A valid layer with one field replaced; specs may come from JSON, so the value may be anything. */
function withField(path: string, value: Json | undefined, base: LayerSpec = complete): LayerSpec {
  const copy = structuredClone(base) as unknown as Record<string, unknown>;
  const keys = path.split(".");
  const last = keys.pop() as string;
  let at = copy;
  for (const key of keys) at = at[key] as Record<string, unknown>;
  if (value === undefined) delete at[last];
  else at[last] = value;
  return copy as unknown as LayerSpec;
}

const complete: LayerSpec = {
  ...plainSpec(8, 6, 12, 4, {
    shared: { experts: gatedExperts(8, 5), gate: true },
  }),
  router: {
    experts: 12,
    topK: 4,
    rule: {
      scoring: "sigmoid",
      renormalize: true,
      scale: 2.5,
      groupLimit: { groups: 4, keep: 2, score: "top2-sum" },
    },
    selectionBias: true,
    capacityFactor: 1.25,
  },
};
const clamped = withField("experts.activation", { kind: "swiglu-clamped", alpha: 1.7, limit: 7 });
const mlp: LayerSpec = withField("experts", {
  ...gatedExperts(8, 6),
  form: "mlp",
  depth: 3,
} as never);
const sparsemixer: LayerSpec = {
  ...complete,
  router: {
    experts: 12,
    topK: 2,
    rule: { scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 0.01 },
  },
};
const topkSoftmax: LayerSpec = {
  ...complete,
  router: {
    experts: 12,
    topK: 2,
    rule: { scoring: "topk-softmax", renormalize: false, scale: 1 },
  },
};

test("valid specs pass", () => {
  for (const spec of [complete, clamped, mlp, sparsemixer, topkSoftmax]) validateLayerSpec(spec);
  const random = randomFor("validate");
  for (let i = 0; i < 200; i++) validateLayerSpec(randomSpec(random, between(random, 1, 300)));
});

const refused: readonly [LayerSpec, RegExp][] = [
  [withField("hiddenSize", 0), /^hiddenSize is 0; .*1 or more/],
  [withField("hiddenSize", 2.5), /^hiddenSize is 2\.5/],
  [withField("hiddenSize", "8"), /^hiddenSize is "8"/],
  [withField("hiddenSize", undefined), /^hiddenSize is undefined/],
  [withField("router", undefined), /^router is undefined/],
  [withField("router", null), /^router is null/],
  [withField("router.experts", 0), /^router\.experts is 0; .*1 to 1024/],
  [withField("router.experts", 1025), /^router\.experts is 1025/],
  [withField("router.topK", 0), /^router\.topK is 0; .*1 to 12/],
  [withField("router.topK", 13), /^router\.topK is 13; .*1 to 12/],
  [withField("router.topK", 33, withField("router.experts", 64)), /^router\.topK is 33; .*1 to 32/],
  [withField("router.bias", "yes"), /^router\.bias is "yes"; .*true, false/],
  [withField("router.selectionBias", 1), /^router\.selectionBias is 1/],
  [
    withField("router.selectionBias", true, sparsemixer),
    /^router\.selectionBias is true; .*sparsemixer/,
  ],
  [withField("router.capacityFactor", 0), /^router\.capacityFactor is 0; .*greater than 0/],
  [withField("router.capacityFactor", -1), /^router\.capacityFactor is -1/],
  [withField("router.capacityFactor", "2"), /^router\.capacityFactor is "2"/],
  [withField("router.capacityFactor", Number.NaN), /^router\.capacityFactor is NaN/],
  [
    withField("router.capacityFactor", Number.POSITIVE_INFINITY),
    /^router\.capacityFactor is Infinity/,
  ],
  [withField("router.rule", undefined), /^rule is undefined/],
  [withField("router.rule.scoring", "argmax"), /^rule\.scoring is "argmax"; .*softmax, sigmoid/],
  [withField("router.rule.renormalize", undefined), /^rule\.renormalize is undefined/],
  [
    withField("router.rule.renormalize", true, topkSoftmax),
    /^rule\.renormalize is true; .*topk-softmax/,
  ],
  [withField("router.rule.scale", Number.NaN), /^rule\.scale is NaN; .*finite/],
  [withField("router.rule.scale", "1"), /^rule\.scale is "1"/],
  [withField("router.rule.scale", 1e39), /^rule\.scale is 1e\+39; .*float32/],
  [withField("router.rule.jitter", 1e39, sparsemixer), /^rule\.jitter is 1e\+39/],
  [withField("experts.activation.alpha", 1e39, clamped), /^experts\.activation\.alpha is 1e\+39/],
  [withField("experts.activation.limit", 1e39, clamped), /^experts\.activation\.limit is 1e\+39/],
  [withField("router.rule.jitter", undefined, sparsemixer), /^rule\.jitter is undefined; .*0\.01/],
  [withField("router.rule.jitter", -1, sparsemixer), /^rule\.jitter is -1/],
  [withField("router.rule.jitter", "0.1", sparsemixer), /^rule\.jitter is "0\.1"/],
  [withField("router.rule.jitter", 0.01), /^rule\.jitter is 0\.01; .*sigmoid/],
  [withField("router.rule.groupLimit", null), /^rule\.groupLimit is null/],
  [
    withField("router.rule.groupLimit", { groups: 2, keep: 1, score: "max" }, topkSoftmax),
    /^rule\.groupLimit.* "topk-softmax"/,
  ],
  [withField("router.rule.groupLimit.groups", 0), /groupLimit\.groups is 0; .*1 to 12/],
  [withField("router.rule.groupLimit.groups", 5), /groupLimit\.groups is 5; .*12 experts evenly/],
  [
    withField("router.rule.groupLimit.groups", 12),
    /groupLimit\.groups is 12; .*top2-sum needs two/,
  ],
  [withField("router.rule.groupLimit.keep", 5), /groupLimit\.keep is 5; .*1 to 4/],
  [withField("router.rule.groupLimit.keep", 1), /groupLimit\.keep is 1; .*3 experts.*topK 4/],
  [withField("router.rule.groupLimit.score", "sum"), /groupLimit\.score is "sum"; .*top2-sum, max/],
  [withField("experts", undefined), /^experts is undefined/],
  [withField("experts.form", "dense"), /^experts\.form is "dense"; .*gated, mlp/],
  [withField("experts.hiddenSize", 9), /^experts\.hiddenSize is 9; .*hiddenSize, 8/],
  [withField("experts.intermediateSize", 0), /^experts\.intermediateSize is 0/],
  [withField("experts.dtype", "int32"), /^experts\.dtype is "int32"; .*float32, bfloat16, float16/],
  [withField("experts.bias", undefined), /^experts\.bias is undefined; .*true, false/],
  [withField("experts.depth", 2), /^experts\.depth is 2; .*leave it out/],
  [withField("experts.depth", 4, mlp), /^experts\.depth is 4; .*2, 3/],
  [withField("experts.depth", undefined, mlp), /^experts\.depth is undefined/],
  [withField("experts.activation", undefined), /^experts\.activation is undefined/],
  [withField("experts.activation.kind", "swish"), /^experts\.activation\.kind is "swish"; .*silu/],
  [
    withField("experts.activation", { kind: "swiglu-clamped", alpha: 1, limit: 1 }, mlp),
    /^experts\.activation\.kind is "swiglu-clamped"; .*form gated/,
  ],
  [
    withField("experts.activation.alpha", null, clamped),
    /^experts\.activation\.alpha is null; .*1\.702/,
  ],
  [
    withField("experts.activation.limit", 0, clamped),
    /^experts\.activation\.limit is 0; .*greater than 0/,
  ],
  [
    withField("experts.activation", { kind: "silu", alpha: 3 }),
    /^experts\.activation\.alpha is 3; .*not used by kind "silu"; leave it out/,
  ],
  [
    withField("shared.experts.activation", { kind: "gelu", limit: 1 }),
    /^shared\.experts\.activation\.limit is 1; .*not used by kind "gelu"/,
  ],
  [withField("experts.activation.limit", "7", clamped), /^experts\.activation\.limit is "7"/],
  [withField("shared", null), /^shared is null/],
  [withField("shared.experts", undefined), /^shared\.experts is undefined/],
  [withField("shared.experts.hiddenSize", 4), /^shared\.experts\.hiddenSize is 4; .*hiddenSize, 8/],
  [withField("shared.experts.form", "x"), /^shared\.experts\.form is "x"/],
  [withField("shared.gate", undefined), /^shared\.gate is undefined/],
  [withField("aggregation", undefined), /^aggregation is undefined/],
  [withField("aggregation.mode", "mean"), /^aggregation\.mode is "mean"; .*sum, concat/],
  [withField("aggregation.weightsApplyTo", "both"), /^aggregation\.weightsApplyTo is "both"/],
  [withField("aggregation.residual", undefined), /^aggregation\.residual is undefined/],
  [
    withField("aggregation", { mode: "concat", weightsApplyTo: "output", residual: true }),
    /^aggregation\.residual is true; .*mode sum/,
  ],
  [
    withField("aggregation.mode", "concat"),
    /^aggregation\.mode is "concat"; .*shared expert; use sum/,
  ],
];

for (const [spec, message] of refused) {
  test(`refuses: ${message.source}`, () => {
    assert.throws(
      () => validateLayerSpec(spec),
      (error) => {
        assert.ok(error instanceof InvalidArgumentError, String(error));
        assert.match(error.message, message);
        return true;
      },
    );
  });
}

test("a spec that is no object is refused", () => {
  for (const spec of [undefined, null, 7, "mixtral"]) {
    assert.throws(() => validateLayerSpec(spec as never), InvalidArgumentError);
  }
});
