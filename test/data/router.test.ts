/**
 * The router against the float64 reference: every rule, any expert count up to
 * 1024, any top_k up to 32; ties, masked experts, every element type.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Router, type RouterOptions } from "../../src/data/router.ts";
import type { RoutingRule } from "../../src/execution/operators.ts";
import { referenceLogits, referenceRoute } from "../../src/reference/index.ts";
import { matrixView, type TensorLike, toTensor } from "../../src/tensor.ts";
import { openCpu } from "../support/device.ts";
import { plainSpec } from "../support/layers.ts";
import { GROUPED_RULES, limited, RULES } from "../support/rules.ts";
import { between, chance, normal, pick, randomFor } from "../support/seed.ts";
import { tensorOf, valuesOf } from "../support/tensors.ts";

const device = await openCpu(2);
after(() => device.close());

/** Selections closer than this are a float32 router's to make either way. */
const CLOSE_CALL = 1e-6;

const SOFTMAX: RoutingRule = { scoring: "softmax", renormalize: true, scale: 1 };

/** Hidden states that only say how many tokens there are. */
const tokensOnly = (tokens: number): TensorLike => ({
  data: new Float32Array(tokens),
  shape: [tokens, 1],
});

interface Case {
  readonly rule: RoutingRule;
  readonly experts: number;
  readonly topK: number;
  readonly tokens: number;
  readonly selectionBias?: Float32Array;
}

async function route(each: Case, logits: TensorLike, options: Partial<RouterOptions> = {}) {
  const { rule, topK, tokens, selectionBias } = each;
  using router = new Router({
    topK,
    rule,
    device,
    ...(selectionBias && { selectionBias: tensorOf(selectionBias, [selectionBias.length]) }),
    ...options,
  });
  return await router.route(tokensOnly(tokens), logits);
}

type Routed = Awaited<ReturnType<typeof route>>;

/** @returns rows that could not be compared because the reference's selection was a close call */
function compare(
  each: Case,
  routed: Routed,
  logits: Float32Array | Float64Array,
  tolerance = 1e-6,
) {
  const { rule, experts, topK, tokens, selectionBias } = each;
  const expected = referenceRoute(rule, logits, experts, topK, selectionBias);
  const what = `${JSON.stringify(rule)}, E=${experts}, k=${topK}, T=${tokens}`;
  let skipped = 0;
  for (let t = 0; t < tokens; t++) {
    if ((expected.margins[t] as number) < CLOSE_CALL) {
      skipped++;
      continue;
    }
    const slots = [t * topK, (t + 1) * topK] as const;
    assert.deepEqual(
      Array.from(routed.ids.slice(...slots)),
      Array.from(expected.ids.slice(...slots)),
      `ids of token ${t}: ${what}`,
    );
    for (let s = slots[0]; s < slots[1]; s++) {
      const want = expected.weights[s] as number;
      const got = routed.weights[s] as number;
      assert.ok(
        Math.abs(got - want) <= tolerance * Math.abs(want) + 1e-10 * Math.abs(rule.scale),
        `weight ${got} of slot ${s} should be ${want}: ${what}`,
      );
    }
  }
  const counts = new Int32Array(experts);
  for (const id of routed.ids) counts[id] = (counts[id] as number) + 1;
  assert.deepEqual(routed.counts, counts, what);
  return skipped;
}

for (const { name, rule } of RULES) {
  test(`agrees with the reference over random shapes: ${name}`, async () => {
    const random = randomFor(`router ${name}`);
    const grouped = GROUPED_RULES.some((each) => each.rule === rule);
    let rows = 0;
    let skipped = 0;
    for (let i = 0; i < 25; i++) {
      const experts = between(random, 1, pick(random, [8, 65, 300, 1024]));
      const topK = between(random, 1, Math.min(32, experts));
      const tokens = between(random, 1, Math.min(300, Math.ceil(20_000 / experts)));
      const each: Case = {
        rule: grouped && chance(random, 0.5) ? limited(random, rule, experts, topK) : rule,
        experts,
        topK,
        tokens,
        ...(rule.scoring !== "sparsemixer" &&
          chance(random, 0.4) && { selectionBias: normal(random, experts, 0.3) }),
      };
      // Sigmoids of large logits are all 1 in float32.
      const spread = pick(random, rule.scoring === "sigmoid" ? [0.1, 1, 2] : [0.1, 2, 8]);
      const logits = normal(random, tokens * experts, spread);
      const routed = await route(each, { data: logits, shape: [tokens, experts] });
      skipped += compare(each, routed, logits);
      rows += tokens;
    }
    assert.ok(skipped <= rows / 50, `${skipped} of ${rows} rows were too close to compare`);
  });

  test(`takes the corner sizes: ${name}`, async () => {
    const random = randomFor(`router corners ${name}`);
    for (const [experts, topK, tokens] of [
      [1, 1, 1],
      [2, 2, 300],
      [896, 22, 17],
      [1023, 32, 5],
      [1024, 32, 70],
    ] as const) {
      const logits = normal(random, tokens * experts, 2);
      const each = { rule, experts, topK, tokens };
      compare(each, await route(each, { data: logits, shape: [tokens, experts] }), logits);
    }
  });

  test(`gives ties to the lower index: ${name}`, async () => {
    const random = randomFor(`router ties ${name}`);
    const grouped = GROUPED_RULES.some((each) => each.rule === rule);
    for (const [experts, topK, levels] of [
      [12, 5, 1],
      [64, 8, 3],
      [160, 6, 5],
      [96, 32, 2],
    ] as const) {
      const tokens = 40;
      const logits = Float32Array.from({ length: tokens * experts }, () => random.integer(levels));
      for (const each of [rule, ...(grouped ? [limited(random, rule, experts, topK)] : [])]) {
        const one: Case = { rule: each, experts, topK, tokens };
        const skipped = compare(
          one,
          await route(one, { data: logits, shape: [tokens, experts] }),
          logits,
        );
        assert.equal(skipped, 0, "every tie is exact, so every row can be compared");
      }
    }
  });

  test(`leaves experts at -Infinity out while there are others: ${name}`, async () => {
    const random = randomFor(`router masked ${name}`);
    const [experts, topK, tokens] = [20, 4, 30];
    const logits = normal(random, tokens * experts, 2);
    for (let t = 0; t < tokens; t++) {
      const masked = random.permutation(experts).slice(0, between(random, 1, experts - topK));
      for (const e of masked) logits[t * experts + e] = Number.NEGATIVE_INFINITY;
    }
    const each = { rule, experts, topK, tokens };
    const routed = await route(each, { data: logits, shape: [tokens, experts] });
    compare(each, routed, logits);
    routed.ids.forEach((id, slot) => {
      assert.ok(Number.isFinite(logits[Math.floor(slot / topK) * experts + id]));
    });
  });
}

test("more choices than finite logits: the rest have weight 0, in order of index", async () => {
  const out = Number.NEGATIVE_INFINITY;
  const logits = Float32Array.of(out, 0, out, 0, out);
  for (const scoring of ["softmax", "topk-softmax", "sigmoid", "topk-sigmoid"] as const) {
    const rule = { scoring, renormalize: false, scale: 1 };
    const { ids, weights } = await route(
      { rule, experts: 5, topK: 4, tokens: 1 },
      { data: logits, shape: [1, 5] },
    );
    assert.deepEqual(Array.from(ids), [1, 3, 0, 2]);
    assert.deepEqual(Array.from(weights), [0.5, 0.5, 0, 0]);
  }
});

test("logits in bfloat16, float16 and float64", async () => {
  const random = randomFor("router dtypes");
  const [experts, topK, tokens] = [33, 4, 20];
  const values = normal(random, tokens * experts, 2);
  const shape = [tokens, experts];
  const each = { rule: SOFTMAX, experts, topK, tokens };
  for (const dtype of ["bfloat16", "float16"] as const) {
    const logits = tensorOf(values, shape, dtype);
    compare(each, await route(each, logits), valuesOf(logits));
  }
  compare(each, await route(each, { data: Float64Array.from(values), shape }), values);
});

test("a gate computes the logits, with and without its bias, in every element type", async () => {
  const random = randomFor("router gate");
  for (const dtype of ["float32", "bfloat16", "float16"] as const) {
    for (const biased of [false, true]) {
      const experts = between(random, 1, 150);
      const hiddenSize = between(random, 1, 130);
      const topK = between(random, 1, Math.min(8, experts));
      const tokens = between(random, 1, 70);
      const gate = tensorOf(
        normal(random, experts * hiddenSize, 2 / Math.sqrt(hiddenSize)),
        [experts, hiddenSize],
        dtype,
      );
      const bias = normal(random, experts);
      const hidden = normal(random, tokens * hiddenSize);
      using router = new Router({
        topK,
        gate,
        device,
        ...(biased && { gateBias: tensorOf(bias, [experts]) }),
      });
      const routed = await router.route({ data: hidden, shape: [tokens, hiddenSize] });
      const spec = plainSpec(hiddenSize, 1, experts, topK);
      const logits = await referenceLogits(
        { ...spec, router: { ...spec.router, bias: biased } },
        {
          gate: async () => matrixView(toTensor(gate, "gate")),
          gateBias: async () => bias,
          expert: async () => [],
        },
        Float64Array.from(hidden),
      );
      const each = { rule: SOFTMAX, experts, topK, tokens };
      const { margins } = referenceRoute(SOFTMAX, logits, experts, topK);
      // Logits are float32 sums: rows whose selection turns on their rounding are left out.
      const clear = Array.from(margins.keys()).filter((t) => (margins[t] as number) > 2e-5);
      assert.ok(clear.length > 0.8 * tokens);
      for (const t of clear) {
        const row = logits.slice(t * experts, (t + 1) * experts);
        const ids = routed.ids.slice(t * topK, (t + 1) * topK);
        const weights = routed.weights.slice(t * topK, (t + 1) * topK);
        const counts = new Int32Array(experts);
        for (const id of ids) counts[id] = 1;
        const one = { ids, weights, counts } as unknown as Routed;
        compare({ ...each, tokens: 1 }, one, row, 2e-5);
      }
    }
  }
});

test("ready logits win over the gate", async () => {
  using router = new Router({ topK: 1, gate: tensorOf(Float32Array.of(1, 0), [2, 1]), device });
  const hidden = { data: Float32Array.of(5), shape: [1, 1] };
  assert.deepEqual(Array.from((await router.route(hidden)).ids), [0]);
  const logits = { data: Float32Array.of(0, 1), shape: [1, 2] };
  assert.deepEqual(Array.from((await router.route(hidden, logits)).ids), [1]);
});

test("many batches at once each get their own tables", async () => {
  const random = randomFor("router concurrency");
  using router = new Router({ topK: 2, device });
  const cases = Array.from({ length: 30 }, () => {
    const [tokens, experts] = [between(random, 1, 90), between(random, 2, 40)];
    return { rule: SOFTMAX, topK: 2, tokens, experts, logits: normal(random, tokens * experts, 2) };
  });
  const routed = await Promise.all(
    cases.map(({ logits, tokens, experts }) =>
      router.route(tokensOnly(tokens), { data: logits, shape: [tokens, experts] }),
    ),
  );
  cases.forEach((each, i) => {
    compare(each, routed[i] as Routed, each.logits);
  });
});
