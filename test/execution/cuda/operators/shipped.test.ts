/**
 * Every operator against the bundle of the package: each finds a kernel on every
 * architecture, and gives it all the parameters it has.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { parseManifest } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { rowsWork } from "../../../../src/execution/cuda/operators/pack.ts";
import type { PackedProjection } from "../../../../src/execution/cuda/packed-projection.ts";
import type { Activation, ProjectOperator } from "../../../../src/execution/operators.ts";
import { facts, SHIPPED, TrustingModules } from "../bundle/fake-modules.ts";
import { FakeDevice } from "./harness.ts";
import {
  bucketOf,
  combineOf,
  decodeOf,
  projectAll,
  routeOf,
  SIZES,
  type Sizes,
  type StepBuffers,
  stepBuffers,
} from "./operators.ts";

const ROW_TYPES = ["bfloat16", "float16", "float32"] as const;
const ACTIVATIONS: readonly Activation[] = [
  ...(["none", "relu", "silu", "gelu", "gelu-tanh", "sigmoid"] as const).map((kind) => ({ kind })),
  { kind: "swiglu-clamped", alpha: 1.702, limit: 7 },
];

/** Of gated experts whose weights can be packed. */
const PACKED_KINDS: readonly Activation["kind"][] = ["silu", "gelu-tanh", "swiglu-clamped"];

const skip = SHIPPED === undefined ? "kernels/bundle is not built" : false;

describe("the kernels of the package", { skip }, () => {
  for (const [capability, sharedPerBlockOptin] of [
    [[8, 0], 166912],
    [[8, 6], 101376],
    [[9, 0], 232448],
    [[10, 0], 232448],
    [[12, 0], 101376],
    [[12, 1], 101376],
  ] as const) {
    it(`serve every operator on ${capability.join(".")}`, async () => {
      const directory = SHIPPED as URL;
      const text = readFileSync(new URL("manifest.json", directory), "utf8");
      const modules = new TrustingModules(parseManifest(text, "manifest.json"));
      const own = facts({ capability, sharedPerBlockOptin });
      for (const float32 of ["ieee", "tf32"] as const) {
        const device = await FakeDevice.open(own, float32, modules, directory);
        routing(device);
        if (capability[0] === 9) await packed(device);
        for (const input of ROW_TYPES) {
          products(device, input);
          aggregation(device, input);
          for (const output of ROW_TYPES) {
            const layout = { dtype: output, width: 100, pitch: 128 };
            const target = device.buffer(7 * 128 * 4);
            assert.equal(rowsWork(device.context, target, layout, 0n, input, 7).length, 1);
          }
          for (const mostTokens of [1, 4, 5, 512, 513, 20000]) gates(device, input, mostTokens);
        }
      }
    });
  }
});

function routing(device: FakeDevice): void {
  for (const experts of [2, 33, 128, 1000]) {
    const sizes = { ...SIZES, experts, topK: 2 };
    const buffers = stepBuffers(device, sizes);
    const jitter = { scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 0.1 } as const;
    device.encode(routeOf(buffers, {}, sizes));
    device.encode(routeOf(buffers, { rule: jitter }, sizes));
    device.encode(bucketOf(buffers, {}, sizes));
    device.encode(bucketOf(buffers, { routed: false }, sizes));
  }
}

function products(device: FakeDevice, input: (typeof ROW_TYPES)[number]): void {
  const type = { dtype: input, input };
  for (const gated of [true, false]) {
    for (const bias of [true, false]) {
      const projection = device.projection({ ...type, gated, bias });
      device.kernels([projection.fillWork(1, 1)]);
      for (const activation of ACTIVATIONS) {
        if (activation.kind === "swiglu-clamped" && !gated) continue;
        for (const mostTokens of [1, 100, 10_000]) {
          device.kernel(projectAll(device, { projection, activation }, mostTokens));
        }
      }
    }
  }
}

/** On the architecture that has such kernels. */
async function packed(device: FakeDevice): Promise<void> {
  for (const bias of [true, false]) {
    for (const [gated, activations] of [
      [true, ACTIVATIONS.filter(({ kind }) => PACKED_KINDS.includes(kind))],
      [false, [{ kind: "none" } as const]],
    ] as const) {
      for (const activation of activations) {
        for (const mostTokens of [1, 60, 300, 10_000]) {
          const sizes = { experts: 8, topK: 2, mostTokens };
          const buffers = stepBuffers(device, sizes);
          device.encode(routeOf(buffers, {}, sizes));
          device.encode(bucketOf(buffers, { lanes: 1 }, sizes));
          const projection = device.packed({ count: 8, gated, bias });
          const { name } = device.kernel(packedOf(device, buffers, projection, activation, sizes));
          assert.match(name, /_packed(32|64|128)$/);
        }
      }
      await device.packed({ count: 8, gated, bias }).fill(1, 1);
    }
  }
}

function packedOf(
  device: FakeDevice,
  { buckets }: StepBuffers,
  projection: PackedProjection,
  activation: Activation,
  { topK, mostTokens }: Sizes,
): ProjectOperator {
  const slots = mostTokens * topK;
  return {
    kind: "project",
    projection,
    activation,
    input: device.buffer(slots * projection.k * 2),
    output: device.buffer(slots * projection.outputPitch * 2),
    rows: {
      from: "bucket",
      buckets,
      lane: 0,
      lanes: 1,
      topK,
      mostTokens,
      gather: projection.spec.gated,
    },
  };
}

function aggregation(device: FakeDevice, input: (typeof ROW_TYPES)[number]): void {
  const type = { dtype: input, input, count: 8 };
  for (const outputType of [input, "float32"] as const) {
    for (const mode of ["sum", "concat"] as const) {
      for (const width of [100, 2048]) {
        device.kernel(combineOf(device, { mode, width, outputType, rowType: input }));
      }
    }
    for (const inner of [64, 4000]) {
      for (const activation of ACTIVATIONS) {
        const gated = activation.kind !== "none";
        device.encode(
          decodeOf(device, {
            first: device.projection({ ...type, inputs: 100, outputs: inner, gated }),
            second: device.projection({ ...type, inputs: inner, outputs: 100 }),
            activation,
            outputType,
          }),
        );
      }
    }
  }
}

function gates(device: FakeDevice, input: (typeof ROW_TYPES)[number], mostTokens: number): void {
  for (const dtype of ROW_TYPES) {
    const projection = device.projection({ count: 1, output: "float32", dtype, input, bias: true });
    device.kernel(projectAll(device, { projection }, mostTokens));
  }
}
