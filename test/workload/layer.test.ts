/** Presets, made-up weights, and hidden states that steer the real gate. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { validateLayerSpec } from "../../src/data/validate.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import { referenceLayer } from "../../src/reference/index.ts";
import { float16ToNumber } from "../../src/tensor.ts";
import { makeHiddenStates } from "../../src/workload/hidden-states.ts";
import { ExpertPopularity } from "../../src/workload/popularity.ts";
import { type LayerShape, layerSpecOf, PRESETS, presetOf } from "../../src/workload/presets.ts";
import { Random } from "../../src/workload/random.ts";
import { RandomLayer } from "../../src/workload/random-layer.ts";

const SHAPE: LayerShape = {
  hiddenSize: 64,
  intermediateSize: 24,
  experts: 12,
  topK: 3,
  renormalize: true,
};

test("every preset is a valid layer", () => {
  for (const preset of PRESETS) validateLayerSpec(layerSpecOf(preset, preset.dtype));
});

test("presets have the published shapes", () => {
  const sizes = (name: string) => {
    const { hiddenSize, intermediateSize, experts, topK, renormalize } = presetOf(name);
    return [hiddenSize, intermediateSize, experts, topK, renormalize];
  };
  assert.deepEqual(sizes("small"), [512, 1024, 8, 2, true]);
  assert.deepEqual(sizes("medium"), [1024, 2048, 16, 2, true]);
  assert.deepEqual(sizes("large"), [2048, 4096, 32, 4, true]);
  assert.deepEqual(sizes("mixtral-8x7b"), [4096, 14336, 8, 2, true]);
  assert.deepEqual(sizes("qwen3-30b-a3b"), [2048, 768, 128, 8, true]);
  assert.deepEqual(sizes("olmoe-1b-7b"), [2048, 1024, 64, 8, false]);
});

test("an unknown preset is refused with the names there are", () => {
  assert.throws(
    () => presetOf("tiny"),
    (error) =>
      error instanceof InvalidArgumentError &&
      error.message.includes('"tiny"') &&
      error.message.includes("qwen3-30b-a3b"),
  );
});

for (const dtype of ["float32", "bfloat16", "float16"] as const) {
  test(`weights in ${dtype}: shaped as the spec asks, the same for the same seed, sensibly sized`, async () => {
    const layer = new RandomLayer(SHAPE, dtype, 5);
    const again = new RandomLayer(SHAPE, dtype, 5);
    const other = new RandomLayer(SHAPE, dtype, 6);
    const [first, second] = await layer.expert(2);
    assert.deepEqual([first?.gate?.rows, first?.gate?.columns], [24, 64]);
    assert.deepEqual([first?.value.rows, first?.value.columns], [24, 64]);
    assert.deepEqual([second?.value.rows, second?.value.columns], [64, 24]);
    const values = (products: Awaited<ReturnType<RandomLayer["expert"]>>) =>
      products.flatMap(({ value, gate }) =>
        [gate, value].flatMap((view) =>
          view === undefined
            ? []
            : [...view.data.subarray(view.offset, view.offset + view.rows * view.columns)],
        ),
      );
    assert.deepEqual(values(await layer.expert(2)), values(await again.expert(2)));
    assert.notDeepEqual(values(await layer.expert(2)), values(await other.expert(2)));
    assert.notDeepEqual(values(await layer.expert(2)), values(await layer.expert(3)));

    const decode = (bits: number) => {
      if (dtype === "float32") return bits;
      if (dtype === "float16") return float16ToNumber(bits);
      return new Float32Array(new Uint32Array([bits << 16]).buffer)[0] as number;
    };
    const bound = Math.sqrt(3 / SHAPE.hiddenSize);
    const decoded = values(await layer.expert(2)).map(decode);
    assert.ok(decoded.every((value) => Math.abs(value) <= bound));
    assert.ok(decoded.some((value) => value > bound / 2) || dtype === "float16");
    assert.ok(
      decoded.some((value) => value > bound / 8) && decoded.some((value) => value < -bound / 8),
    );
  });
}

test("int32 weights are refused", () => {
  assert.throws(() => new RandomLayer(SHAPE, "int32", 1), InvalidArgumentError);
});

test("gate rows have length 1", async () => {
  const layer = new RandomLayer(SHAPE, "float32", 5);
  const gate = await layer.gate();
  assert.deepEqual([gate.rows, gate.columns], [12, 64]);
  for (let row = 0; row < 12; row++) {
    const values = layer.gateRows.subarray(row * 64, (row + 1) * 64);
    const length = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0));
    assert.ok(Math.abs(length - 1) < 1e-5);
  }
});

test("the real gate sends hidden states where the popularity wants them", async () => {
  const seed = 13;
  const shape = { ...SHAPE, hiddenSize: 256, experts: 32, topK: 2, intermediateSize: 4 };
  const layer = new RandomLayer(shape, "float32", seed);
  const spec = layerSpecOf(shape, "float32");
  const popularity = ExpertPopularity.draw(
    { kind: "zipf", exponent: 1.1 },
    32,
    new Random(seed).fork("popularity"),
  );
  const share = async (wanted: ExpertPopularity) => {
    const hidden = makeHiddenStates(layer, wanted, 512, new Random(seed).fork("tokens"));
    assert.deepEqual(hidden.shape, [512, 256]);
    const { ids } = await referenceLayer(spec, layer, hidden.data);
    const hottest = new Set(wanted.ranking.slice(0, 4));
    return [...ids].filter((expert) => hottest.has(expert)).length / ids.length;
  };
  // The four most popular of 32 by Zipf 1.1 have 61 % of the first choices and somewhat less of both.
  const before = await share(popularity);
  const after = await share(popularity.moved());
  for (const value of [before, after]) {
    assert.ok(value > 0.4 && value < 0.65, `seed ${seed}: the hot four have ${value}`);
  }
});
