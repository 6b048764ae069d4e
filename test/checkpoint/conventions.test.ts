/** What each family makes of a config, key by key: no files, only names. Expected values are those of transformers 5.17. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ModelConfig } from "../../src/checkpoint/config.ts";
import { FAMILIES, familyOf } from "../../src/checkpoint/families/index.ts";
import type { LayerLayout } from "../../src/checkpoint/layout.ts";
import { assertFault } from "./support.ts";

type Values = Record<string, unknown>;

/** Reads a layer's layout from config values and tensor names. */
function describe(values: Values, layer = 0, names: readonly string[] = []): LayerLayout {
  const config = new ModelConfig("dir/config.json", values);
  return familyOf(config).describe(config, layer, new Set(names));
}

const later = async (values: Values, layer = 0, names: readonly string[] = []) =>
  describe(values, layer, names);

// ---------------------------------------------------------------------------
// Defaults

/** What a config of nothing but its model_type means. */
interface Sizes {
  readonly hidden: number;
  readonly expert: number;
  readonly experts: number;
  readonly topK: number;
  readonly layers: number;
  readonly shared?: number;
}
const defaults: Record<string, Sizes> = {
  mixtral: { hidden: 4096, expert: 14336, experts: 8, topK: 2, layers: 32 },
  qwen2_moe: { hidden: 2048, expert: 1408, experts: 60, topK: 4, layers: 24, shared: 5632 },
  qwen3_moe: { hidden: 2048, expert: 768, experts: 128, topK: 8, layers: 24 },
  olmoe: { hidden: 2048, expert: 2048, experts: 64, topK: 8, layers: 16 },
  deepseek_v2: { hidden: 4096, expert: 1407, experts: 64, topK: 6, layers: 32, shared: 2814 },
  deepseek_v3: { hidden: 7168, expert: 2048, experts: 256, topK: 8, layers: 61, shared: 2048 },
  glm4_moe: { hidden: 4096, expert: 1408, experts: 128, topK: 8, layers: 46, shared: 1408 },
  gpt_oss: { hidden: 2880, expert: 2880, experts: 128, topK: 4, layers: 36 },
  phimoe: { hidden: 4096, expert: 6400, experts: 16, topK: 2, layers: 32 },
  llama4_text: { hidden: 5120, expert: 8192, experts: 16, topK: 1, layers: 48, shared: 8192 },
  llama4: { hidden: 5120, expert: 8192, experts: 16, topK: 1, layers: 48, shared: 8192 },
};
const softmax = { scoring: "softmax", renormalize: false, scale: 1 };
const rules: Record<string, Values> = {
  mixtral: { ...softmax, renormalize: true },
  qwen2_moe: softmax,
  qwen3_moe: softmax,
  olmoe: softmax,
  deepseek_v2: softmax,
  deepseek_v3: {
    scoring: "sigmoid",
    renormalize: true,
    scale: 2.5,
    groupLimit: { groups: 8, keep: 4, score: "top2-sum" },
  },
  glm4_moe: { scoring: "sigmoid", renormalize: true, scale: 1 },
  gpt_oss: { scoring: "topk-softmax", renormalize: false, scale: 1 },
  phimoe: { scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 0.01 },
  llama4_text: { scoring: "topk-sigmoid", renormalize: false, scale: 1 },
  llama4: { scoring: "topk-sigmoid", renormalize: false, scale: 1 },
};

for (const type of FAMILIES.flatMap(({ modelTypes }) => modelTypes)) {
  test(`${type}: absent keys mean what they mean to transformers`, async () => {
    // DeepSeek-V2 alone has no default for the number of experts a token goes to.
    const values = { model_type: type, ...(type === "deepseek_v2" && { num_experts_per_tok: 6 }) };
    const { layers } = defaults[type] as Sizes;
    const layout = describe(values, layers - 1);
    await assertFault(later(values, layers), "unsupported", {
      message: new RegExp(`${layers} layers`),
    });
    assert.deepEqual(
      {
        hidden: layout.hiddenSize,
        expert: layout.experts.intermediateSize,
        experts: layout.router.experts,
        topK: layout.router.topK,
        layers,
        ...(layout.shared && { shared: layout.shared.experts.intermediateSize }),
      },
      defaults[type],
    );
    assert.deepEqual(layout.router.rule, rules[type]);
    const activation =
      type === "gpt_oss" ? { kind: "swiglu-clamped", alpha: 1.702, limit: 7 } : { kind: "silu" };
    assert.deepEqual(layout.experts.activation, activation);
    assert.equal(layout.router.bias ?? false, type === "gpt_oss");
    assert.equal(layout.experts.bias, type === "gpt_oss");
    assert.equal(layout.router.selectionBias ?? false, /v3|glm/.test(type));
    assert.equal(layout.shared?.gate ?? false, type === "qwen2_moe");
    const weightsApplyTo = type.startsWith("llama4") ? "input" : "output";
    assert.deepEqual(layout.aggregation, { mode: "sum", weightsApplyTo, residual: false });
  });
}

// ---------------------------------------------------------------------------
// Keys that change the rule

const rule = (values: Values, layer = 0) => describe(values, layer).router.rule;

test("the number of experts goes by three names", () => {
  for (const key of ["num_experts", "num_local_experts", "n_routed_experts"]) {
    for (const type of ["mixtral", "qwen3_moe", "deepseek_v3"]) {
      const layout = describe({ model_type: type, [key]: 24, first_k_dense_replace: 0 });
      assert.equal(layout.router.experts, 24, `${type} ${key}`);
    }
  }
});

test("norm_topk_prob decides, null means no, Mixtral and DeepSeek-V2 do not ask", () => {
  for (const type of ["qwen2_moe", "qwen3_moe", "olmoe"]) {
    assert.equal(rule({ model_type: type, norm_topk_prob: true }).renormalize, true);
    assert.equal(rule({ model_type: type, norm_topk_prob: null }).renormalize, false);
  }
  const v3 = { model_type: "deepseek_v3", first_k_dense_replace: 0 };
  assert.equal(rule({ ...v3, norm_topk_prob: false }).renormalize, false);
  assert.equal(rule({ model_type: "mixtral", norm_topk_prob: false }).renormalize, true);
  const v2 = { model_type: "deepseek_v2", num_experts_per_tok: 2, norm_topk_prob: true };
  assert.equal(rule(v2).renormalize, false);
});

test("DeepSeek-V2 groups only where its method says so", async () => {
  const v2 = { model_type: "deepseek_v2", num_experts_per_tok: 6, n_group: 8, topk_group: 3 };
  assert.equal(rule({ ...v2, topk_method: "greedy" }).groupLimit, undefined);
  const limited = rule({ ...v2, topk_method: "group_limited_greedy", routed_scaling_factor: 16 });
  assert.deepEqual(limited, {
    ...softmax,
    scale: 16,
    groupLimit: { groups: 8, keep: 3, score: "max" },
  });
  for (const method of ["noaux_tc", null]) {
    await assertFault(later({ ...v2, topk_method: method }), "unsupported", {
      message: /topk_method/,
    });
  }
  const none = { ...v2, topk_method: "group_limited_greedy", n_group: null };
  await assertFault(later(none), "bad-config", { message: /n_group/ });
});

test("groups that all experts may come from are no limit; groups that do not work out are refused", async () => {
  const v3 = { model_type: "deepseek_v3", first_k_dense_replace: 0, n_routed_experts: 16 };
  const grouped = (n_group: number, topk_group: number, num_experts_per_tok = 4) => ({
    ...v3,
    n_group,
    topk_group,
    num_experts_per_tok,
  });
  assert.equal(rule(grouped(1, 1)).groupLimit, undefined);
  assert.equal(rule(grouped(4, 4)).groupLimit, undefined);
  assert.deepEqual(rule(grouped(4, 2)).groupLimit, { groups: 4, keep: 2, score: "top2-sum" });
  assert.deepEqual(rule(grouped(8, 2)).groupLimit, { groups: 8, keep: 2, score: "top2-sum" });
  for (const [groups, keep] of [
    [3, 2],
    [16, 8],
    [4, 5],
    [8, 1],
    [1, 2],
  ] as const) {
    const values = grouped(groups, keep);
    await assertFault(later(values), "bad-config", { message: /do not work out/ });
  }
});

test("shared experts may be none", () => {
  const v3 = { model_type: "deepseek_v3", first_k_dense_replace: 0 };
  for (const n_shared_experts of [0, null]) {
    const layout = describe({ ...v3, n_shared_experts });
    assert.equal(layout.shared, undefined);
    assert.equal(layout.parts.shared, undefined);
  }
  const layout = describe({ model_type: "qwen2_moe", shared_expert_intermediate_size: 0 });
  assert.equal(layout.shared, undefined);
  assert.equal(layout.parts.sharedGate, undefined);
});

test("activations have the names transformers gives them", async () => {
  const kind = (hidden_act: string) =>
    describe({ model_type: "mixtral", hidden_act }).experts.activation.kind;
  assert.equal(kind("silu"), "silu");
  assert.equal(kind("swish"), "silu");
  assert.equal(kind("gelu"), "gelu");
  assert.equal(kind("gelu_pytorch_tanh"), "gelu-tanh");
  assert.equal(kind("gelu_new"), "gelu-tanh");
  assert.equal(kind("relu"), "relu");
  for (const hidden_act of ["mish", "toString"]) {
    const work = later({ model_type: "mixtral", hidden_act });
    await assertFault(work, "unsupported", { message: new RegExp(`"${hidden_act}"`) });
  }
});

test("gpt-oss takes its clamp from the config", () => {
  const { activation } = describe({ model_type: "gpt_oss", swiglu_limit: 5 }).experts;
  assert.deepEqual(activation, { kind: "swiglu-clamped", alpha: 1.702, limit: 5 });
});

test("Phi-MoE routes to two experts or not at all", async () => {
  for (const num_experts_per_tok of [1, 3]) {
    const work = later({ model_type: "phimoe", num_experts_per_tok });
    await assertFault(work, "unsupported", { message: /exactly 2/ });
  }
  assert.equal(rule({ model_type: "phimoe", router_jitter_noise: 0.3 }).jitter, 0.3);
});

// ---------------------------------------------------------------------------
// Which layers have experts

const gates = (layers: readonly number[], block = "mlp.gate") =>
  layers.map((n) => `model.layers.${n}.${block}.weight`);

/** Asks every layer of a model. */
function sparseLayers(values: Values, layers: number, names: readonly string[] = []): number[] {
  return Array.from({ length: layers }, (_, n) => n).filter((layer) => {
    try {
      return describe({ ...values, num_hidden_layers: layers }, layer, names);
    } catch {
      return false;
    }
  });
}

test("each family counts its dense layers in its own way", () => {
  const qwen = { model_type: "qwen2_moe" };
  assert.deepEqual(sparseLayers(qwen, 4), [0, 1, 2, 3]);
  assert.deepEqual(sparseLayers({ ...qwen, decoder_sparse_step: 2 }, 6), [1, 3, 5]);
  assert.deepEqual(sparseLayers({ ...qwen, mlp_only_layers: [0, 2] }, 4), [1, 3]);
  assert.deepEqual(sparseLayers({ ...qwen, mlp_only_layers: null }, 2), [0, 1]);
  assert.deepEqual(sparseLayers({ model_type: "qwen3_moe", num_experts: 0 }, 4), []);
  assert.deepEqual(sparseLayers({ model_type: "deepseek_v3" }, 5), [3, 4]);
  assert.deepEqual(sparseLayers({ model_type: "glm4_moe" }, 3), [1, 2]);
  const v2 = { model_type: "deepseek_v2", num_experts_per_tok: 2, first_k_dense_replace: 2 };
  assert.deepEqual(sparseLayers(v2, 4), [2, 3]);
  const llama = { model_type: "llama4_text" };
  assert.deepEqual(sparseLayers({ ...llama, interleave_moe_layer_step: 2 }, 6), [1, 3, 5]);
  assert.deepEqual(
    sparseLayers({ ...llama, interleave_moe_layer_step: 2, moe_layers: [0] }, 3),
    [0],
  );
  assert.deepEqual(sparseLayers({ ...llama, moe_layers: [] }, 3), []);
});

test("names that show a dense MLP overrule the config", async () => {
  const values = { model_type: "deepseek_v3", first_k_dense_replace: 0 };
  const names = [
    ...gates([1, 3]),
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.2.mlp.gate_proj.weight",
  ];
  assert.deepEqual(sparseLayers(values, 4, names), [1, 3]);
});

test("a dense layer and one that is not there are refused, with the layers there are", async () => {
  const values = { model_type: "deepseek_v3", first_k_dense_replace: 1, num_hidden_layers: 9 };
  // Of layer 4 there is something, but no router.
  const names = [...gates([1, 2, 3, 5, 7, 8, 9]), "model.layers.4.input_layernorm.weight"];
  const list = /Layers with experts: 1-3, 5, 7-8\./;
  await assertFault(later(values, 0, names), "unsupported", { message: /layer 0 is a dense MLP/ });
  await assertFault(later(values, 0, names), "unsupported", { message: list });
  for (const layer of [9, -1, 1.5, Number.NaN]) {
    await assertFault(later(values, layer, names), "unsupported", { message: list });
  }
  await assertFault(later(values, 0, []), "unsupported", { message: /No layer/ });
});

// ---------------------------------------------------------------------------
// Where tensors are

test("the prefix is found by looking", () => {
  const router = (prefix: string) =>
    describe({ model_type: "llama4" }, 2, [
      "vision_model.model.layers.2.mlp.fc1.weight",
      `${prefix}2.feed_forward.router.weight`,
    ]).parts.gate.tensor;
  for (const prefix of [
    "model.layers.",
    "language_model.model.layers.",
    "model.language_model.layers.",
    "layers.",
  ]) {
    assert.equal(router(prefix), `${prefix}2.feed_forward.router.weight`);
  }
});

test("the language model's config may be nested", async () => {
  const text_config = { hidden_size: 64, num_experts: 4 };
  assert.equal(describe({ model_type: "llama4", text_config }).hiddenSize, 64);
  await assertFault(later({ model_type: "llama4", text_config: 3 }), "bad-config");
});

test("hub names and in-library names are both found", () => {
  const first = (names: string[], type: string) => {
    const { gate, expert } = describe({ model_type: type }, 0, names).parts;
    return [gate.tensor, expert(1)[0]?.gate?.tensor, expert(1)[1]?.value.tensor];
  };
  const at = (name: string) => `model.layers.0.${name}`;
  for (const type of ["mixtral", "phimoe"]) {
    assert.deepEqual(first([at("block_sparse_moe.gate.weight")], type), [
      at("block_sparse_moe.gate.weight"),
      at("block_sparse_moe.experts.1.w1.weight"),
      at("block_sparse_moe.experts.1.w2.weight"),
    ]);
  }
  const packed = [at("mlp.experts.gate_up_proj"), at("mlp.router.weight")];
  assert.deepEqual(first(packed, "phimoe"), [
    at("mlp.router.weight"),
    at("mlp.experts.gate_up_proj"),
    at("mlp.experts.down_proj"),
  ]);
  const both = [...packed, at("mlp.experts.0.gate_proj.weight")];
  assert.equal(first(both, "qwen3_moe")[1], at("mlp.experts.1.gate_proj.weight"));
});

// ---------------------------------------------------------------------------
// What is refused

test("quantised checkpoints are refused with what to do", async () => {
  const remedy = { message: /bfloat16 version/ };
  const quantization_config = { quant_method: "fp8" };
  await assertFault(later({ model_type: "mixtral", quantization_config }), "unsupported", remedy);
  const nested = { model_type: "llama4", text_config: { quantization_config } };
  await assertFault(later(nested), "unsupported", remedy);
  describe({ model_type: "mixtral", quantization_config: null });

  const block = "model.layers.0.mlp.experts.";
  for (const [type, name] of [
    ["gpt_oss", `${block}gate_up_proj_blocks`],
    ["gpt_oss", `${block}down_proj_scales`],
    ["qwen3_moe", `${block}0.gate_proj.weight_scale_inv`],
    ["qwen3_moe", `${block}0.gate_proj.qweight`],
  ] as const) {
    const work = later({ model_type: type }, 0, [name]);
    await assertFault(work, "unsupported", { ...remedy, tensor: name });
  }
});

test("an unknown family is refused with those that are known", async () => {
  const expected = { message: /"llama".*mixtral.*llama4_text/, file: /^dir\/config\.json$/ };
  await assertFault(later({ model_type: "llama" }), "unsupported", expected);
  await assertFault(later({}), "bad-config", { message: /"model_type" is missing/ });
  await assertFault(later({ model_type: 4 }), "bad-config", { message: /"model_type" is 4/ });
});

test("a value that cannot be is refused by the name it has in the file", async () => {
  const mixtral = { model_type: "mixtral" };
  const cases: [Values, RegExp][] = [
    [{ ...mixtral, hidden_size: "64" }, /"hidden_size" is "64"/],
    [{ ...mixtral, hidden_size: 0 }, /"hidden_size" is 0/],
    [{ ...mixtral, hidden_size: 1.5 }, /"hidden_size" is 1\.5/],
    [{ ...mixtral, hidden_size: null }, /"hidden_size" is null/],
    [{ ...mixtral, num_local_experts: -8 }, /"num_local_experts" is -8/],
    [{ ...mixtral, hidden_act: 3 }, /"hidden_act" is 3/],
    [{ ...mixtral, num_experts_per_tok: 9 }, /"num_experts_per_tok" is 9, but there are only 8/],
    [{ model_type: "qwen3_moe", decoder_sparse_step: 0 }, /"decoder_sparse_step" is 0/],
    [{ model_type: "qwen3_moe", mlp_only_layers: 3 }, /"mlp_only_layers" is 3/],
    [{ model_type: "deepseek_v2" }, /"num_experts_per_tok" is missing/],
    [{ model_type: "deepseek_v3", scoring_func: "softmax" }, /"scoring_func" is "softmax"/],
    [{ model_type: "phimoe", router_jitter_noise: -1 }, /"router_jitter_noise" is -1/],
  ];
  for (const [values, message] of cases) {
    await assertFault(later(values, 5), "bad-config", { message });
  }
});
