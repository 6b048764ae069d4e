/**
 * Same inputs, same bits: whatever the number of streams and threads, the slice
 * policy, the realisation, eager or replayed, alone or in a batch. Bits are
 * compared, not tolerances.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerOptions } from "../../src/layer/forward.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { withCpu } from "../support/device.ts";
import {
  batch,
  gatedExperts,
  plainSpec,
  type RandomLayerParts,
  randomLayer,
  rowOf,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { normal, pick, randomFor } from "../support/seed.ts";

const HIDDEN = 70;
const NEVER = 1_000_000;

/** Enough of everything: shared expert with a gate, biases, odd sizes, uneven load. */
function parts(name: string): RandomLayerParts {
  const random = randomFor(name);
  const dtype = pick(random, WEIGHT_DTYPES);
  const spec: LayerSpec = {
    ...plainSpec(HIDDEN, 1, 11, 3),
    experts: gatedExperts(HIDDEN, 45, { dtype, bias: true }),
    shared: { experts: gatedExperts(HIDDEN, 33, { dtype }), gate: true },
  };
  return randomLayer(random, spec);
}

/** Batches of many sizes, the same for everyone who asks; later ones lean towards one direction so that load shifts. */
function batches(name: string): Float32Array[] {
  const random = randomFor(name);
  const lean = normal(random, HIDDEN, 2);
  return [1, 7, 64, 64, 200, 64, 64, 3, 64, 64, 64, 7, 7].map((tokens, i) => {
    const hidden = normal(random, tokens * HIDDEN);
    return i < 4 ? hidden : hidden.map((x, j) => x + (lean[j % HIDDEN] as number));
  });
}

/** Outputs of all batches, in order, on a device with `threads` workers. */
function outputs(
  layer: RandomLayerParts,
  inputs: readonly Float32Array[],
  threads: number,
  options: Omit<LayerOptions, "device"> = {},
): Promise<Float32Array[]> {
  return withCpu(threads, async (device) => {
    await using moe = new MoELayer(layer.spec, layer.tensors, { device, ...options });
    const all: Float32Array[] = [];
    for (const hidden of inputs) all.push((await moe.forward(batch(hidden, HIDDEN))).output.data);
    return all;
  });
}

test("streams, threads, policies, realisations, eager and replayed", async (t) => {
  const layer = parts("same bits");
  const inputs = batches("same bits batches");
  const expected = await outputs(layer, inputs, 1, { streams: 1, graphs: { warmup: NEVER } });
  const variants: [string, number, Omit<LayerOptions, "device">][] = [
    ...[1, 2, 8].map((streams): [string, number, LayerOptions] => [
      `${streams} streams`,
      2,
      { streams },
    ]),
    ...[1, 2, 3].map((threads): [string, number, LayerOptions] => [
      `${threads} threads`,
      threads,
      {},
    ]),
    ...(["static", "dynamic", "proportional", "adaptive"] as const).map(
      (policy): [string, number, LayerOptions] => [`policy ${policy}`, 2, { slices: { policy } }],
    ),
    ...(["shared", "partitioned"] as const).map((realisation): [string, number, LayerOptions] => [
      `realisation ${realisation}`,
      3,
      { slices: { realisation } },
    ]),
    ["captured at once", 2, { graphs: { warmup: 0 } }],
    ["never captured", 2, { graphs: { warmup: NEVER } }],
    ["a graph cache of one", 2, { graphs: { warmup: 0, capacity: 1 } }],
  ];
  for (const [name, threads, options] of variants) {
    await t.test(name, async () => {
      const got = await outputs(layer, inputs, threads, options);
      got.forEach((output, i) => {
        assert.deepEqual(output, expected[i], `batch ${i}`);
      });
    });
  }
});

test("modes are what the test above takes them to be", () =>
  withCpu(2, async (device) => {
    const layer = parts("same bits modes");
    const hidden = batch(normal(randomFor("same bits modes"), 4 * HIDDEN), HIDDEN);
    const modes = async (warmup: number) => {
      await using moe = new MoELayer(layer.spec, layer.tensors, { device, graphs: { warmup } });
      const seen: string[] = [];
      for (let i = 0; i < 6; i++) seen.push((await moe.forward(hidden)).stats.mode);
      return seen;
    };
    assert.deepEqual(new Set(await modes(NEVER)), new Set(["eager"]));
    const [first, ...rest] = await modes(0);
    assert.equal(first, "captured");
    assert.ok(rest.includes("replayed") && !rest.includes("eager"), rest.join());
  }));

for (const dtype of WEIGHT_DTYPES) {
  test(`a row alone, in a batch, anywhere in a batch, ${dtype}`, () =>
    withCpu(2, async (device) => {
      const random = randomFor(`same bits row ${dtype}`);
      const spec = {
        ...plainSpec(HIDDEN, 1, 3, 2),
        experts: gatedExperts(HIDDEN, 300, { dtype }),
      };
      const { tensors } = randomLayer(random, spec);
      await using moe = new MoELayer(spec, tensors, { device });
      // Some experts get more rows than the kernels take at once.
      const tokens = 400;
      const hidden = normal(random, tokens * HIDDEN);
      const run = async (rows: Float32Array) =>
        (await moe.forward(batch(rows, HIDDEN))).output.data;
      const whole = await run(hidden);
      for (const t of [0, 1, 100, 255, 399]) {
        assert.deepEqual(await run(rowOf(hidden, t, HIDDEN)), rowOf(whole, t, HIDDEN), `row ${t}`);
      }
      for (const [from, to] of [
        [3, 5],
        [10, 14],
        [50, 59],
        [90, 107],
        [0, 130],
        [101, 400],
      ] as const) {
        assert.deepEqual(
          await run(hidden.slice(from * HIDDEN, to * HIDDEN)),
          whole.slice(from * HIDDEN, to * HIDDEN),
          `rows ${from} to ${to}`,
        );
      }
      const order = random.permutation(tokens);
      const shuffled = new Float32Array(hidden.length);
      order.forEach((t, i) => {
        shuffled.set(rowOf(hidden, t, HIDDEN), i * HIDDEN);
      });
      const moved = await run(shuffled);
      order.forEach((t, i) => {
        assert.deepEqual(rowOf(moved, i, HIDDEN), rowOf(whole, t, HIDDEN), `row ${t} at ${i}`);
      });
    }));
}
