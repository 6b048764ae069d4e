/**
 * A small run from end to end, for compute-sanitizer: layers of every element type and
 * of several forms, from a handful of tokens to a few hundred, eager, captured and
 * replayed, on one stream and on several, with budgets that change in between. Outputs
 * are compared with the CPU device. Takes a second by itself, minutes under a sanitizer.
 *
 *   node bench/gpu/small.mjs
 */

import { MoELayer, openDevice, Random, roundToBfloat16, uniformBlock } from "./support.mjs";

const BOUND = { float32: 2e-5, float16: 2e-3, bfloat16: 1.2e-2 };
const HIDDEN = 72;
const EXPERTS = 6;

const random = new Random(1);

/** Weights as the element type has them. */
function weightsOf(dtype, shape, bound) {
  const length = shape.reduce((a, b) => a * b);
  return { dtype, shape, data: uniformBlock(dtype, length, bound, random) };
}

function layerOf(dtype, form) {
  const inner = 40;
  const matrix = (outputs, inputs) =>
    weightsOf(dtype, [EXPERTS, outputs, inputs], Math.sqrt(3 / inputs));
  const isMlp = form === "mlp";
  const spec = {
    hiddenSize: HIDDEN,
    router: {
      experts: EXPERTS,
      topK: 2,
      rule: { scoring: "softmax", renormalize: true, scale: 1 },
      ...(form === "capacity" && { capacityFactor: 1 }),
    },
    experts: {
      form: isMlp ? "mlp" : "gated",
      ...(isMlp && { depth: 3 }),
      hiddenSize: HIDDEN,
      intermediateSize: inner,
      activation: { kind: isMlp ? "gelu" : "silu" },
      bias: false,
      dtype,
    },
    aggregation: {
      mode: form === "concat" ? "concat" : "sum",
      weightsApplyTo: form === "concat" ? "input" : "output",
      residual: form === "plain",
    },
  };
  const experts = isMlp
    ? { layers: [matrix(inner, HIDDEN), matrix(inner, inner), matrix(HIDDEN, inner)] }
    : { gate: matrix(inner, HIDDEN), up: matrix(inner, HIDDEN), down: matrix(HIDDEN, inner) };
  return { spec, weights: { gate: weightsOf("float32", [EXPERTS, HIDDEN], 0.4), experts } };
}

function relativeError(got, want) {
  let [difference, norm] = [0, 0];
  want.forEach((value, i) => {
    difference += (got[i] - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(difference / norm);
}

const [gpu, cpu] = [await openDevice({ kind: "cuda" }), await openDevice({ kind: "cpu" })];
for (const dtype of ["bfloat16", "float16", "float32"]) {
  for (const form of ["plain", "mlp", "concat", "capacity"]) {
    const { spec, weights } = layerOf(dtype, form);
    for (const streams of [1, 3]) {
      const layer = new MoELayer(spec, weights, { device: gpu, streams });
      const reference = new MoELayer(spec, weights, { device: cpu });
      for (const tokens of [1, 4, 33, 300]) {
        const data = random.fillNormal(new Float32Array(tokens * HIDDEN)).map(roundToBfloat16);
        const hidden = { data, shape: [tokens, HIDDEN] };
        const want = (await reference.forward(hidden)).output.data;
        for (let step = 0; step < 3; step++) {
          if (step === 2) await changeBudgets(layer);
          const { output } = await layer.forward(hidden);
          const error = relativeError(output.data, want);
          if (!(error < BOUND[dtype])) {
            throw new Error(`${dtype}, ${form}, ${tokens} tokens: off by ${error}`);
          }
        }
      }
      await layer.close();
      await reference.close();
    }
  }
}
await gpu.close();
await cpu.close();
console.log("small run: all outputs agree with the CPU device");

async function changeBudgets(layer) {
  const control = await layer.control;
  const { computeUnits } = gpu.properties;
  control.slices.resize("A", Math.floor(computeUnits / 2));
  control.replan(new Int32Array(EXPERTS).fill(1));
  control.slices.resize("A", null);
}
