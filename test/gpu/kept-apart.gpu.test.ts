/**
 * Large experts that are kept apart by their rows (src/execution/cuda/operators/tile-classes.ts): outputs have the bits of plain weights on
 * tiles of one height, and so of a token whatever the others put its experts among.
 */

import assert from "node:assert/strict";
import type { LayerWeights } from "../../src/data/weights.ts";
import { FAST_MEMORY } from "../../src/execution/fast-memory.ts";
import type { LayerOptions } from "../../src/layer/forward.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { layerSpecOf, presetOf } from "../../src/workload/presets.ts";
import { FilledLayer, RandomLayer } from "../../src/workload/random-layer.ts";
import { biased } from "../support/biased.ts";
import { batch, leaning } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";

const NEVER = 1_000_000;
const DTYPE = "bfloat16";
/** Each expert is larger than any L2 so far, 69 MB. */
const LARGE = {
  ...presetOf("small"),
  hiddenSize: 4096,
  intermediateSize: 2816,
  experts: 16,
  topK: 2,
};
/** 32 rows an expert on average, and more. */
const TOKENS = [256, 330];
/** An eager one, one that is captured, and replays. */
const STEPS = 4;
/** How much tokens have in common, beside normal numbers of their own: so they lean to the same experts. */
const LEAN = 0.5;

type Options = Omit<LayerOptions, "device">;

for (const bias of [false, true]) {
  const name = bias ? "with biases" : "without biases";
  gpuTest(`experts with few rows and with many, ${name}`, async (device, t) => {
    const { packsWeights, memoryBytesPerSecond, cacheBytes } = device.properties;
    if (!packsWeights.available) return t.skip(packsWeights.reason);
    if ((memoryBytesPerSecond ?? 0) < FAST_MEMORY) {
      return t.skip("memory is not fast, and no experts are kept apart");
    }
    const { hiddenSize, intermediateSize, experts: count } = LARGE;
    const expertBytes = 3 * hiddenSize * intermediateSize * 2;
    assert.ok(expertBytes > (cacheBytes ?? 0), `the L2 holds ${cacheBytes} bytes`);
    const { experts, ...others } = layerSpecOf(LARGE, DTYPE);
    const spec = { ...others, experts: { ...experts, bias } };
    const random = randomFor(`gpu kept apart ${name}`);
    const drawn = new RandomLayer(LARGE, DTYPE, random.bits());
    const weights: LayerWeights = bias
      ? biased(drawn, random.fork("biases"))
      : new FilledLayer(LARGE, DTYPE, 11);
    const lean = normal(random, hiddenSize, LEAN);
    const inputs = TOKENS.map((tokens) => leaning(random, tokens, lean));
    const run = async (options: Options) => {
      await using layer = new MoELayer(spec, weights, { device, ...options });
      const steps: { output: Float32Array; counts: readonly number[] }[] = [];
      for (const hidden of inputs) {
        for (let step = 0; step < STEPS; step++) {
          const { output, stats } = await layer.forward(batch(hidden, hiddenSize));
          steps.push({ output: output.data, counts: [...stats.counts] });
        }
      }
      return steps;
    };
    const expected = await run({ graphs: { warmup: NEVER } });
    for (const [streams, warmup] of [
      [1, NEVER],
      [1, 0],
      [3, 0],
    ] as const) {
      const options = { streams, graphs: { warmup }, packWeights: "beside" } as const;
      for (const [i, { output }] of (await run(options)).entries()) {
        assert.deepEqual(output, expected[i]?.output, `${i}, ${JSON.stringify(options)}`);
      }
    }
    const { counts } = expected[0] as (typeof expected)[number];
    const classes = [
      [1, 32],
      [33, 64],
      [65, 256],
    ].map(([least = 0, most = 0]) => counts.filter((rows) => rows >= least && rows <= most).length);
    t.diagnostic(`${classes.join(", ")} of ${count} experts with up to 32, 64 and more rows`);
    assert.ok(Math.min(...classes) > 0, `${counts.join(", ")} rows`);
  });
}
