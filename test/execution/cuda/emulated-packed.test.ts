/**
 * Packed weights on an emulated GPU: layers give the bits that they give with weights as they are, and what cannot be packed
 * leaves nothing behind.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Experts } from "../../../src/data/experts.ts";
import type { LayerSpec } from "../../../src/data/spec.ts";
import { UnpackableWeightsError } from "../../../src/errors.ts";
import { PackedProjection } from "../../../src/execution/cuda/packed-projection.ts";
import type { Activation } from "../../../src/execution/operators.ts";
import type { LayerOptions } from "../../../src/layer/forward.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { matrixView, toTensor } from "../../../src/tensor.ts";
import { layerSpecOf, presetOf } from "../../../src/workload/presets.ts";
import { FilledLayer } from "../../../src/workload/random-layer.ts";
import { batch, CLAMPED, gatedExperts, plainSpec, randomLayer } from "../../support/layers.ts";
import { normal, randomFor } from "../../support/seed.ts";
import { tensorOf } from "../../support/tensors.ts";
import { withEmulated } from "./emulator/harness.ts";

const NEVER = 1_000_000;
/** No step drops a token by it, and none decodes. */
const ROOMY = 1000;

interface Shape {
  readonly hidden: number;
  readonly intermediate: number;
  readonly experts: number;
  readonly topK: number;
  readonly bias: boolean;
  readonly activation?: Activation;
  readonly shared?: boolean;
  /** Bytes of the GPU's L2; absent: it holds all weights. */
  readonly l2Bytes?: number;
}

function specOf({ hidden, intermediate, experts, topK, bias, ...more }: Shape): LayerSpec {
  const dtype = "bfloat16";
  const base = plainSpec(hidden, 1, experts, topK);
  const { activation = { kind: "silu" }, shared = false } = more;
  return {
    ...base,
    router: { ...base.router, capacityFactor: ROOMY },
    experts: { ...gatedExperts(hidden, intermediate, { dtype, bias }), activation },
    ...(shared && { shared: { experts: gatedExperts(hidden, 30, { dtype }), gate: true } }),
  };
}

describe("packed weights on an emulated GPU", () => {
  const shapes: readonly Shape[] = [
    { hidden: 64, intermediate: 64, experts: 4, topK: 2, bias: false },
    { hidden: 64, intermediate: 200, experts: 4, topK: 1, bias: true, l2Bytes: 1024 },
    { hidden: 136, intermediate: 100, experts: 6, topK: 2, bias: true, shared: true },
    { hidden: 132, intermediate: 193, experts: 5, topK: 2, bias: true, l2Bytes: 200_000 },
    { hidden: 40, intermediate: 200, experts: 16, topK: 3, bias: false, activation: CLAMPED },
    // Most experts are empty at first.
    { hidden: 136, intermediate: 72, experts: 12, topK: 1, bias: true },
  ];
  const variants: readonly (readonly [string, Omit<LayerOptions, "device">])[] = [
    ["eager", { graphs: { warmup: NEVER } }],
    ["replayed on three streams", { streams: 3, graphs: { warmup: 0 } }],
  ];
  for (const shape of shapes) {
    it(`have the bits of plain ones: ${JSON.stringify(shape)}`, async () => {
      const random = randomFor(`packed ${shape.hidden}`);
      const { spec, tensors } = randomLayer(random, specOf(shape));
      const batches = [1, 3, 17, 64, 64, 300].map((tokens) =>
        batch(normal(random, tokens * shape.hidden), shape.hidden),
      );
      const { l2Bytes } = shape;
      const facts = l2Bytes === undefined ? {} : { l2Bytes };
      const outputs = (options: Omit<LayerOptions, "device">) =>
        withEmulated(
          async (device, driver) => {
            await using layer = new MoELayer(spec, tensors, { device, ...options });
            const all: Float32Array[] = [];
            for (const hidden of batches) all.push((await layer.forward(hidden)).output.data);
            const packed = [...driver.ran.keys()].filter((name) => /packed/.test(name));
            assert.equal(packed.length > 0, options.packWeights === true);
            return all;
          },
          { facts },
        );
      const expected = await outputs({ graphs: { warmup: NEVER } });
      for (const [name, options] of variants) {
        const got = await outputs({ ...options, packWeights: true });
        for (const [i, output] of got.entries()) {
          assert.deepEqual(output, expected[i], `${name}, batch ${i}`);
        }
      }
    });
  }

  it("filled with noise have the bits of plain ones", async () => {
    const sizes = { hiddenSize: 100, intermediateSize: 70, experts: 5, topK: 2 };
    const preset = { ...presetOf("small"), ...sizes };
    const hidden = batch(normal(randomFor("packed noise"), 9 * 100), 100);
    const outputs = (packWeights: boolean) =>
      withEmulated(async (device) => {
        const weights = new FilledLayer(preset, "bfloat16", 3);
        const spec = layerSpecOf(preset, "bfloat16");
        await using layer = new MoELayer(spec, weights, { device, packWeights });
        return (await layer.forward(hidden)).output.data;
      });
    assert.deepEqual(await outputs(true), await outputs(false));
  });

  it("steps of one to four tokens decode, with the outputs of plain ones", async () => {
    const random = randomFor("packed decode");
    const base = plainSpec(100, 1, 4, 2);
    const experts = gatedExperts(100, 70, { dtype: "bfloat16", bias: true });
    const { spec, tensors } = randomLayer(random, { ...base, experts });
    const batches = [1, 2, 3, 4, 1].map((tokens) => batch(normal(random, tokens * 100), 100));
    const outputs = (packWeights: boolean) =>
      withEmulated(async (device, driver) => {
        await using layer = new MoELayer(spec, tensors, { device, packWeights });
        const all: Float32Array[] = [];
        for (const hidden of batches) all.push((await layer.forward(hidden)).output.data);
        const names = [...driver.ran.keys()].filter((name) => /^(decode|project)/.test(name));
        assert.ok(names.length > 0);
        assert.ok(names.every((name) => name.startsWith("decode")));
        assert.ok(names.every((name) => name.startsWith("decode_packed") === packWeights));
        return all;
      });
    // Emulated, both sum in the same order.
    assert.deepEqual(await outputs(true), await outputs(false));
  });

  it("what cannot be packed is refused by name, and nothing stays allocated", () =>
    withEmulated(async (device) => {
      const spec = gatedExperts(128, 64, { dtype: "bfloat16" });
      const random = randomFor("unpackable");
      const tensor = (rows: number, columns: number, spread = 0) =>
        tensorOf(
          normal(random, 2 * rows * columns).map((x, i) => (i % 3 === 0 ? x * 2 ** -spread : x)),
          [2, rows, columns],
          "bfloat16",
        );
      const good = { gate: tensor(64, 128), up: tensor(64, 128), down: tensor(128, 64) };
      const before = device.memory();
      const bad = { ...good, down: tensor(128, 64, 60) };
      await assert.rejects(
        Experts.fromTensors(spec, 2, bad, { device, packWeights: true }),
        (error) => {
          assert.ok(error instanceof UnpackableWeightsError);
          // 128 rows in groups of 16, and one panel.
          assert.deepEqual([error.matrix, error.failures], [0, 8]);
          assert.match(error.message, /Matrix 0 of "expert weights, product 2"/);
          assert.match(
            error.message,
            /in 8 places: .* 16 rows x 64 columns .*Leave packWeights out/,
          );
          return true;
        },
      );
      assert.equal(device.memory().usedBytes - before.usedBytes <= 32 * 2 ** 20, true);
      using experts = await Experts.fromTensors(spec, 2, good, { device, packWeights: true });
      assert.ok(experts.packed);
      assert.ok(experts.products.every((product) => product instanceof PackedProjection));
    }));

  it("a matrix that did not fit can be written again, and parts in any order at once", () =>
    withEmulated(async (device) => {
      const random = randomFor("packed again");
      const shape = { count: 3, inputs: 70, outputs: 30, gated: true, bias: false } as const;
      const types = { dtype: "bfloat16", input: "bfloat16", output: "rows", packed: true } as const;
      using projection = device.createProjection({ ...shape, ...types }, "again");
      const view = (values: Float32Array) =>
        matrixView(toTensor(tensorOf(values, [30, 70], "bfloat16"), "matrix"));
      const good = () => view(normal(random, 30 * 70));
      const { allocations } = device.memory();
      await projection.write(1, "gate", view(normal(random, 30 * 70).fill(Number.NaN, 0, 1)));
      await assert.rejects(projection.write(1, "value", good()), /Matrix 1 of "again"/);
      // The part that was written last, again: with what is there of the other one it does not fit either.
      await assert.rejects(projection.write(1, "value", good()), /Matrix 1 of "again"/);
      await Promise.all([
        projection.write(1, "value", good()),
        projection.write(2, "gate", good()),
        projection.write(1, "gate", good()),
        projection.write(2, "value", good()),
      ]);
      // What is kept for staging may have come.
      assert.ok(device.memory().allocations <= allocations + 2);
    }));
});
