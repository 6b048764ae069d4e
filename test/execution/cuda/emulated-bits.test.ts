/**
 * Same inputs, same bits on an emulated GPU: eager or replayed, whatever the number of
 * streams, the policy, the realisation and the budgets, which may change between replays.
 * The order in which unordered work runs there is drawn at random.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { LayerSpec } from "../../../src/data/spec.ts";
import type { DeviceFacts } from "../../../src/execution/cuda/driver/driver.ts";
import { DeviceTensor } from "../../../src/execution/device-tensor.ts";
import type { LayerOptions } from "../../../src/layer/forward.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import {
  batch,
  gatedExperts,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
  WEIGHT_DTYPES,
} from "../../support/layers.ts";
import { between, normal, pick, randomFor } from "../../support/seed.ts";
import { tensorOf, valuesOf } from "../../support/tensors.ts";
import type { EmulatedDriver } from "./emulator/driver.ts";
import { withEmulated } from "./emulator/harness.ts";
import { brainBits, halfBits } from "./emulator/numbers.ts";

const HIDDEN = 40;
const EXPERTS = 11;
const NEVER = 1_000_000;

/** Enough of everything: shared expert with a gate, biases, odd sizes. */
function parts(name: string): RandomLayerParts {
  const random = randomFor(name);
  const dtype = pick(random, WEIGHT_DTYPES);
  const spec: LayerSpec = {
    ...plainSpec(HIDDEN, 1, EXPERTS, 3),
    experts: gatedExperts(HIDDEN, 45, { dtype, bias: true }),
    shared: { experts: gatedExperts(HIDDEN, 33, { dtype }), gate: true },
  };
  return randomLayer(random, spec);
}

/** Later batches lean towards one direction, so that load shifts. */
function batches(name: string): Float32Array[] {
  const random = randomFor(name);
  const lean = normal(random, HIDDEN, 2);
  return [1, 7, 40, 40, 40, 3, 40, 40, 40, 7, 7].map((tokens, i) => {
    const hidden = normal(random, tokens * HIDDEN);
    return i < 4 ? hidden : hidden.map((x, j) => x + (lean[j % HIDDEN] as number));
  });
}

function outputs(
  layer: RandomLayerParts,
  inputs: readonly Float32Array[],
  options: Omit<LayerOptions, "device">,
  facts: Partial<DeviceFacts> = {},
): Promise<Float32Array[]> {
  return withEmulated(
    async (device, driver) => {
      await using moe = new MoELayer(layer.spec, layer.tensors, { device, ...options });
      const all: Float32Array[] = [];
      for (const hidden of inputs) all.push((await moe.forward(batch(hidden, HIDDEN))).output.data);
      assert.ok(driver.order.comparisons > 0, "nothing was checked for races");
      return all;
    },
    { facts },
  );
}

describe("same bits on an emulated GPU", () => {
  const layer = parts("emulated bits");
  const inputs = batches("emulated bits batches");
  const expected = outputs(layer, inputs, { streams: 1, graphs: { warmup: NEVER } });
  const variants: [string, Omit<LayerOptions, "device">, Partial<DeviceFacts>?][] = [
    ...[1, 2, 3, 8].map((streams): [string, LayerOptions] => [`${streams} streams`, { streams }]),
    ...(["static", "dynamic", "proportional", "adaptive"] as const).flatMap((policy) =>
      (["shared", "partitioned"] as const).map((realisation): [string, LayerOptions] => [
        `policy ${policy}, ${realisation}`,
        { streams: 4, slices: { policy, realisation } },
      ]),
    ),
    ["captured at once", { streams: 3, graphs: { warmup: 0 } }],
    ["never captured", { streams: 3, graphs: { warmup: NEVER } }],
    ["a graph cache of one", { streams: 2, graphs: { warmup: 0, capacity: 1 } }],
    ["a GPU of 6 multiprocessors", { streams: 4 }, { multiprocessors: 6 }],
  ];
  for (const [name, options, facts] of variants) {
    it(name, async () => {
      const got = await outputs(layer, inputs, options, facts);
      for (const [i, output] of got.entries()) {
        assert.deepEqual(output, (await expected)[i], `batch ${i}`);
      }
    });
  }
});

describe("budgets on an emulated GPU", () => {
  it("change the grids of a layer's launches, and not its bits", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("emulated budgets");
      const { spec, tensors } = parts("emulated budgets");
      const slices = { realisation: "shared", policy: "static" } as const;
      await using layer = new MoELayer(spec, tensors, { device, streams: 4, slices });
      const hidden = batch(normal(random, 40 * HIDDEN), HIDDEN);
      const control = await layer.control;
      let first: Float32Array | undefined;
      const grids = new Set<string>();
      for (let round = 0; round < 12; round++) {
        const units = between(random, 1, 60);
        control.slices.resize("A", units);
        control.slices.resize("D", between(random, 1, 132 - units - 2));
        control.replan(new Int32Array(EXPERTS).fill(1));
        for (let i = 0; i < 2; i++) {
          driver.launches.length = 0;
          const { output } = await layer.forward(hidden);
          first ??= output.data;
          assert.deepEqual(output.data, first);
          grids.add(driver.launches.map(({ grid }) => grid.x).join());
        }
      }
      assert.ok(grids.size > 2, "grids stayed as they were");
    }));
});

describe("replays on an emulated GPU", () => {
  it("200 with changing routing are fresh eager runs, to the bit", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated replays");
      const { spec, tensors } = parts("emulated replays");
      await using eager = new MoELayer(spec, tensors, { device, graphs: { warmup: NEVER } });
      await using replayed = new MoELayer(spec, tensors, { device, streams: 3 });
      let replays = 0;
      while (replays < 200) {
        // Sizes of one graph and the next, full and not.
        const tokens = pick(random, [2, 4, 9, 12, 16]);
        const hidden = batch(normal(random, tokens * HIDDEN), HIDDEN);
        const [a, b] = await Promise.all([eager.forward(hidden), replayed.forward(hidden)]);
        assert.deepEqual(b.output.data, a.output.data);
        assert.deepEqual(b.stats.counts, a.stats.counts);
        if (b.stats.mode === "replayed") replays += 1;
      }
    }));
});

describe("tensors on an emulated GPU", () => {
  it("device tensors give the bits of host tensors, in float32 and rounded to the rows' type", () =>
    withEmulated(async (device) => {
      const random = randomFor("emulated tensors");
      for (const dtype of ["bfloat16", "float16"] as const) {
        for (const mode of ["sum", "concat"] as const) {
          const base = plainSpec(HIDDEN, 1, 5, 2);
          const experts = gatedExperts(HIDDEN, 20, { dtype });
          const aggregation = { ...base.aggregation, mode };
          const made = randomLayer(random, { ...base, experts, aggregation });
          await using layer = new MoELayer(made.spec, made.tensors, { device });
          for (const shape of [[9, HIDDEN], [3, 3, HIDDEN], [HIDDEN], [2, HIDDEN]]) {
            const elements = shape.reduce((a, b) => a * b);
            const like = tensorOf(normal(random, elements), shape, dtype);
            const host = { data: valuesOf(like), shape };
            const expected = (await layer.forward(host)).output;
            // Replays write the tensors themselves, other ones in every step, and in between none.
            for (let step = 0; step < 5; step++) {
              if (step === 3) {
                assert.deepEqual((await layer.forward(host)).output.data, expected.data);
              }
              using wide = DeviceTensor.fromHost(device, host);
              using narrow = DeviceTensor.fromHost(device, like);
              using first = (await layer.forward(wide)).output;
              using second = (await layer.forward(narrow)).output;
              assert.equal(second.dtype, dtype);
              assert.deepEqual((await first.toHost()).data, expected.data);
              const round = dtype === "bfloat16" ? brainBits : halfBits;
              const rounded = Uint16Array.from(expected.data, round);
              assert.deepEqual((await second.toHost()).data, rounded);
              // Nothing is written to what went in.
              assert.deepEqual((await narrow.toHost()).data, like.data);
            }
          }
        }
      }
    }));

  it("replays read the tensors themselves that lie as rows do, and logits, and copy nothing", () =>
    withEmulated(async (device, driver) => {
      const width = 128;
      const random = randomFor("emulated substitutes");
      const realisation = "partitioned";
      for (const dtype of WEIGHT_DTYPES) {
        const base = plainSpec(width, 1, 6, 2);
        const experts = gatedExperts(width, 20, { dtype });
        const aggregation = { ...base.aggregation, residual: true };
        const made = randomLayer(random, { ...base, experts, aggregation });
        const partitioned = pick(random, [false, true]);
        const options = partitioned ? { streams: 3, slices: { realisation } as const } : {};
        await using layer = new MoELayer(made.spec, made.tensors, { device, ...options });
        // Decode, and in lanes; as many tokens as the graph is for.
        for (const tokens of [2, 16]) {
          for (const given of [false, true]) {
            let copies: number | undefined;
            for (let step = 0; step < 6; step++) {
              const like = tensorOf(normal(random, tokens * width), [tokens, width], dtype);
              const scores = tensorOf(normal(random, tokens * 6), [tokens, 6]);
              const host = { data: valuesOf(like), shape: like.shape };
              const expected = await layer.forward(host, given ? { logits: scores } : {});
              using hidden = DeviceTensor.fromHost(device, like);
              using logits = DeviceTensor.fromHost(device, scores);
              const before = transfersOf(driver);
              const { output, stats } = await layer.forward(hidden, given ? { logits } : {});
              if (stats.mode === "replayed") copies = transfersOf(driver) - before;
              const bits = (await output.toHost()).data;
              output[Symbol.dispose]();
              const values = expected.output.data;
              const round = dtype === "bfloat16" ? brainBits : halfBits;
              assert.deepEqual(
                bits,
                dtype === "float32" ? values : Uint16Array.from(values, round),
              );
              assert.deepEqual((await hidden.toHost()).data, like.data);
            }
            if (!partitioned) assert.equal(copies, 0, `${dtype}, ${tokens} tokens`);
          }
        }
      }
    }));
});

/** Copies within the device so far, and kernels that are such. */
function transfersOf(driver: EmulatedDriver): number {
  const packed = [...driver.ran].filter(([name]) => name.startsWith("pack"));
  return packed.reduce((sum, [, times]) => sum + times, driver.count("copyOnDevice"));
}
