/** What the size of a step's weights is taken for. */

import assert from "node:assert/strict";
import { it } from "node:test";
import type { ExpertsSpec } from "../../src/data/spec.ts";
import { StepBuffers, weightBytesOf } from "../../src/data/step-buffers.ts";
import { openCpu } from "../support/device.ts";
import { gatedExperts, plainSpec } from "../support/layers.ts";

it("bytes of an expert's weights, by form and depth", () => {
  const gated = gatedExperts(10, 7, { dtype: "bfloat16" });
  assert.equal(weightBytesOf(gated), 3 * 70 * 2);
  assert.equal(weightBytesOf(gated, true), 3 * 70 * 1.5);
  const mlp = (depth?: 2 | 3): ExpertsSpec => ({
    ...gated,
    form: "mlp",
    dtype: "float32",
    ...(depth !== undefined && { depth }),
  });
  // [7, 10], perhaps [7, 7], [10, 7].
  assert.equal(weightBytesOf(mlp()), 2 * 70 * 4);
  assert.equal(weightBytesOf(mlp(2)), 2 * 70 * 4);
  assert.equal(weightBytesOf(mlp(3)), (2 * 70 + 49) * 4);
});

it("buckets say how many bytes the weights of all experts are", async () => {
  await using device = await openCpu(1);
  const experts = gatedExperts(10, 7, { dtype: "float32" });
  using buffers = StepBuffers.ofLayer(device, { ...plainSpec(10, 7, 5, 2), experts }, 3, false);
  assert.equal(buffers.buckets.weightBytes, 5 * 3 * 70 * 4);
  using packed = StepBuffers.ofLayer(device, { ...plainSpec(10, 7, 5, 2), experts }, 3, true);
  assert.equal(packed.buckets.weightBytes, 5 * 3 * 70 * 1.5);
});
