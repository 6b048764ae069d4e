/** What a CUDA device says of itself. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { cudaProperties } from "../../../src/execution/cuda/properties.ts";
import { FAKE_FACTS } from "./fake-driver.ts";

type Kernels = Parameters<typeof cudaProperties>[1];

const MIG = {
  availability: { available: false, reason: "MIG is off." },
  instances: [],
} as const;

function kernels(architecture: string, type: string, packs: readonly unknown[] = []): Kernels {
  const entries = [
    { arch: architecture, args: [{ type }] },
    { arch: "another", args: [{ type: "tensormap" }] },
  ];
  const activations = { silu: { code: 4 }, relu: { code: 1 }, "gelu-tanh": { code: 4 } };
  const all = ({ operator }: { operator?: unknown }) => (packs.includes(operator) ? [{}] : []);
  return { architecture, manifest: { kernels: entries, activations }, all } as unknown as Kernels;
}

describe("cudaProperties", () => {
  it("says what the GPU has and what its kernels use", () => {
    const properties = cudaProperties(FAKE_FACTS, kernels("sm_90a", "tensormap"), null, MIG);
    const { kind, computeUnits, computeUnitGranularity, cacheBytes } = properties;
    assert.deepEqual(
      { kind, computeUnits, computeUnitGranularity, cacheBytes },
      { kind: "cuda", computeUnits: 132, computeUnitGranularity: 1, cacheBytes: 50 * 2 ** 20 },
    );
    assert.deepEqual(properties.features, ["sm_90a", "wgmma", "tma"]);
    assert.deepEqual(properties.weightDTypes, ["bfloat16", "float16", "float32"]);
    const { shared, partitioned, mig } = properties.realisations;
    assert.deepEqual([shared.available, partitioned.available], [true, true]);
    assert.equal(mig, MIG.availability);
    assert.deepEqual(properties.migInstances, []);
    const { bandwidth, cache } = properties.enforces;
    assert.equal(cache.available, true);
    assert.ok(!bandwidth.available && /multiprocessors/.test(bandwidth.reason));
    assert.ok(!properties.timesExperts.available);
  });

  it("says what other GPUs lack", () => {
    const facts = { ...FAKE_FACTS, capability: [8, 9], maxPersistingL2Bytes: 0 } as const;
    const properties = cudaProperties(facts, kernels("sm_80", "*bf16"), "Too old.", MIG);
    assert.deepEqual(properties.features, ["sm_80", "mma"]);
    assert.deepEqual(properties.realisations.partitioned, { available: false, reason: "Too old." });
    assert.ok(!properties.enforces.cache.available);
    const ptx = cudaProperties({ ...FAKE_FACTS }, kernels("ptx", "*bf16"), null, MIG);
    assert.deepEqual(ptx.features, ["ptx", "mma"]);
  });

  it("says whether weights can be packed, and for which activations", () => {
    const packing = (...packs: string[]) =>
      cudaProperties(FAKE_FACTS, kernels("sm_90a", "*bf16", packs), null, MIG).packsWeights;
    const all = ["pack_weights", "project_packed", "decode_packed_first", "decode_packed_second"];
    assert.deepEqual(packing(...all), { available: true, activations: ["silu", "gelu-tanh"] });
    for (const some of [[], ...all.map((left) => all.filter((each) => each !== left))]) {
      const packsWeights = packing(...some);
      assert.ok(!packsWeights.available);
      assert.match(packsWeights.reason, /bundle has no sm_90a kernels for packed weights/);
    }
  });
});
