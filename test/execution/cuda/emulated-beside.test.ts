/** Weights kept both ways on an emulated GPU: which of them steps read, that bits are those of plain ones, and what it takes. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Experts } from "../../../src/data/experts.ts";
import { OutOfDeviceMemoryError, UnpackableWeightsError } from "../../../src/errors.ts";
import { BesideProjection } from "../../../src/execution/cuda/beside-projection.ts";
import type { Packing } from "../../../src/execution/device.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { matrixView, toTensor } from "../../../src/tensor.ts";
import { layerSpecOf, presetOf } from "../../../src/workload/presets.ts";
import { FilledLayer } from "../../../src/workload/random-layer.ts";
import { batch, gatedExperts, plainSpec, randomLayer } from "../../support/layers.ts";
import { normal, randomFor } from "../../support/seed.ts";
import { tensorOf } from "../../support/tensors.ts";
import { withEmulated } from "./emulator/harness.ts";

const HIDDEN = 100;
const EXPERTS = 4;
/** So many that the L2 does not hold them all, and a fourth of it holds one's matrix. */
const MORE_EXPERTS = 16;
const TOP_K = 2;
/** Of an L2 that holds no layer here, and memory that is not so fast that small matrices are read as they are. */
const SMALL_L2 = { facts: { l2Bytes: 1024, memoryBytesPerSecond: 3.35e12 } };
/** Of matrices that are not large. */
const MIDDLE_L2 = { facts: { ...SMALL_L2.facts, l2Bytes: 300_000 } };
/** Of memory that is fast, and experts that are larger than the L2. */
const FAST_MEMORY = { facts: { l2Bytes: 1024, memoryBytesPerSecond: 4.8e12 } };
const NEVER = 1_000_000;

function layerParts(name: string, count = EXPERTS) {
  const experts = gatedExperts(HIDDEN, 70, { dtype: "bfloat16", bias: true });
  return randomLayer(randomFor(name), { ...plainSpec(HIDDEN, 1, count, TOP_K), experts });
}

/** Names of the kernels of experts that one step of so many tokens ran. */
async function kernelsOf(tokens: number, options = MIDDLE_L2): Promise<string[]> {
  const { spec, tensors } = layerParts("beside, kernels", MORE_EXPERTS);
  return withEmulated(async (device, driver) => {
    await using layer = new MoELayer(spec, tensors, { device, packWeights: "beside" });
    await layer.ready();
    driver.ran.clear();
    await layer.forward(batch(normal(randomFor("beside"), tokens * HIDDEN), HIDDEN));
    return [...driver.ran.keys()].filter((name) => /project|decode/.test(name));
  }, options);
}

describe("weights kept both ways on an emulated GPU", () => {
  it("are read packed where steps wait for weights, and else as they are", async () => {
    const packed = async (tokens: number, options = MIDDLE_L2) =>
      (await kernelsOf(tokens, options)).map((name) => /packed/.test(name));
    assert.deepEqual(await packed(1), [true, true], "decode");
    assert.deepEqual(await packed(5), [true, true]);
    // Of matrices of so few pieces up to 16 rows an expert.
    assert.deepEqual(await packed((16 * MORE_EXPERTS) / TOP_K), [true, true]);
    assert.deepEqual(await packed((32 * MORE_EXPERTS) / TOP_K), [false, false], "many rows");
    assert.deepEqual(
      await packed(5, { facts: { ...MIDDLE_L2.facts, l2Bytes: 2 ** 30 } }),
      [false, false],
      "cached",
    );
  });

  it("are read as they are in small products where memory is fast", async () => {
    const facts = { ...MIDDLE_L2.facts, memoryBytesPerSecond: 4.8e12 };
    const packed = (await kernelsOf(5, { facts })).map((name) => /packed/.test(name));
    assert.deepEqual(packed, [false, false]);
  });

  it("are read by experts with few rows where memory is fast and batches are large, and as they are by the others", async () => {
    const tilesOf = async (tokens: number) =>
      (await kernelsOf(tokens, FAST_MEMORY)).map((name) => name.replace(/.*_/, ""));
    const [few, some, many] = ["packed32", "packed64", "rows128"];
    // 32 rows an expert, and 64, as 300 tokens have buffers of 512.
    assert.deepEqual(await tilesOf(256), [many, some, few, many, some, few]);
    assert.deepEqual(await tilesOf(300), [many, few, many, few]);
  });

  it("give the bits of plain ones, eager and replayed on three streams", async () => {
    for (const [options, count] of [
      [SMALL_L2, EXPERTS],
      [FAST_MEMORY, MORE_EXPERTS],
    ] as const) {
      const { spec, tensors } = layerParts("beside, bits", count);
      const random = randomFor("beside, batches");
      const batches = [1, 5, 17, 64, 64, 256, 300].map((tokens) =>
        batch(normal(random, tokens * HIDDEN), HIDDEN),
      );
      const outputs = (packWeights: Packing, streams: number, warmup: number) =>
        withEmulated(async (device) => {
          const made = { device, packWeights, streams, graphs: { warmup } };
          await using layer = new MoELayer(spec, tensors, made);
          const all: Float32Array[] = [];
          for (const hidden of batches) all.push((await layer.forward(hidden)).output.data);
          return all;
        }, options);
      // Emulated, decode sums in the same order with either.
      const expected = await outputs(false, 1, NEVER);
      assert.deepEqual(await outputs("beside", 1, NEVER), expected);
      assert.deepEqual(await outputs("beside", 3, 0), expected);
    }
  });

  it("filled with noise are the same both ways", async () => {
    const sizes = { hiddenSize: HIDDEN, intermediateSize: 70, experts: EXPERTS, topK: TOP_K };
    const preset = { ...presetOf("small"), ...sizes };
    const hidden = batch(normal(randomFor("beside noise"), 9 * HIDDEN), HIDDEN);
    const output = (packWeights: Packing) =>
      withEmulated(async (device) => {
        const weights = new FilledLayer(preset, "bfloat16", 3);
        const spec = layerSpecOf(preset, "bfloat16");
        await using layer = new MoELayer(spec, weights, { device, packWeights });
        return (await layer.forward(hidden)).output.data;
      }, SMALL_L2);
    assert.deepEqual(await output("beside"), await output(false));
  });

  it("take the bytes of both, and give them back", () =>
    withEmulated(async (device) => {
      const { spec, tensors } = layerParts("beside, bytes");
      const bytesOf = async (packWeights: Packing) => {
        const experts = tensors.experts as Parameters<typeof Experts.fromTensors>[2];
        using made = await Experts.fromTensors(spec.experts, EXPERTS, experts, {
          device,
          packWeights,
        });
        return made.byteLength;
      };
      const plain = await bytesOf(false);
      const before = device.memory();
      assert.equal(await bytesOf("beside"), plain + (await bytesOf(true)));
      assert.deepEqual(device.memory().allocations, before.allocations);
    }));

  it("a matrix is packed once all its parts are there, and again with every part", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("beside again");
      const shape = { count: 2, inputs: 70, outputs: 30, gated: true, bias: false } as const;
      const types = { dtype: "bfloat16", input: "bfloat16", output: "rows" } as const;
      using projection = device.createProjection({ ...shape, ...types, packed: "beside" }, "again");
      assert.ok(projection instanceof BesideProjection);
      const packed: number[] = [];
      for (const [index, part] of [
        [1, "gate"],
        [1, "value"],
        [0, "value"],
        [1, "gate"],
      ] as const) {
        const values = tensorOf(normal(random, 70 * 30), [30, 70], "bfloat16");
        await projection.write(index, part, matrixView(toTensor(values, "matrix")));
        packed.push(driver.ran.get("pack_weights_bf16") ?? 0);
      }
      assert.deepEqual(packed, [0, 1, 1, 2]);
    }));

  it("after noise a part that is written is packed at once, and what is written anew meanwhile after that", () =>
    withEmulated(async (device, driver) => {
      const random = randomFor("beside, noise and parts");
      const shape = { count: 2, inputs: 70, outputs: 30, gated: true, bias: false } as const;
      const types = { dtype: "bfloat16", input: "bfloat16", output: "rows" } as const;
      using projection = device.createProjection({ ...shape, ...types, packed: "beside" }, "noise");
      assert.ok(projection instanceof BesideProjection);
      assert.equal(projection.current, false);
      const matrix = (first?: number) => {
        const values = normal(random, 70 * 30);
        if (first !== undefined) values[0] = first;
        return matrixView(toTensor(tensorOf(values, [30, 70], "bfloat16"), "matrix"));
      };
      const packed = () => driver.ran.get("pack_weights_bf16") ?? 0;
      await device.fillUniform(projection, 1, 0.1);
      assert.deepEqual([packed(), projection.current], [1, true]);
      await projection.write(0, "gate", matrix());
      assert.deepEqual([packed(), projection.current], [2, true]);
      await assert.rejects(projection.write(0, "gate", matrix(Number.NaN)), /Matrix 0 of "noise"/);
      assert.equal(projection.current, false, "plain ones are read then");
      await Promise.all([
        projection.write(0, "gate", matrix()),
        projection.write(0, "value", matrix()),
      ]);
      assert.equal(projection.current, true);
    }));

  it("what cannot be packed, or has no room, is refused and leaves nothing behind", () =>
    withEmulated(async (device) => {
      const spec = gatedExperts(128, 64, { dtype: "bfloat16" });
      const random = randomFor("beside, unpackable");
      const tensor = (rows: number, columns: number, spread = 0) =>
        tensorOf(
          normal(random, 2 * rows * columns).map((x, i) => (i % 3 === 0 ? x * 2 ** -spread : x)),
          [2, rows, columns],
          "bfloat16",
        );
      const bad = { gate: tensor(64, 128), up: tensor(64, 128), down: tensor(128, 64, 60) };
      const before = device.memory().allocations;
      await assert.rejects(
        Experts.fromTensors(spec, 2, bad, { device, packWeights: "beside" }),
        (error) => error instanceof UnpackableWeightsError && error.matrix === 0,
      );
      const { limitBytes } = device.memory();
      const outputs = Math.floor(limitBytes / 2 / 1.5 / 1024);
      const large = { count: 1, inputs: 1024, outputs, gated: false, bias: false } as const;
      const types = { dtype: "bfloat16", input: "bfloat16", output: "rows" } as const;
      assert.throws(
        () => device.createProjection({ ...large, ...types, packed: "beside" }, "large"),
        OutOfDeviceMemoryError,
      );
      assert.ok(device.memory().allocations <= before + 2, "more than what is kept for staging");
    }));
});
