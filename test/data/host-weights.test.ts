/**
 * Host tensors as a weight source: every layout shows the same matrices, and what
 * is missing or misshapen is named.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type ExpertTensors,
  hostExpertWeights,
  hostLayerWeights,
  type LayerTensors,
} from "../../src/data/host-weights.ts";
import type { ExpertsSpec, LayerSpec } from "../../src/data/spec.ts";
import type { ProductWeights } from "../../src/data/weights.ts";
import { InvalidArgumentError, ShapeError } from "../../src/errors.ts";
import { decodeMatrix } from "../../src/reference/index.ts";
import type { MatrixView, TensorLike } from "../../src/tensor.ts";
import {
  gatedExperts,
  LAYOUTS,
  layOut,
  PLAIN_LAYOUT,
  plainSpec,
  productsOf,
  randomExperts,
  randomLayer,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { between, randomFor } from "../support/seed.ts";

/** Products as plain numbers, whatever their strides. */
const plainly = (products: readonly ProductWeights[]) =>
  products.map(({ value, gate, valueBias, gateBias }) => ({
    shape: [value.rows, value.columns],
    value: decodeMatrix(value),
    gate: gate && decodeMatrix(gate),
    valueBias: valueBias && Array.from(valueBias),
    gateBias: gateBias && Array.from(gateBias),
  }));

test("every layout of every form gives the same products", () => {
  const random = randomFor("host weights");
  for (const dtype of WEIGHT_DTYPES) {
    for (const bias of [false, true]) {
      for (const form of ["gated", "mlp-2", "mlp-3"] as const) {
        const sizes = gatedExperts(between(random, 1, 7), between(random, 1, 7), { dtype, bias });
        const depth = form === "mlp-2" ? 2 : 3;
        const spec: ExpertsSpec = form === "gated" ? sizes : { ...sizes, form: "mlp", depth };
        const count = between(random, 1, 4);
        const set = randomExperts(random, spec, count);
        for (const layout of LAYOUTS) {
          const experts = hostExpertWeights(spec, count, layOut(spec, set, layout), "experts");
          for (let e = 0; e < count; e++) {
            assert.deepEqual(
              plainly(experts(e)),
              plainly(productsOf(set, e)),
              JSON.stringify({ spec, layout }),
            );
          }
        }
      }
    }
  }
});

test("a lone expert's tensors need no leading axis", () => {
  const random = randomFor("host weights squeeze");
  const spec = gatedExperts(3, 2, { bias: true });
  const set = randomExperts(random, spec, 1);
  const packed = layOut(spec, set, { ...PLAIN_LAYOUT, packed: true });
  const squeezed = Object.fromEntries(
    Object.entries(packed).map(([name, tensor]) => [
      name,
      { ...(tensor as TensorLike), shape: (tensor as TensorLike).shape.slice(1) },
    ]),
  );
  const experts = hostExpertWeights(spec, 1, squeezed, "shared");
  assert.deepEqual(plainly(experts(0)), plainly(productsOf(set, 0)));
});

const full: LayerSpec = {
  ...plainSpec(4, 3, 2, 1, { shared: { experts: gatedExperts(4, 5), gate: true } }),
  experts: gatedExperts(4, 3, { bias: true }),
};
const fullSpec: LayerSpec = {
  ...full,
  router: { ...full.router, bias: true, selectionBias: true },
};

const decoded = async (matrix?: Promise<MatrixView>) => decodeMatrix((await matrix) as MatrixView);

test("a layer's source gives each of its tensors", async () => {
  const { tensors, source } = randomLayer(randomFor("host weights layer"), fullSpec);
  const weights = hostLayerWeights(fullSpec, tensors);
  assert.deepEqual(await decoded(weights.gate?.()), await decoded(source.gate?.()));
  assert.deepEqual(await weights.gateBias?.(), await source.gateBias?.());
  assert.deepEqual(await weights.selectionBias?.(), await source.selectionBias?.());
  for (const e of [0, 1]) {
    assert.deepEqual(plainly(await weights.expert(e)), plainly(await source.expert(e)));
  }
  const [shared, expected] = [await weights.shared?.(), await source.shared?.()];
  assert.deepEqual(plainly(shared ?? []), plainly(expected ?? []));
  const [gate, expectedGate] = [await weights.sharedGate?.(), await source.sharedGate?.()];
  assert.ok(gate && expectedGate);
  assert.deepEqual(decodeMatrix(gate), decodeMatrix(expectedGate));
});

const zeros = (...shape: number[]): TensorLike => ({
  data: new Float32Array(shape.reduce((a, b) => a * b, 1)),
  shape,
});

/** Tensors for `fullSpec`. */
const good: LayerTensors = {
  gate: zeros(2, 4),
  gateBias: zeros(2),
  selectionBias: zeros(2),
  experts: {
    gate: zeros(2, 3, 4),
    up: [zeros(3, 4), zeros(3, 4)],
    down: zeros(2, 4, 3),
    gateBias: zeros(2, 3),
    upBias: [zeros(3), zeros(3)],
    downBias: zeros(2, 4),
  },
  shared: { gateUp: zeros(10, 4), down: zeros(4, 5) },
  sharedGate: zeros(1, 4),
};

function refuses(
  tensors: LayerTensors,
  message: RegExp,
  kind: new (message: string) => Error = ShapeError,
) {
  assert.throws(
    () => hostLayerWeights(fullSpec, tensors),
    (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.match(error.message, message);
      return true;
    },
  );
}

const without = <T extends object>(object: T, key: keyof T): T => {
  const { [key]: _, ...rest } = object;
  return rest as T;
};

test("what is missing is named", () => {
  hostLayerWeights(fullSpec, good);
  for (const name of ["gateBias", "selectionBias", "shared", "sharedGate"] as const) {
    refuses(without(good, name), new RegExp(`^${name} is missing`));
  }
  assert.equal(
    hostLayerWeights(fullSpec, without(without(good, "gate"), "gateBias")).gate,
    undefined,
  );
  refuses(without(good, "gate"), /^gateBias is given but .* gate is not given/);
  refuses(without(good, "experts"), /^experts is missing/);
  for (const name of ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const) {
    refuses(
      { ...good, experts: without(good.experts, name) },
      new RegExp(`^experts\\.${name} is missing`),
    );
  }
  refuses({ ...good, shared: { gateUp: zeros(10, 4) } }, /^shared\.down is missing/);
  refuses({ ...good, shared: { down: zeros(4, 5) } }, /^shared\.gate is missing/);
  refuses(
    { ...good, experts: { gateUp: zeros(2, 6, 4), down: zeros(2, 4, 3), downBias: zeros(2, 4) } },
    /^experts\.gateUpBias is missing/,
  );
});

test("what has another shape or type is named, with both shapes", () => {
  const experts = (more: ExpertTensors) => ({ ...good, experts: { ...good.experts, ...more } });
  refuses({ ...good, gate: zeros(4, 2) }, /^gate has shape \[4, 2\].*\[2, 4\]/);
  refuses({ ...good, gateBias: zeros(3) }, /^gateBias has shape \[3\].*\[2\]/);
  refuses({ ...good, selectionBias: zeros(1, 2) }, /^selectionBias has shape \[1, 2\].*\[2\]/);
  refuses({ ...good, sharedGate: zeros(4) }, /^sharedGate has shape \[4\].*\[1, 4\]/);
  refuses(experts({ gate: zeros(3, 3, 4) }), /^experts\.gate has shape \[3, 3, 4\].*\[2, 3, 4\]/);
  refuses(experts({ gate: zeros(3, 4) }), /^experts\.gate has shape \[3, 4\].*\[2, 3, 4\]/);
  refuses(experts({ up: [zeros(3, 4)] }), /^experts\.up holds 1 tensors.*2/);
  const sparse = [zeros(3, 4)];
  sparse.length = 2;
  refuses(experts({ up: sparse }), /^experts\.up\[1\] is undefined/, InvalidArgumentError);
  refuses(
    experts({ up: [zeros(3, 4), zeros(4, 3)] }),
    /^experts\.up\[1\] has shape \[4, 3\].*\[3, 4\]/,
  );
  refuses(experts({ down: zeros(2, 3, 4) }), /^experts\.down has shape \[2, 3, 4\].*\[2, 4, 3\]/);
  refuses(experts({ transposed: true }), /^experts\.down has shape \[2, 4, 3\].*\[2, 3, 4\]/);
  refuses(experts({ downBias: zeros(2, 3) }), /^experts\.downBias has shape \[2, 3\].*\[2, 4\]/);
  refuses(
    { ...good, gate: { data: new Int32Array(8), shape: [2, 4] } },
    /^gate is int32; .*float32, bfloat16, float16/,
  );
  const argument = InvalidArgumentError as never;
  refuses(
    { ...good, gate: { data: new Uint16Array(8), shape: [2, 4] } },
    /16-bit.*dtype/,
    argument,
  );
  refuses({ ...good, gate: { data: new Float32Array(7), shape: [2, 4] } }, /8 elements.*has 7/);
});

test("a layout that there is not is refused, not taken for another", () => {
  // Square matrices, so that no shape gives a wrong layout away.
  const spec = gatedExperts(3, 3);
  const joint: ExpertTensors = { gateUp: zeros(2, 6, 3), down: zeros(2, 3, 3) };
  const refusesExperts = (more: object, message: RegExp) =>
    assert.throws(
      () => hostExpertWeights(spec, 2, { ...joint, ...more }, "experts"),
      (error) => error instanceof InvalidArgumentError && message.test(error.message),
    );
  for (const [gateUpLayout, is] of [
    ["interleave", /is "interleave"; .*halves, interleaved/],
    ["Interleaved", /is "Interleaved"/],
    [7, /is 7/],
    [null, /is null/],
  ] as const) {
    refusesExperts({ gateUpLayout }, new RegExp(`^experts\\.gateUpLayout ${is.source}`));
  }
  for (const [transposed, is] of [
    ["false", /is "false"; .*true, false/],
    ["no", /is "no"/],
    [0, /is 0/],
  ] as const) {
    refusesExperts({ transposed }, new RegExp(`^experts\\.transposed ${is.source}`));
  }
});

test("a plain MLP's layers are named by index", () => {
  const spec: ExpertsSpec = { ...gatedExperts(4, 3, { bias: true }), form: "mlp", depth: 3 };
  const tensors: ExpertTensors = {
    layers: [zeros(2, 3, 4), zeros(2, 3, 3), zeros(2, 4, 3)],
    layerBiases: [zeros(2, 3), zeros(2, 3), zeros(2, 4)],
  };
  hostExpertWeights(spec, 2, tensors, "experts");
  const refusesMlp = (more: ExpertTensors, message: RegExp) =>
    assert.throws(
      () => hostExpertWeights(spec, 2, { ...tensors, ...more }, "experts"),
      (error) => error instanceof ShapeError && message.test(error.message),
    );
  refusesMlp({ layers: [zeros(2, 3, 4), zeros(2, 3, 3)] }, /^experts\.layers\[2\] is missing/);
  refusesMlp(
    { layers: [zeros(2, 3, 4), zeros(2, 3, 4), zeros(2, 4, 3)] },
    /^experts\.layers\[1\] has shape \[2, 3, 4\].*\[2, 3, 3\]/,
  );
  refusesMlp({ layerBiases: [] }, /^experts\.layerBiases\[0\] is missing/);
});

test("what the spec does not ask for is refused, not ignored", () => {
  const both = { gate: zeros(2, 3, 4), up: zeros(2, 3, 4) };
  const plain: ExpertTensors = { ...both, down: zeros(2, 4, 3) };
  const spec = plainSpec(4, 3, 2, 1);
  const tensors: LayerTensors = { gate: zeros(2, 4), experts: plain };
  const refusesOf = (of: LayerSpec, more: Partial<LayerTensors>, message: RegExp) =>
    assert.throws(
      () => hostLayerWeights(of, { ...tensors, ...more }),
      (error) => {
        assert.ok(error instanceof ShapeError, String(error));
        assert.match(error.message, message);
        return true;
      },
    );
  hostLayerWeights(spec, tensors);
  const vector = zeros(2);
  refusesOf(spec, { gateBias: vector }, /^gateBias is given .*router\.bias/);
  refusesOf(spec, { selectionBias: vector }, /^selectionBias is given .*router\.selectionBias/);
  refusesOf(spec, { shared: plain }, /^shared is given .*no shared/);
  refusesOf(spec, { sharedGate: zeros(1, 4) }, /^sharedGate is given .*shared\.gate/);

  const experts = (more: ExpertTensors, message: RegExp, of: Partial<ExpertsSpec> = {}) =>
    refusesOf({ ...spec, experts: { ...spec.experts, ...of } }, { experts: more }, message);
  for (const name of ["gateBias", "upBias", "downBias"] as const) {
    const message = new RegExp(`^experts\\.${name} is given .*experts\\.bias is false`);
    experts({ ...plain, [name]: zeros(2, 3) }, message);
  }
  const joint = { gateUp: zeros(2, 6, 4), down: zeros(2, 4, 3) };
  experts({ ...joint, gateUpBias: zeros(2, 6) }, /^experts\.gateUpBias .*experts\.bias is false/);
  experts({ ...joint, gate: both.gate }, /^experts\.gate is given .*gateUp is given as well/);
  experts({ ...joint, up: both.up }, /^experts\.up is given .*gateUp is given as well/);
  experts(
    { ...plain, gateUpLayout: "interleaved" },
    /^experts\.gateUpLayout .*gateUp is not given/,
  );
  experts({ ...plain, layers: [] }, /^experts\.layers .*form is "gated", not "mlp"/);
  experts({ ...plain, layerBiases: [] }, /^experts\.layerBiases .*form is "gated"/);

  const mlp: Partial<ExpertsSpec> = { form: "mlp", depth: 2 };
  const layers = [zeros(2, 3, 4), zeros(2, 4, 3)];
  for (const [name, tensor] of Object.entries({ ...plain, ...joint })) {
    const message = new RegExp(`^experts\\.${name} .*form is "mlp", not "gated"`);
    experts({ layers, [name]: tensor }, message, mlp);
  }
  experts({ layers, layerBiases: [vector, vector] }, /^experts\.layerBiases .*bias is false/, mlp);
  experts({ layers: [...layers, ...layers] }, /^experts\.layers .*depth is 2, not 4/, mlp);

  const shared = { experts: gatedExperts(4, 5), gate: false };
  const sharedTensors = { gateUp: zeros(10, 4), down: zeros(4, 5) };
  refusesOf(
    { ...spec, shared },
    { shared: { ...sharedTensors, downBias: zeros(4) } },
    /^shared\.downBias .*shared\.experts\.bias is false/,
  );
  refusesOf(
    { ...spec, shared },
    { shared: sharedTensors, sharedGate: zeros(1, 4) },
    /shared\.gate/,
  );
});
