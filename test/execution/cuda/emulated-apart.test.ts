/**
 * Large experts that are kept apart by their rows, on an emulated GPU whose L2 holds none: layers drawn at random give the bits of
 * plain weights, whatever classes their experts fall into, and nothing is done wrong on the way.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { LayerSpec } from "../../../src/data/spec.ts";
import type { LayerOptions } from "../../../src/layer/forward.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { batch, gatedExperts, leaning, plainSpec, randomLayer } from "../../support/layers.ts";
import { between, chance, normal, pick, randomFor } from "../../support/seed.ts";
import { withEmulated } from "./emulator/harness.ts";

const CASES = 3;
const FACTS = { facts: { l2Bytes: 1024, memoryBytesPerSecond: 4.8e12 } };
const NEVER = 1_000_000;
/** Buffers of so many: 256 tokens are the fewest whose experts are kept apart. */
const TOKENS = [256, 256, 512];

/** Up to 64 rows an expert on average in the largest batch, and in the first ones 32. */
function draw(name: string): LayerSpec {
  const random = randomFor(name);
  const topK = between(random, 1, 3);
  const experts = between(random, 8 * topK, 8 * topK + 6);
  // Two steps and three: the kernels of one pipeline take three at least.
  const [hidden, inner] = [between(random, 65, 160), between(random, 65, 160)];
  const bias = chance(random, 0.5);
  const spec = plainSpec(hidden, inner, experts, topK);
  return {
    ...spec,
    router: {
      ...spec.router,
      ...(chance(random, 0.4) && { capacityFactor: 1 + random.uniform() }),
    },
    experts: gatedExperts(hidden, inner, { dtype: "bfloat16", bias }),
    ...(chance(random, 0.3) && {
      shared: { experts: gatedExperts(hidden, 40, { dtype: "bfloat16" }), gate: true },
    }),
  };
}

describe("large experts that are kept apart by their rows", () => {
  const launched = new Set<string>();
  for (let i = 0; i < CASES; i++) {
    it(`have the bits of plain weights, layer ${i}`, async () => {
      const spec = draw(`apart, layer ${i}`);
      const random = randomFor(`apart, weights ${i}`);
      const { tensors } = randomLayer(random, spec);
      const { hiddenSize } = spec;
      const lean = normal(random, hiddenSize, random.uniform());
      const inputs = TOKENS.map((tokens) => leaning(random, tokens, lean));
      const outputs = (options: Omit<LayerOptions, "device">) =>
        withEmulated(async (device, driver) => {
          await using layer = new MoELayer(spec, tensors, { device, ...options });
          const all: Float32Array[] = [];
          for (const hidden of inputs) {
            all.push((await layer.forward(batch(hidden, hiddenSize))).output.data);
          }
          if (options.packWeights) for (const name of driver.ran.keys()) launched.add(name);
          return all;
        }, FACTS);
      const expected = await outputs({ graphs: { warmup: NEVER } });
      const streams = pick(random, [1, 2, 3]);
      for (const warmup of [NEVER, 0]) {
        const got = await outputs({ packWeights: "beside", streams, graphs: { warmup } });
        for (const [at, output] of got.entries()) {
          assert.deepEqual(
            output,
            expected[at],
            `${at}, ${JSON.stringify({ spec, streams, warmup })}`,
          );
        }
      }
    });
  }

  it("are of three classes, of which two read packed weights", () => {
    const tiles = [...launched].filter((name) => name.startsWith("project_gated"));
    for (const kind of ["packed32", "packed64", "128"]) {
      assert.ok(
        tiles.some((name) => name.endsWith(kind)),
        `no ${kind} in ${tiles.join(", ")}`,
      );
    }
    assert.ok(!tiles.some((name) => name.endsWith("packed128")), tiles.join(", "));
  });
});
