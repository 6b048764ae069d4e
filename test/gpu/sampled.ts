/**
 * Batches too large for a float64 reference of everything: tokens drawn from the batch are computed
 * in float64 by themselves, the rest must be finite and routed to distinct experts.
 */

import assert from "node:assert/strict";
import { rowWeightsOf } from "../../src/data/step-buffers.ts";
import type { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer } from "../../src/reference/index.ts";
import type { Random } from "../../src/workload/random.ts";
import { batch, errorAmong, type RandomLayerParts, termsOfFew } from "../support/layers.ts";
import { agreeingTokens, clearHidden, ERROR_BOUND, exactHidden, rowsOf } from "./layers.ts";

/** Tokens computed in float64, beside the last. */
export const SAMPLES = 30;

/** Times the error bound: narrow rows can cancel to less than their parts. */
const SLACK = 1.5;
const NARROW = 8;
const NARROW_SLACK = 4;

/** Runs a batch and compares tokens drawn from it. @returns relative error and tokens per expert */
export async function checkSampled(
  layer: MoELayer,
  parts: Pick<RandomLayerParts, "spec" | "source">,
  random: Random,
  T: number,
  samples = SAMPLES,
) {
  const { spec } = parts;
  const { hiddenSize, router } = spec;
  const { topK, experts } = router;
  // Clear ones at the places that are compared, whatever comes everywhere else.
  const drawn = Array.from({ length: samples }, () => random.integer(T));
  const sampled = [...new Set([...drawn, T - 1])];
  const clear = await clearHidden(random, parts, sampled.length);
  const hidden = exactHidden(random, T, hiddenSize);
  sampled.forEach((t, i) => {
    hidden.set(clear.subarray(i * hiddenSize, (i + 1) * hiddenSize), t * hiddenSize);
  });
  const expected = await referenceLayer(spec, parts.source, clear);
  const terms = await termsOfFew(parts, clear);
  const slack = hiddenSize < NARROW ? NARROW_SLACK : SLACK;
  const bound = slack * ERROR_BOUND[rowWeightsOf(spec)];

  const what = `T=${T} ${JSON.stringify(spec)}`;
  let worst = 0;
  const counts = new Int32Array(experts);
  // Eager, captured, replayed.
  for (let step = 0; step < 3; step++) {
    const { output, routing, stats } = await layer.forward(batch(hidden, hiddenSize), {
      routing: true,
    });
    assert.ok(routing !== undefined);
    const ids = Int32Array.from(
      sampled.flatMap((t) => [...routing.ids.subarray(t * topK, (t + 1) * topK)]),
    );
    agreeingTokens(ids, expected, topK, what);
    const error = errorAmong(terms, rowsOf(output.data, sampled, hiddenSize), expected.output);
    assert.ok(error < bound, `output is off by ${error}, bound ${bound}: ${what}`);
    worst = Math.max(worst, error);

    assert.ok(output.data.every(Number.isFinite), `not all of the output is finite: ${what}`);
    counts.fill(0);
    for (let t = 0; t < T; t++) {
      const chosen: Int32Array = routing.ids.subarray(t * topK, (t + 1) * topK);
      assert.equal(new Set(chosen).size, topK, `token ${t} goes to ${chosen.join()}`);
      for (const expert of chosen) counts[expert] = (counts[expert] as number) + 1;
    }
    assert.deepEqual(stats.counts, counts, what);
  }
  return { worst, counts };
}
