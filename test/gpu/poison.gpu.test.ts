/**
 * A step must not read what it did not write: every buffer between hidden states and
 * output is filled with NaN and nonsense before every run, the output too, be it the step's or a
 * tensor of the caller's, and the bits stay the same. The gaps between rows are zero by agreement and stay so. What the
 * device has for itself, work lists and who chose whom, is left alone.
 */

import assert from "node:assert/strict";
import {
  BareStep,
  type LoadedLayer,
  loadedLayer,
  oneLane,
  type StepLayout,
} from "../../src/cli/bench/bare-step.ts";
import { hostLayerWeights } from "../../src/data/host-weights.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import { outputWidth } from "../../src/data/step-buffers.ts";
import type { LayerWeights } from "../../src/data/weights.ts";
import type { DeviceBuffer, Packing } from "../../src/execution/device.ts";
import { LayerModules } from "../../src/layer/layer-modules.ts";
import { type DType, toFloat32 } from "../../src/tensor.ts";
import { layerSpecOf } from "../../src/workload/presets.ts";
import type { Random } from "../../src/workload/random.ts";
import { FilledLayer } from "../../src/workload/random-layer.ts";
import { gatedExperts, plainSpec, randomLayer, WEIGHT_DTYPES } from "../support/layers.ts";
import { normal, randomFor } from "../support/seed.ts";
import { gpuTest } from "./gpu.ts";
import { StepMemory } from "./step-memory.ts";

const HIDDEN = 100;
/** Fewer than there is room for, but for the first, on both sides of the handful with kernels of their own. */
const TOKENS = [1, 3, 37, 300];
/** More than the L2 holds, packed or not: weights that are there both ways are read packed, of few tokens. */
const LARGE = { hiddenSize: 1024, intermediateSize: 2048, experts: 8, topK: 2, renormalize: true };
/** Each larger than the L2, and 300 tokens give some of them few rows and some many: where memory is fast those are kept apart. */
const LARGER = { ...LARGE, hiddenSize: 4096, intermediateSize: 2816, experts: 16 };

interface Case {
  readonly spec: LayerSpec;
  readonly weights: LayerWeights;
  readonly packWeights?: Packing;
}

const base = plainSpec(HIDDEN, 1, 12, 3);
/** A case per name, made of its own random numbers. */
const CASES: Readonly<Record<string, (random: Random) => Case>> = {
  ...Object.fromEntries(
    WEIGHT_DTYPES.map((dtype) => [
      `a shared expert, ${dtype}`,
      (random: Random) =>
        drawn(random, {
          ...base,
          experts: gatedExperts(HIDDEN, 50, { dtype, bias: true }),
          shared: { experts: gatedExperts(HIDDEN, 30, { dtype }), gate: true },
        }),
    ]),
  ),
  "decode with a residual": (random) =>
    drawn(random, { ...narrow(base), aggregation: { ...base.aggregation, residual: true } }),
  concatenation: (random) =>
    drawn(random, {
      ...narrow(base),
      aggregation: { mode: "concat", weightsApplyTo: "input", residual: false },
    }),
  "a capacity limit": (random) =>
    drawn(random, { ...narrow(base), router: { ...base.router, capacityFactor: 0.8 } }),
  "three products": (random) =>
    drawn(random, {
      ...narrow(base),
      experts: {
        ...gatedExperts(HIDDEN, 50, { dtype: "bfloat16", bias: true }),
        form: "mlp",
        depth: 3,
        activation: { kind: "gelu" },
      },
    }),
  "packed weights": () => filled(true),
  "packed weights beside plain ones": () => filled("beside"),
  "packed weights of experts with few rows": () => filled("beside", LARGER),
};

function narrow(spec: LayerSpec): LayerSpec {
  return { ...spec, experts: gatedExperts(HIDDEN, 50, { dtype: "bfloat16" }) };
}

function drawn(random: Random, spec: LayerSpec): Case {
  return { spec, weights: hostLayerWeights(spec, randomLayer(random, spec).tensors) };
}

function filled(packWeights: Packing, sizes = LARGE): Case {
  const spec = layerSpecOf(sizes, "bfloat16");
  return { spec, weights: new FilledLayer(sizes, "bfloat16", 3), packWeights };
}

/** Experts dealt out to lanes, each with a part of the device. */
function threeLanes({ device, spec }: LoadedLayer): StepLayout {
  const part = Math.floor(device.properties.computeUnits / 3);
  return {
    sliceOfLane: ["A", "B", "C"],
    priorityOfLane: [3, 2, 1],
    laneOf: Int32Array.from({ length: spec.router.experts }, (_, expert) => expert % 3),
    budgets: { realisation: "shared", units: [part, part, part] },
  };
}

for (const [name, made] of Object.entries(CASES)) {
  gpuTest(`nothing is read before it is written: ${name}`, async (device, t) => {
    const random = randomFor(`gpu poison ${name}`);
    const { spec, weights, packWeights = false } = made(random);
    const { packsWeights } = device.properties;
    if (packWeights && !packsWeights.available) return t.skip(packsWeights.reason);
    using modules = await LayerModules.load(device, spec, weights, packWeights);
    const memory = new StepMemory(device, spec);
    const layer = loadedLayer(memory.device, spec, modules);
    for (const tokens of TOKENS) {
      const hidden = normal(random, tokens * spec.hiddenSize);
      for (const layout of [oneLane(layer), threeLanes(layer)]) {
        for (const outputType of new Set<DType>(["float32", layer.rowType])) {
          const what = `${tokens} tokens, ${layout.sliceOfLane.length} lanes, ${outputType}`;
          await checkStep(memory, layer, layout, hidden, outputType, what);
        }
      }
    }
  });
}

/** Eager, replayed, and replayed with an output of the caller's. */
async function checkStep(
  memory: StepMemory,
  layer: LoadedLayer,
  layout: StepLayout,
  hidden: Float32Array,
  outputType: DType,
  what: string,
): Promise<void> {
  const { device, spec } = layer;
  const { hiddenSize, router, aggregation } = spec;
  const tokens = hidden.length / hiddenSize;
  using step = new BareStep(layer, layout, { tokens, outputType });
  const { buffers } = step;
  const { byteLength } = buffers.output;
  // The caller's, with the label that a layer gives it.
  using output = device.allocate(byteLength, "layer output");
  await step.write({ dtype: "float32", shape: [tokens, hiddenSize], data: hidden });
  const values = tokens * outputWidth(aggregation.mode, hiddenSize, router.topK);
  const read = async (from: DeviceBuffer) => {
    const data = outputType === "float32" ? new Float32Array(values) : new Uint16Array(values);
    await device.read(from, data);
    return data;
  };
  await step.run();
  const clean = await read(buffers.output);
  const counts = await step.counts();
  const numbers = toFloat32({ dtype: outputType, shape: [values], data: clean });
  assert.ok(numbers.every(Number.isFinite), what);
  for (const run of [() => step.run(), () => step.replay(), () => step.replay()]) {
    memory.poison();
    await run();
    assert.deepEqual(await read(buffers.output), clean, what);
    assert.deepEqual(await step.counts(), counts, what);
  }
  memory.poison();
  await step.graph.launch([{ buffer: buffers.output, by: output, byteLength, access: "write" }]);
  assert.deepEqual(await read(output), clean, `${what}, to the caller's tensor`);
  assert.deepEqual(await step.counts(), counts, what);
}
