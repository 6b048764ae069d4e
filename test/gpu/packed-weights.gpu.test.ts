/**
 * Packed weights on the GPU: layers give the bits that they give with weights as they are, eager and replayed, on one stream
 * and on several, with few experts and many. Steps of one to four tokens give others, which are close, and the same ones every time.
 */

import assert from "node:assert/strict";
import type { LayerSpec } from "../../src/data/spec.ts";
import { UnpackableWeightsError } from "../../src/errors.ts";
import type { Device } from "../../src/execution/device.ts";
import type { LayerOptions } from "../../src/layer/forward.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { relativeError } from "../../src/reference/numbers.ts";
import { layerSpecOf, presetOf } from "../../src/workload/presets.ts";
import { FilledLayer } from "../../src/workload/random-layer.ts";
import {
  batch,
  CLAMPED,
  gatedExperts,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
} from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { tensorOf } from "../support/tensors.ts";
import { gpuTest } from "./gpu.ts";

const NEVER = 1_000_000;
/** Few rows an expert, some, many; each often enough to be replayed. */
const TOKENS = [5, 70, 600];
const STEPS = 4;
/** No step drops a token by it, and none decodes. */
const ROOMY = 1000;
const DTYPE = "bfloat16";

type Options = Omit<LayerOptions, "device">;

/** Widths that are no multiples of 64, and a shared expert, whose weights stay as they are. */
function specOf(experts: number, hidden: number, intermediate: number, bias: boolean): LayerSpec {
  const base = plainSpec(hidden, 1, experts, 3);
  const activation = bias ? CLAMPED : ({ kind: "silu" } as const);
  return {
    ...base,
    router: { ...base.router, capacityFactor: ROOMY },
    experts: { ...gatedExperts(hidden, intermediate, { dtype: DTYPE, bias }), activation },
    shared: { experts: gatedExperts(hidden, 70, { dtype: DTYPE }), gate: true },
  };
}

/** The same layer without a capacity, so that a few tokens of it decode. */
function decodingOf({ router, ...spec }: LayerSpec): LayerSpec {
  const { capacityFactor: _, ...unlimited } = router;
  return { ...spec, router: unlimited };
}

async function outputs(
  device: Device,
  { spec, tensors }: RandomLayerParts,
  inputs: readonly Float32Array[],
  options: Options,
): Promise<Float32Array[]> {
  await using layer = new MoELayer(spec, tensors, { device, ...options });
  const all: Float32Array[] = [];
  for (const hidden of inputs) {
    for (let step = 0; step < STEPS; step++) {
      const { output } = await layer.forward(batch(hidden, spec.hiddenSize));
      all.push(output.data);
    }
  }
  return all;
}

for (const [experts, hidden, intermediate, bias] of [
  [6, 200, 150, true],
  // More than the L2 holds, packed or not.
  [8, 1024, 2048, false],
  [96, 200, 150, false],
  [96, 512, 330, true],
] as const) {
  const name = `${experts} experts of ${hidden} x ${intermediate}${bias ? " with biases" : ""}`;
  gpuTest(`packed weights have the bits of plain ones: ${name}`, async (device, t) => {
    const { packsWeights } = device.properties;
    if (!packsWeights.available) return t.skip(packsWeights.reason);
    const random = randomFor(`gpu packed ${name}`);
    const layer = randomLayer(random, specOf(experts, hidden, intermediate, bias));
    const inputs = TOKENS.map((tokens) => normal(random, tokens * hidden));
    const expected = await outputs(device, layer, inputs, { graphs: { warmup: NEVER } });
    for (const streams of [1, 3]) {
      for (const [warmup, packWeights] of [
        [NEVER, true],
        [0, true],
        [NEVER, "beside"],
        [0, "beside"],
      ] as const) {
        const options = { streams, graphs: { warmup }, packWeights };
        const got = await outputs(device, layer, inputs, options);
        for (const [i, output] of got.entries()) {
          const what = `${TOKENS[Math.floor(i / STEPS)]} tokens, ${JSON.stringify(options)}`;
          assert.deepEqual(output, expected[i], what);
        }
      }
    }
  });
}

for (const [experts, hidden, intermediate, bias] of [
  [6, 200, 150, true],
  // More than the L2 holds, packed or not: weights that are there both ways are read packed.
  [8, 1024, 2048, false],
  [96, 512, 330, true],
  // Of which both products take several tokens together.
  [6, 2200, 150, true],
  [8, 2200, 1100, false],
] as const) {
  const name = `${experts} experts of ${hidden} x ${intermediate}${bias ? " with biases" : ""}`;
  gpuTest(`packed weights decode: ${name}`, async (device, t) => {
    const { packsWeights } = device.properties;
    if (!packsWeights.available) return t.skip(packsWeights.reason);
    const random = randomFor(`gpu packed decode ${name}`);
    const roomySpec = specOf(experts, hidden, intermediate, bias);
    const layer = randomLayer(random, decodingOf(roomySpec));
    const inputs = [1, 2, 3, 4].map((tokens) => normal(random, tokens * hidden));
    const plain = await outputs(device, layer, inputs, { graphs: { warmup: NEVER } });
    const packed = await outputs(device, layer, inputs, {
      graphs: { warmup: NEVER },
      packWeights: true,
    });
    for (const [i, output] of packed.entries()) {
      const error = relativeError(output, plain[i] as Float32Array);
      assert.ok(error < DECODE_TOLERANCE, `${i}: relative error ${error}`);
    }
    // Through buckets sums have another order.
    const roomy = { ...layer, spec: { ...layer.spec, router: roomySpec.router } };
    const buckets = await outputs(device, roomy, inputs, {
      graphs: { warmup: NEVER },
      packWeights: true,
    });
    for (const [i, output] of packed.entries()) assert.notDeepEqual(output, buckets[i]);
    const large = experts * hidden * intermediate > LARGE;
    for (const [streams, warmup, packWeights] of [
      [1, 0, true],
      [3, NEVER, true],
      [3, 0, true],
      ...(large ? ([[1, 0, "beside"]] as const) : []),
    ] as const) {
      const options = { streams, graphs: { warmup }, packWeights };
      const got = await outputs(device, layer, inputs, options);
      assert.deepEqual(got, packed, JSON.stringify(options));
    }
  });
}

gpuTest(
  "packed weights decode a token to the same bits beside whatever others",
  async (device, t) => {
    const { packsWeights } = device.properties;
    if (!packsWeights.available) return t.skip(packsWeights.reason);
    const hidden = 2200;
    const random = randomFor("gpu packed decode, beside others");
    const layer = randomLayer(random, decodingOf(specOf(8, hidden, 150, true)));
    const token = normal(random, hidden);
    const inputs = Array.from({ length: 6 }, () => {
      const input = normal(random, 4 * hidden);
      input.set(token, hidden);
      return input;
    });
    const all = await outputs(device, layer, inputs, { packWeights: true });
    const own = all.map((output) => output.subarray(hidden, 2 * hidden));
    for (const output of own) assert.deepEqual(output, own[0]);
  },
);

/** Of outputs that differ in the order of sums and are rounded alike, between products and at the end. */
const DECODE_TOLERANCE = 4e-3;
/** Weights of one of three matrices of all experts, which together no L2 holds. */
const LARGE = 1e7;

gpuTest(
  "packed noise has the bits of plain noise, of weights larger than the L2",
  async (device, t) => {
    const { packsWeights } = device.properties;
    if (!packsWeights.available) return t.skip(packsWeights.reason);
    const preset = presetOf("qwen3-30b-a3b");
    const { hiddenSize } = preset;
    const random = randomFor("gpu packed noise");
    const spec = layerSpecOf(preset, DTYPE);
    const inputs = TOKENS.map((tokens) => normal(random, tokens * hiddenSize));
    const run = async (packWeights: boolean) => {
      const weights = new FilledLayer(preset, DTYPE, 7);
      await using layer = new MoELayer(spec, weights, { device, packWeights });
      const all: Float32Array[] = [];
      for (const hidden of inputs) {
        all.push((await layer.forward(batch(hidden, hiddenSize))).output.data);
      }
      const { weightBytes } = await layer.statistics();
      return { all, weightBytes };
    };
    const plain = await run(false);
    const packed = await run(true);
    assert.deepEqual(packed.all, plain.all);
    const share = packed.weightBytes / plain.weightBytes;
    assert.ok(share > 0.75 && share < 0.77, `${share} of the bytes`);
  },
);

gpuTest(
  "weights that cannot be packed are refused, and leave nothing behind",
  async (device, t) => {
    const { packsWeights } = device.properties;
    if (!packsWeights.available) return t.skip(packsWeights.reason);
    const random = randomFor("gpu unpackable");
    const { spec, tensors } = randomLayer(random, specOf(4, 200, 150, false));
    const wild = Array.from({ length: 4 }, (_, expert) => {
      const spread = expert === 2 ? 2 ** -60 : 1;
      const values = normal(random, 200 * 150).map((x, i) => (i % 3 === 0 ? x * spread : x));
      return tensorOf(values, [200, 150], DTYPE);
    });
    const narrow = Array.from({ length: 4 }, () =>
      tensorOf(normal(random, 150 * 200), [150, 200], DTYPE),
    );
    const experts = { gate: narrow, up: narrow, down: wild };
    const before = device.memory();
    const layer = new MoELayer(spec, { ...tensors, experts }, { device, packWeights: true });
    await assert.rejects(layer.ready(), (error) => {
      assert.ok(error instanceof UnpackableWeightsError);
      // 200 rows are 13 groups of 16, 150 columns 3 panels.
      assert.deepEqual([error.matrix, error.failures], [2, 39]);
      return true;
    });
    await layer.close();
    const after = device.memory();
    assert.ok(after.allocations <= before.allocations + 2, "more than what is kept for staging");
  },
);
