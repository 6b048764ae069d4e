/**
 * The router on the GPU against the float64 reference: every scoring rule, logits and
 * gates in three element types, buckets from given ids. All of it works in poisoned memory.
 */

import assert from "node:assert/strict";
import { SliceManager } from "../../src/control/slices/manager.ts";
import { Experts } from "../../src/data/experts.ts";
import { Router } from "../../src/data/router.ts";
import type { Device } from "../../src/execution/device.ts";
import type { RoutingRule } from "../../src/execution/operators.ts";
import { schedule } from "../../src/layer/schedule.ts";
import { referenceExpert, referenceRoute, relativeError } from "../../src/reference/index.ts";
import type { Random } from "../../src/workload/random.ts";
import {
  gatedExperts,
  layOut,
  PLAIN_LAYOUT,
  productsOf,
  randomExperts,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { GROUPED_RULES, limited, RULES } from "../support/rules.ts";
import { between, normal, pick, randomFor } from "../support/seed.ts";
import { tensorOf, valuesOf } from "../support/tensors.ts";
import { gpuTest } from "./gpu.ts";
import { agreeingTokens, ERROR_BOUND, exactHidden } from "./layers.ts";
import { poisoned } from "./step-memory.ts";

const WEIGHT_BOUND = 1e-5;
/** A quotient of two float32 differences may be off by so much. */
const FLOAT32_BLUR = 1e-6;

async function checkRule(
  device: Device,
  random: Random,
  rule: RoutingRule,
  sizes: { readonly tokens: number; readonly experts: number; readonly topK: number },
  dtype: (typeof WEIGHT_DTYPES)[number],
): Promise<void> {
  const { tokens, experts, topK } = sizes;
  const what = `${dtype} T=${tokens} E=${experts} k=${topK} ${JSON.stringify(rule)}`;
  const scoresAll = rule.scoring === "softmax" || rule.scoring === "sigmoid";
  const bias = scoresAll && random.uniform() < 0.5 ? normal(random, experts, 0.2) : undefined;
  const draw = () => {
    const logits = tensorOf(normal(random, tokens * experts, 2), [tokens, experts], dtype);
    return { logits, want: referenceRoute(rule, valuesOf(logits), experts, topK, bias) };
  };
  let { logits, want } = draw();
  // All tokens may be on an edge where there is one.
  while (dtype === "float32" && want.margins.every((margin) => margin <= FLOAT32_BLUR)) {
    ({ logits, want } = draw());
  }
  using router = new Router({
    topK,
    rule,
    device: poisoned(device),
    ...(bias && { selectionBias: tensorOf(bias, [experts]) }),
  });
  const hidden = { data: new Float32Array(tokens), shape: [tokens, 1] };
  const got = await router.route(hidden, logits);
  const tokensAgreeing = agreeingTokens(got.ids, want, topK, what);
  assert.ok(tokensAgreeing.length >= 0.9 * tokens, what);
  // Where rounding decides whether an expert is near the best, sparsemixer's weights jump too.
  const jumpy = rule.scoring === "sparsemixer";
  const clear = tokensAgreeing.filter((t) => !jumpy || (want.margins[t] as number) > FLOAT32_BLUR);
  const slots = clear.flatMap((t) => Array.from({ length: topK }, (_, j) => t * topK + j));
  const weightsOf = (weights: Float32Array | Float64Array) =>
    slots.map((slot) => weights[slot] as number);
  // Of a thousand experts on the coarse grid of 16 bits, one can be on the edge in every row.
  assert.ok(slots.length > 0 || (jumpy && dtype !== "float32"), what);
  const error =
    slots.length > 0 ? relativeError(weightsOf(got.weights), weightsOf(want.weights)) : 0;
  assert.ok(error < WEIGHT_BOUND, `weights are off by ${error}: ${what}`);

  const counts = new Int32Array(experts);
  for (const id of got.ids) counts[id] = (counts[id] as number) + 1;
  assert.deepEqual(got.counts, counts, what);
  assert.deepEqual(got.order, sortedSlots(got.ids), what);
  got.order.forEach((slot, row) => {
    assert.equal(got.inverse[slot], row, what);
  });
  let offset = 0;
  counts.forEach((count, expert) => {
    assert.equal(got.offsets[expert], offset, what);
    offset += count;
  });
  assert.equal(got.offsets[experts], offset, what);
}

/** Slots by expert, ascending within one. */
function sortedSlots(ids: Int32Array): Int32Array {
  return Int32Array.from(ids.keys()).sort(
    (a, b) => (ids[a] as number) - (ids[b] as number) || a - b,
  );
}

for (const dtype of WEIGHT_DTYPES) {
  for (const { name, rule } of RULES) {
    gpuTest(`${name}, logits in ${dtype}`, async (device) => {
      const random = randomFor(`gpu rule ${name} ${dtype}`);
      for (const [tokens, experts, topK] of [
        [1, 8, 2],
        [1, 128, 8],
        [3, 1, 1],
        [65, 60, 4],
        [513, 128, 8],
        [300, 512, 8],
        [130, 33, 32],
        [40, 1024, 32],
      ] as const) {
        await checkRule(device, random, rule, { tokens, experts, topK }, dtype);
      }
      for (let i = 0; i < 6; i++) {
        const experts = between(random, 2, 300);
        const topK = between(random, 1, Math.min(32, experts));
        const sizes = { tokens: between(random, 1, 200), experts, topK };
        await checkRule(device, random, rule, sizes, dtype);
      }
    });
  }

  gpuTest(`groups of experts, logits in ${dtype}`, async (device) => {
    const random = randomFor(`gpu groups ${dtype}`);
    for (const { rule } of GROUPED_RULES) {
      for (let i = 0; i < 8; i++) {
        const experts = 4 * between(random, 1, 64);
        const topK = between(random, 1, Math.min(8, experts));
        const sizes = { tokens: between(random, 1, 200), experts, topK };
        await checkRule(device, random, limited(random, rule, experts, topK), sizes, dtype);
      }
    }
  });

  gpuTest(`a gate in ${dtype}, with hidden states of the same type`, async (device) => {
    const random = randomFor(`gpu gate ${dtype}`);
    for (const [tokens, experts, width] of [
      [1, 8, 64],
      [33, 60, 100],
      [700, 128, 257],
    ] as const) {
      const topK = pick(random, [1, 4]);
      const gate = tensorOf(
        normal(random, experts * width, 2 / Math.sqrt(width)),
        [experts, width],
        dtype,
      );
      const bias = normal(random, experts);
      const hidden = tensorOf(exactHidden(random, tokens, width), [tokens, width], dtype);
      using router = new Router({
        topK,
        device: poisoned(device),
        gate,
        gateBias: tensorOf(bias, [experts]),
      });
      const got = await router.route(hidden);
      const [x, w] = [valuesOf(hidden), valuesOf(gate)];
      const logits = new Float64Array(tokens * experts);
      for (let t = 0; t < tokens; t++) {
        for (let e = 0; e < experts; e++) {
          let sum = 0;
          for (let i = 0; i < width; i++) {
            sum += (x[t * width + i] as number) * (w[e * width + i] as number);
          }
          logits[t * experts + e] = sum + (bias[e] as number);
        }
      }
      const rule: RoutingRule = { scoring: "softmax", renormalize: true, scale: 1 };
      const want = referenceRoute(rule, logits, experts, topK);
      const agreeing = agreeingTokens(got.ids, want, topK, `${dtype} ${tokens} ${experts}`);
      assert.ok(agreeing.length >= 0.9 * tokens);
    }
  });
}

gpuTest("ties go to the lower expert", async (device) => {
  using router = new Router({ topK: 3, device: poisoned(device) });
  const logits = Float32Array.from({ length: 40 * 16 }, (_, i) => (i % 16) % 4);
  const hidden = { data: new Float32Array(40), shape: [40, 1] };
  const { ids } = await router.route(hidden, { data: logits, shape: [40, 16] });
  for (let t = 0; t < 40; t++) assert.deepEqual([...ids.subarray(3 * t, 3 * t + 3)], [3, 7, 11]);
});

for (const dtype of WEIGHT_DTYPES) {
  gpuTest(`given ids: route, plan, schedule, run, ${dtype}`, async (device) => {
    const random = randomFor(`gpu schedule ${dtype}`);
    for (const [tokens, count, capacityFactor] of [
      [1, 4, undefined],
      [70, 6, undefined],
      [70, 6, 0.7],
      [513, 40, undefined],
    ] as const) {
      const spec = gatedExperts(72, 50, { dtype, bias: true });
      const set = randomExperts(random, spec, count);
      const memory = poisoned(device, { hiddenSize: 72, experts: spec });
      using experts = await Experts.fromTensors(spec, count, layOut(spec, set, PLAIN_LAYOUT), {
        device: memory,
      });
      using router = new Router({
        topK: 2,
        device: memory,
        ...(capacityFactor && { capacityFactor }),
      });
      const hidden = exactHidden(random, tokens, 72);
      const buckets = await router.route(
        { data: hidden, shape: [tokens, 72] },
        { data: normal(random, tokens * count, 2), shape: [tokens, count] },
      );
      const plan = new SliceManager({ device: device.properties }).allocate(buckets);
      for (const streams of [1, 8]) {
        const { output } = await schedule(plan, experts, { streams }).run();
        const expected = new Float64Array(output.data.length);
        buckets.ids.forEach((expert, slot) => {
          if ((buckets.inverse[slot] as number) < 0) return;
          const token = Math.floor(slot / 2);
          const input = hidden.subarray(token * 72, (token + 1) * 72);
          referenceExpert(spec, productsOf(set, expert), input).forEach((x, i) => {
            const at = token * 72 + i;
            expected[at] = (expected[at] as number) + x * (buckets.weights[slot] as number);
          });
        });
        const error = relativeError(output.data, expected);
        assert.ok(error < 1.5 * ERROR_BOUND[dtype], `${tokens} tokens: off by ${error}`);
      }
    }
  });
}
