/** Keys of graphs: different for all steps that need graphs of their own, the same for those that do not. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { SliceManager } from "../../src/control/slices/manager.ts";
import { StepKeys, type StepVariant } from "../../src/layer/step-keys.ts";
import type { DType } from "../../src/tensor.ts";
import { RecordingDevice } from "../support/recording-device.ts";

const FLOATS: readonly DType[] = ["float32", "bfloat16", "float16"];
const LANES = "A@4 B@2";
const STEP: StepVariant = { mostTokens: 8, outputType: "float32" };

const manager = () => new SliceManager({ device: new RecordingDevice().properties });
const counts = new Int32Array(8).fill(1);

test("no two token buckets, output types and logits types share a key", () => {
  const plan = manager().allocate({ counts });
  const keys = new StepKeys("spec", 4);
  const seen = new Map<string, string>();
  for (const mostTokens of [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768]) {
    for (const outputType of FLOATS) {
      for (const logitsType of [undefined, ...FLOATS]) {
        const variant = { mostTokens, outputType, ...(logitsType && { logitsType }) };
        const key = keys.get(plan, LANES, variant);
        assert.equal(seen.get(key), undefined, `${JSON.stringify(variant)}: ${key}`);
        seen.set(key, JSON.stringify(variant));
        assert.equal(keys.get(plan, LANES, variant), key);
      }
    }
  }
});

test("steps up to the most that are decoded have no lanes in their keys", () => {
  const plan = manager().allocate({ counts });
  const keys = new StepKeys("spec", 4);
  const keyOf = (mostTokens: number, lanes: string) =>
    keys.get(plan, lanes, { ...STEP, mostTokens });
  for (const decoded of [1, 4]) assert.equal(keyOf(decoded, LANES), keyOf(decoded, "B@4 A@2"));
  assert.notEqual(keyOf(8, LANES), keyOf(8, "B@4 A@2"));
});

test("cache that is reserved is part of a key, shared compute units are not", () => {
  const slices = manager();
  const keys = new StepKeys("spec", 4);
  const keyNow = () => keys.get(slices.allocate({ counts }), LANES, STEP);
  const before = keyNow();
  slices.resize("A", 50);
  assert.equal(keyNow(), before);
  slices.reserve("B", { cacheBytes: 4096 });
  const reserved = keyNow();
  assert.notEqual(reserved, before);
  slices.reserve("B", { cacheBytes: 8192 });
  assert.notEqual(keyNow(), reserved);
});
