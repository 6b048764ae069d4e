/** Every checkpoint of the fixtures through `MoELayer.load` on an emulated GPU, with the kernels that ship. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { readLayer } from "../../../src/checkpoint/index.ts";
import { MoELayer } from "../../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../../src/reference/index.ts";
import type { DType } from "../../../src/tensor.ts";
import { FIXTURES, loadFixture } from "../../fixtures/index.ts";
import { tensorOf, valuesOf } from "../../support/tensors.ts";
import { withEmulated } from "./emulator/harness.ts";

/** Rows are rounded to the weights' type between products; sums are in float32. */
const BOUNDS: Partial<Record<DType, number>> = { bfloat16: 6e-3, float16: 8e-4, float32: 2e-5 };

describe("checkpoints on an emulated GPU", () => {
  for (const { name, family } of FIXTURES) {
    it(`${family}: ${name}`, () =>
      withEmulated(async (device) => {
        const fixture = await loadFixture(name);
        const { layer: index, directory } = fixture;
        const { spec, weights } = await readLayer(directory, { layer: index });
        await using _ = weights;
        const { dtype } = spec.experts;
        // What the device makes of the input before anything else.
        const input = valuesOf(tensorOf(fixture.input.data, fixture.input.shape, dtype));
        const reference = await referenceLayer(spec, weights, input);
        await using layer = await MoELayer.load(directory, { layer: index, device });
        const modes = new Set<string>();
        // Eager, captured, replayed; a new plan may begin again.
        for (let step = 0; step < 8 && !modes.has("replayed"); step++) {
          const { output, routing, stats } = await layer.forward(fixture.input, { routing: true });
          modes.add(stats.mode);
          const error = relativeError(output.data, reference.output);
          assert.ok(error < (BOUNDS[dtype] as number), `block_output is off by ${error}`);
          assert.ok(routing !== undefined);
          assert.deepEqual(routing.ids, reference.ids);
          assert.deepEqual(stats.counts, reference.counts);
          const weightError = relativeError(routing.weights, reference.weights);
          assert.ok(weightError < 2e-5, `top-k weights are off by ${weightError}`);
        }
        assert.deepEqual([...modes], ["eager", "captured", "replayed"]);
      }));
  }
});
