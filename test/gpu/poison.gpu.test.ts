/**
 * A step must not read what it did not write: everything between hidden states and
 * output is filled with NaN and nonsense before every run, and the bits stay the same.
 * The gaps between rows are zero by agreement and stay so.
 */

import assert from "node:assert/strict";
import { BareStep, loadedLayer, oneLane } from "../../src/cli/bench/bare-step.ts";
import { hostLayerWeights } from "../../src/data/host-weights.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { StepBuffers } from "../../src/data/step-buffers.ts";
import type { Device, DeviceBuffer, RowLayout } from "../../src/execution/device.ts";
import { LayerModules } from "../../src/layer/layer-modules.ts";
import { gatedExperts, plainSpec, randomLayer, WEIGHT_DTYPES } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";

const HIDDEN = 100;
/** A number that is no expert, no row and no slot. */
const NONSENSE = 0x3fffffff;
/** NaN as bfloat16 and as float16. */
const NAN_BITS = 0x7fff;

function fillRows(device: Device, buffer: DeviceBuffer, { dtype, width, pitch }: RowLayout): void {
  const wide = dtype === "float32";
  const elements = buffer.byteLength / (wide ? 4 : 2);
  const data = wide ? new Float32Array(elements) : new Uint16Array(elements);
  for (let row = 0; row < elements; row += pitch) {
    data.fill(wide ? Number.NaN : NAN_BITS, row, row + width);
  }
  device.write(buffer, data);
}

function poison(device: Device, buffers: StepBuffers): void {
  const { hidden, inner, sharedInner } = buffers.layouts;
  const words = (buffer: DeviceBuffer, value: number) =>
    device.write(buffer, new Int32Array(buffer.byteLength / 4).fill(value));
  const numbers = (buffer: DeviceBuffer) =>
    device.write(buffer, new Float32Array(buffer.byteLength / 4).fill(Number.NaN));
  const { offsets, order, inverse } = buffers.buckets;
  for (const buffer of [buffers.ids, buffers.counts, offsets, order, inverse]) {
    words(buffer, NONSENSE);
  }
  for (const buffer of [buffers.logits, buffers.weights, buffers.output]) numbers(buffer);
  for (const buffer of buffers.inner) fillRows(device, buffer, inner);
  fillRows(device, buffers.rows, hidden);
  if (buffers.shared === undefined || sharedInner === undefined) return;
  for (const buffer of buffers.shared.inner) fillRows(device, buffer, sharedInner);
  fillRows(device, buffers.shared.rows, hidden);
  if (buffers.shared.scale !== undefined) numbers(buffers.shared.scale);
}

for (const dtype of WEIGHT_DTYPES) {
  gpuTest(`nothing is read before it is written, ${dtype}`, async (device) => {
    const random = randomFor(`gpu poison ${dtype}`);
    const spec: LayerSpec = {
      ...plainSpec(HIDDEN, 1, 12, 3),
      experts: gatedExperts(HIDDEN, 50, { dtype, bias: true }),
      shared: { experts: gatedExperts(HIDDEN, 30, { dtype }), gate: true },
    };
    const { tensors } = randomLayer(random, spec);
    using modules = await LayerModules.load(device, spec, hostLayerWeights(spec, tensors));
    const layer = loadedLayer(device, spec, modules);
    // Fewer tokens than there is room for, on both sides of the handful with kernels of their own.
    for (const tokens of [1, 3, 37, 300]) {
      using step = new BareStep(layer, oneLane(layer), { tokens });
      await step.write({
        dtype: "float32",
        shape: [tokens, HIDDEN],
        data: normal(random, tokens * HIDDEN),
      });
      await step.run();
      const clean = await step.output();
      const counts = await step.counts();
      assert.ok((clean.data as Float32Array).every(Number.isFinite));
      for (const run of [() => step.run(), () => step.replay(), () => step.replay()]) {
        poison(device, step.buffers);
        await run();
        assert.deepEqual(await step.output(), clean, `${tokens} tokens`);
        assert.deepEqual(await step.counts(), counts);
      }
    }
  });
}
