/**
 * Same inputs, same bits on the GPU: eager, captured or replayed, one stream or eight,
 * under any slice policy, budgets and realisation, on another opening of the device.
 * Bits are compared, not tolerances.
 */

import assert from "node:assert/strict";
import { computeBudgetsOf } from "../../src/control/plan.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { Device } from "../../src/execution/device.ts";
import { DeviceTensor } from "../../src/execution/device-tensor.ts";
import type { LayerOptions } from "../../src/layer/forward.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { toFloat32 } from "../../src/tensor.ts";
import { dividingByUse } from "../support/dividing-by-use.ts";
import {
  batch,
  gatedExperts,
  leaning,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { tensorOf } from "../support/tensors.ts";
import { gpuTest, openGpu } from "./gpu.ts";
import { rounded } from "./layers.ts";

const HIDDEN = 200;
const NEVER = 1_000_000;
/** Decode, one tile, several tiles of several sizes; back and forth so that graphs come back. */
const TOKENS = [1, 4, 7, 64, 64, 600, 64, 64, 3, 64, 64, 2000, 64, 7, 7, 1];

type Options = Omit<LayerOptions, "device">;

function partsOf(dtype: (typeof WEIGHT_DTYPES)[number]): RandomLayerParts {
  const spec: LayerSpec = {
    ...plainSpec(HIDDEN, 1, 24, 3),
    experts: gatedExperts(HIDDEN, 150, { dtype, bias: true }),
    shared: { experts: gatedExperts(HIDDEN, 70, { dtype }), gate: true },
  };
  return randomLayer(randomFor(`gpu same bits ${dtype}`), spec);
}

/** Batches whose load shifts from one set of experts to another. */
function batches(dtype: string): Float32Array[] {
  const random = randomFor(`gpu same bits batches ${dtype}`);
  const lean = normal(random, HIDDEN, 2);
  return TOKENS.map((tokens, i) =>
    i < 6 ? normal(random, tokens * HIDDEN) : leaning(random, tokens, lean),
  );
}

async function outputs(
  device: Device,
  layer: RandomLayerParts,
  inputs: readonly Float32Array[],
  options: Options = {},
): Promise<Float32Array[]> {
  await using moe = new MoELayer(layer.spec, layer.tensors, { device, ...options });
  const all: Float32Array[] = [];
  for (const hidden of inputs) all.push((await moe.forward(batch(hidden, HIDDEN))).output.data);
  return all;
}

function assertSameBits(got: readonly Float32Array[], expected: readonly Float32Array[]): void {
  got.forEach((output, i) => {
    assert.deepEqual(output, expected[i], `batch ${i} of ${TOKENS[i]} tokens`);
  });
}

for (const dtype of WEIGHT_DTYPES) {
  gpuTest(`streams, policies, budgets, eager and replayed, ${dtype}`, async (device, t) => {
    const layer = partsOf(dtype);
    const inputs = batches(dtype);
    const eager = await outputs(device, layer, inputs, { streams: 1, graphs: { warmup: NEVER } });
    const { partitioned } = device.properties.realisations;
    const variants: [string, Options][] = [
      ["eager again", { streams: 1, graphs: { warmup: NEVER } }],
      ["eager on 8 streams", { streams: 8, graphs: { warmup: NEVER } }],
      ["captured at once", { graphs: { warmup: 0 } }],
      ["a graph cache of one", { graphs: { warmup: 0, capacity: 1 } }],
      ...[1, 2, 8].map((streams): [string, Options] => [`${streams} streams`, { streams }]),
      ...(["static", "dynamic", "proportional", "adaptive"] as const).map(
        (policy): [string, Options] => [`policy ${policy}`, { streams: 4, slices: { policy } }],
      ),
      ["shared", { streams: 4, slices: { realisation: "shared" } }],
    ];
    if (partitioned.available) {
      for (const streams of [1, 3, 8]) {
        const options: Options = { streams, slices: { realisation: "partitioned" } };
        variants.push([`partitioned, ${streams} streams`, options]);
      }
    } else {
      t.diagnostic(`partitions not tested: ${partitioned.reason}`);
    }
    for (const [name, options] of variants) {
      await t.test(name, async () => {
        assertSameBits(await outputs(device, layer, inputs, options), eager);
      });
    }
    await t.test("on another opening of the device, beside this one", async () => {
      await using second = await openGpu();
      assertSameBits(await outputs(second, layer, inputs), eager);
    });
    await t.test("device tensors in and out", async () => {
      await using moe = new MoELayer(layer.spec, layer.tensors, { device });
      for (const [i, hidden] of inputs.entries()) {
        using input = DeviceTensor.fromHost(device, batch(hidden, HIDDEN));
        using output = (await moe.forward(input)).output;
        const { data } = await output.toHost();
        assert.deepEqual(Float32Array.from(data), eager[i], `batch ${i}`);
      }
    });
    if (dtype === "float32") return;
    await t.test(`${dtype} tensors in and out: the float32 output, rounded once`, async () => {
      await using moe = new MoELayer(layer.spec, layer.tensors, { device });
      for (const [i, hidden] of inputs.entries()) {
        const narrow = tensorOf(hidden, [hidden.length / HIDDEN, HIDDEN], dtype);
        const wide = (await moe.forward(narrow)).output.data;
        // Replays write the tensors themselves, at another address in every step.
        const kept: DeviceTensor[] = [];
        for (let step = 0; step < 5; step++) {
          const input = DeviceTensor.fromHost(device, narrow);
          const { output } = await moe.forward(input);
          kept.push(input, output);
          assert.equal(output.dtype, dtype);
          assert.deepEqual(toFloat32(await output.toHost()), rounded(wide, dtype), `batch ${i}`);
        }
        for (const tensor of kept) tensor[Symbol.dispose]();
      }
    });
  });
}

for (const dtype of WEIGHT_DTYPES) {
  gpuTest(`replays that read and write the caller's tensors, ${dtype}`, async (device) => {
    const random = randomFor(`gpu substitutes ${dtype}`);
    const width = 256;
    const base = plainSpec(width, 1, 24, 3);
    const experts = gatedExperts(width, 150, { dtype, bias: true });
    const aggregation = { ...base.aggregation, residual: true };
    const shared = { experts: gatedExperts(width, 70, { dtype }), gate: true };
    const some: [Partial<LayerSpec>, Options][] = [
      [{}, {}],
      [{ shared }, {}],
      [{}, { streams: 3 }],
    ];
    if (device.properties.realisations.partitioned.available) {
      some.push([{}, { streams: 3, slices: { realisation: "partitioned" } }]);
    }
    for (const [more, options] of some) {
      const layer = randomLayer(random, { ...base, experts, aggregation, ...more });
      await using moe = new MoELayer(layer.spec, layer.tensors, { device, ...options });
      for (const tokens of [1, 4, 3, 64, 512]) {
        for (const given of [false, true]) {
          const kept: DeviceTensor[] = [];
          for (let step = 0; step < 6; step++) {
            const like = tensorOf(normal(random, tokens * width), [tokens, width], dtype);
            const scores = tensorOf(normal(random, tokens * 24), [tokens, 24]);
            const wide = (await moe.forward(like, given ? { logits: scores } : {})).output.data;
            const hidden = DeviceTensor.fromHost(device, like);
            const logits = DeviceTensor.fromHost(device, scores);
            const { output } = await moe.forward(hidden, given ? { logits } : {});
            kept.push(hidden, logits, output);
            const expected = dtype === "float32" ? wide : rounded(wide, dtype);
            const what = `${tokens} tokens, ${JSON.stringify({ given, ...options, ...more })}`;
            assert.deepEqual(toFloat32(await output.toHost()), expected, what);
            assert.deepEqual((await hidden.toHost()).data, like.data);
          }
          for (const tensor of kept) tensor[Symbol.dispose]();
        }
      }
    }
  });
}

gpuTest(
  "budgets change between replays: same bits, and nothing is captured again",
  async (device) => {
    const layer = partsOf("bfloat16");
    const hidden = batch(normal(randomFor("gpu budgets"), 300 * HIDDEN), HIDDEN);
    // As many lanes at most as slices that always hold experts: their number does not follow the budgets.
    const options = { streams: 2, slices: { realisation: "shared" as const } };
    await using moe = new MoELayer(layer.spec, layer.tensors, { device, ...options });
    const control = await moe.control;
    const step = async () => {
      const { output, stats } = await moe.forward(hidden);
      return { data: output.data, stats };
    };
    // Until the plan has settled and every lane layout in use has its graph.
    let first = await step();
    for (let i = 0; i < 80; i++) first = await step();
    assert.equal(first.stats.mode, "replayed");
    const { captures } = (await moe.statistics()).graphs;
    const { computeUnits, computeUnitGranularity: grain } = device.properties;
    const seen = new Set<string>();
    for (const part of [0.125, 0.25, 0.5, 0.7, 0.125]) {
      control.slices.resize(
        "A",
        Math.max(grain, Math.floor((part * computeUnits) / grain) * grain),
      );
      control.replan(first.stats.counts);
      seen.add(computeBudgetsOf(control.plan).units.join());
      const { data, stats } = await step();
      assert.equal(stats.mode, "replayed", `with ${part} of the device for slice A`);
      assert.deepEqual(data, first.data);
    }
    assert.ok(seen.size >= 4, `only ${seen.size} divisions: ${[...seen].join("; ")}`);
    assert.equal((await moe.statistics()).graphs.captures, captures);
  },
);

gpuTest("undivided plans and divided ones in turn: same bits, two graphs", async (device) => {
  const layer = partsOf("bfloat16");
  const hidden = batch(normal(randomFor("gpu undivided"), 300 * HIDDEN), HIDDEN);
  let undivided = false;
  const policy = dividingByUse(() => ({ undivided }));
  await using moe = new MoELayer(layer.spec, layer.tensors, {
    device,
    streams: 2,
    slices: { policy },
  });
  const control = await moe.control;
  const first = await moe.forward(hidden);
  for (let i = 0; i < 12; i++) {
    undivided = i % 2 === 0;
    control.replan(first.stats.counts);
    const { output, stats } = await moe.forward(hidden);
    assert.equal(stats.streams, undivided ? 1 : 2);
    // The divided graph is there one turn sooner where the first plan, of no counts, shares its key.
    if (i >= 4) assert.equal(stats.mode, "replayed", `step ${i}`);
    assert.deepEqual(output.data, first.output.data);
  }
  assert.equal((await moe.statistics()).graphs.captures, 2);
});

gpuTest("a row alone, in a batch, anywhere in a batch of the same kernels", async (device) => {
  const random = randomFor("gpu rows");
  for (const dtype of WEIGHT_DTYPES) {
    const spec = {
      ...plainSpec(HIDDEN, 1, 5, 2),
      experts: gatedExperts(HIDDEN, 300, { dtype }),
    };
    const { tensors } = randomLayer(random, spec);
    await using moe = new MoELayer(spec, tensors, { device });
    // The most tokens that buffers and graphs are made for decide the kernels: 512 throughout.
    const tokens = 512;
    const hidden = normal(random, tokens * HIDDEN);
    const run = async (rows: Float32Array) => (await moe.forward(batch(rows, HIDDEN))).output.data;
    const whole = await run(hidden);
    const order = random.permutation(tokens);
    const shuffled = new Float32Array(hidden.length);
    order.forEach((t, i) => {
      shuffled.set(hidden.subarray(t * HIDDEN, (t + 1) * HIDDEN), i * HIDDEN);
    });
    const moved = await run(shuffled);
    order.forEach((t, i) => {
      assert.deepEqual(
        moved.slice(i * HIDDEN, (i + 1) * HIDDEN),
        whole.slice(t * HIDDEN, (t + 1) * HIDDEN),
        `${dtype}: row ${t} at ${i}`,
      );
    });
    for (const [from, to] of [
      [0, 300],
      [100, 412],
      [255, 512],
    ] as const) {
      assert.deepEqual(
        await run(hidden.slice(from * HIDDEN, to * HIDDEN)),
        whole.slice(from * HIDDEN, to * HIDDEN),
        `${dtype}: rows ${from} to ${to}`,
      );
    }
  }
});
