/** A layer on a device that only writes down what it is told, for tests of what is enqueued. */

import assert from "node:assert/strict";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { DeviceProperties } from "../../src/execution/device.ts";
import type { Operator } from "../../src/execution/operators.ts";
import type { LayerOptions } from "../../src/layer/forward.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { plainSpec, randomLayer } from "../support/layers.ts";
import { RecordingDevice } from "../support/recording-device.ts";
import { randomFor } from "../support/seed.ts";

export const HIDDEN = 100;
export const TOP_K = 2;
export const EXPERTS = 8;

export const base: LayerSpec = plainSpec(HIDDEN, 70, EXPERTS, TOP_K);
export const bfloat16: LayerSpec = { ...base, experts: { ...base.experts, dtype: "bfloat16" } };

export function layerOn(
  properties: Partial<DeviceProperties> = {},
  spec: LayerSpec = bfloat16,
  options: LayerOptions = {},
) {
  const device = new RecordingDevice(properties);
  const { tensors } = randomLayer(randomFor("recorded steps"), spec);
  const layer = new MoELayer(spec, tensors, { device, ...options });
  const forward = (tokens: number, more: { logits?: boolean } = {}) =>
    layer.forward(
      { data: new Float32Array(tokens * HIDDEN), shape: [tokens, HIDDEN] },
      more.logits
        ? { logits: { data: new Float32Array(tokens * EXPERTS), shape: [tokens, EXPERTS] } }
        : {},
    );
  return { device, layer, forward };
}

export const kinds = (operators: readonly Operator[]) => operators.map(({ kind }) => kind);

export function only<K extends Operator["kind"]>(operators: readonly Operator[], kind: K) {
  const found = operators.filter((operator) => operator.kind === kind);
  assert.equal(found.length, 1, `${kind} in ${kinds(operators)}`);
  return found[0] as Extract<Operator, { kind: K }>;
}
