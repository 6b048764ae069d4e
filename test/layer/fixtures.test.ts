/** Every fixture through MoELayer.load, against transformers and against the float64 reference. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { readLayer } from "../../src/checkpoint/index.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { FIXTURES, loadFixture, sortByExpert } from "../fixtures/index.ts";
import { openCpu } from "../support/device.ts";

const device = await openCpu(2);
after(() => device.close());

for (const { name, family } of FIXTURES) {
  test(`${family}: ${name}`, async () => {
    const fixture = await loadFixture(name);
    const { layer: index, directory, topK } = fixture;

    const { spec, weights } = await readLayer(directory, { layer: index });
    await using _ = weights;
    const reference = await referenceLayer(spec, weights, fixture.input.data);
    // float32 transformers against float64: how far the bound below can be trusted.
    assert.ok(relativeError(reference.output, fixture.output.data) < 1e-6);

    await using layer = await MoELayer.load(directory, { layer: index, device });
    assert.equal(layer.spec.router.topK, topK);
    // Eager, captured, replayed.
    for (let step = 0; step < 3; step++) {
      const { output, routing } = await layer.forward(fixture.input, { routing: true });
      const error = relativeError(output.data, fixture.output.data);
      assert.ok(error < 1e-5, `block_output is off by ${error}`);
      assert.ok(routing !== undefined);
      assert.deepEqual(routing.ids, reference.ids);
      // Some families return the k experts of a token in no particular order.
      const got = sortByExpert(routing.ids, routing.weights, topK);
      const want = sortByExpert(fixture.ids, fixture.weights, topK);
      assert.deepEqual(got.ids, want.ids);
      const weightError = relativeError(got.weights, want.weights);
      assert.ok(weightError < 1e-5, `top-k weights are off by ${weightError}`);
    }
  });
}
