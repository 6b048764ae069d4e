/**
 * Every fixture through MoELayer.load on the GPU: as saved (most in bfloat16), and with its
 * weights converted to float32, against transformers and against the float64 reference. Steps work in
 * poisoned memory.
 */

import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { readLayer } from "../../src/checkpoint/index.ts";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights } from "../../src/data/weights.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { FIXTURES, type Fixture, loadFixture, sortByExpert } from "../fixtures/index.ts";
import { gpuTest } from "./gpu.ts";
import { agreeingTokens, ERROR_BOUND, inFloat32, rounded, rowsOf } from "./layers.ts";
import { poisoned } from "./step-memory.ts";

/** Routing weights are float32 on the device whatever the rows are; the logits' sums decide. */
const WEIGHT_BOUND = 1e-4;

/** Rounding the input moves routing weights by a fraction of this; another decision by a multiple. */
const SAME_DECISIONS = 0.03;

for (const { name, family } of FIXTURES) {
  gpuTest(`${family}: ${name}, as saved`, async (device, t) => {
    const fixture = await loadFixture(name);
    const { spec, weights } = await readLayer(fixture.directory, { layer: fixture.layer });
    await using _ = weights;
    const options = { layer: fixture.layer, device: poisoned(device, spec) };
    await using layer = await MoELayer.load(fixture.directory, options);
    await check(t, layer, spec, weights, fixture);
  });

  gpuTest(`${family}: ${name}, in float32`, async (device, t) => {
    const fixture = await loadFixture(name);
    const { spec, weights } = await readLayer(fixture.directory, { layer: fixture.layer });
    await using _ = weights;
    const wide = inFloat32(spec, weights);
    await using layer = new MoELayer(wide.spec, wide.source, {
      device: poisoned(device, wide.spec),
    });
    await check(t, layer, wide.spec, wide.source, fixture);
  });
}

/** Eager, captured and replayed, against both references. */
async function check(
  t: TestContext,
  layer: MoELayer,
  spec: LayerSpec,
  weights: LayerWeights,
  fixture: Fixture,
): Promise<void> {
  const { topK, hiddenSize } = fixture;
  const bound = ERROR_BOUND[spec.experts.dtype];
  // What the device sees of the input; transformers saw it in float32.
  const input = rounded(fixture.input.data, spec.experts.dtype);
  const exact = await referenceLayer(spec, weights, input);
  let worst = 0;
  for (let step = 0; step < 3; step++) {
    const { output, routing } = await layer.forward(fixture.input, { routing: true });
    assert.ok(routing !== undefined);
    const tokens = agreeingTokens(routing.ids, exact, topK, fixture.name);
    assert.ok(tokens.length >= 0.9 * fixture.tokens, `only ${tokens.length} tokens are clear`);
    const rows = rowsOf(output.data, tokens, hiddenSize);
    const wanted = rowsOf(Float32Array.from(exact.output), tokens, hiddenSize);
    const weightError = relativeError(
      rowsOf(routing.weights, tokens, topK),
      rowsOf(Float32Array.from(exact.weights), tokens, topK),
    );
    assert.ok(weightError < WEIGHT_BOUND, `top-k weights are off by ${weightError}`);
    const error = relativeError(rows, wanted);
    assert.ok(error < bound, `the output is off by ${error} from float64`);

    // Some families return the k experts of a token in no particular order. Where rounding the
    // input turned a decision, of top-k or of a rule's threshold, transformers computed something else.
    const got = sortByExpert(routing.ids, routing.weights, topK);
    const want = sortByExpert(fixture.ids, fixture.weights, topK);
    const same = tokens.filter((token) => {
      const slots = [token * topK, (token + 1) * topK] as const;
      const [mine, theirs] = [got.weights.slice(...slots), want.weights.slice(...slots)];
      const sameIds = got.ids.slice(...slots).join() === want.ids.slice(...slots).join();
      return sameIds && relativeError(mine, theirs) < SAME_DECISIONS;
    });
    assert.ok(same.length >= 0.9 * fixture.tokens, `transformers agrees on ${same.length} tokens`);
    const blockError = relativeError(
      rowsOf(output.data, same, hiddenSize),
      rowsOf(fixture.output.data, same, hiddenSize),
    );
    assert.ok(blockError < bound, `block_output is off by ${blockError}`);
    worst = Math.max(worst, error, blockError);
  }
  t.diagnostic(`worst relative error ${worst.toExponential(2)} (bound ${bound})`);
}
