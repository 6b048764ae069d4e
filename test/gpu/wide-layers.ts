/**
 * Layers of shapes drawn at random, up to the widest in use: from one token to thousands, up to
 * hundreds of experts, rows that are no multiple of a tile, and loads that leave experts without a token
 * or send every token to one. What the shapes of large-layers.gpu.test.ts are not: chosen.
 */

import assert from "node:assert/strict";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights } from "../../src/data/weights.ts";
import type { Device } from "../../src/execution/device.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import type { DType } from "../../src/tensor.ts";
import type { Random } from "../../src/workload/random.ts";
import { RandomLayer } from "../../src/workload/random-layer.ts";
import { biased } from "../support/biased.ts";
import { gatedExperts, plainSpec } from "../support/layers.ts";
import { between, normal } from "../support/seed.ts";
import { checkSampled, SAMPLES } from "./sampled.ts";
import { poisoned } from "./step-memory.ts";

/** What becomes of the experts: as logits fall, or some are never chosen, or one always, or both. */
export const LOADS = ["as drawn", "empty experts", "one hot", "one hot and empty experts"] as const;
type Load = (typeof LOADS)[number];

/** The most there is of everything. */
export interface Widest {
  readonly tokens: number;
  readonly experts: number;
  /** Of hidden states and intermediates alike. */
  readonly rows: number;
}

const MOST_CHOICES = 16;
/** More than softmax scores differ by: whoever has it is chosen first, whoever lacks it last. */
const DECIDED = 2;
/** Elements of one of an expert's three matrices, over all samples and choices: a third of a second's work for the reference. */
const REFERENCE_WEIGHTS = 2.5e7;
const LEAST_SAMPLES = 3;

/** Draws a layer and a batch, and compares tokens of it. @returns what it was, and how far off */
export async function checkWide(
  device: Device,
  random: Random,
  widest: Widest,
  dtype: DType,
  load: Load,
): Promise<string> {
  const tokens = logUniform(random, 1, widest.tokens);
  const experts = logUniform(random, 2, widest.experts);
  const topK = between(random, 1, Math.min(experts, MOST_CHOICES));
  const [hidden, intermediate] = [between(random, 1, widest.rows), between(random, 1, widest.rows)];
  const spec: LayerSpec = {
    ...plainSpec(hidden, intermediate, experts, topK),
    experts: gatedExperts(hidden, intermediate, { dtype, bias: true }),
  };
  const order = random.permutation(experts);
  const hot = load.startsWith("one hot") ? order[0] : undefined;
  const live = between(random, topK, Math.max(topK, Math.floor(experts / 2)));
  const empty = load.endsWith("empty experts") ? order.slice(live) : [];
  const parts = wideLayer(random, spec, hot, empty);

  await using layer = new MoELayer(parts.spec, parts.source, {
    device: poisoned(device, parts.spec),
  });
  const affordable = Math.floor(REFERENCE_WEIGHTS / (topK * hidden * intermediate));
  const samples = Math.max(LEAST_SAMPLES, Math.min(SAMPLES, affordable));
  const { worst, counts } = await checkSampled(layer, parts, random, tokens, samples);
  if (hot !== undefined) assert.equal(counts[hot], tokens, `expert ${hot} is hot`);
  for (const expert of empty) assert.equal(counts[expert], 0, `expert ${expert} is empty`);
  const shape = `${tokens} tokens, ${experts} experts (${empty.length} empty), top ${topK}, ${hidden} x ${intermediate}`;
  return `${shape}: relative error ${worst.toExponential(2)}`;
}

/**
 * Selection alone is told which experts are hot or empty, so that the weights of all that are chosen count.
 *
 * @param spec without a bias of the router's
 */
function wideLayer(
  random: Random,
  spec: LayerSpec,
  hot: number | undefined,
  empty: readonly number[],
): { readonly spec: LayerSpec; readonly source: LayerWeights } {
  const { hiddenSize, router, experts } = spec;
  const { intermediateSize, dtype } = experts;
  const sizes = { hiddenSize, intermediateSize, experts: router.experts, topK: router.topK };
  // Experts share numbers: hundreds of millions are not drawn in a second.
  const layer = new RandomLayer({ ...sizes, renormalize: true }, dtype, random.bits());
  const gateBias = normal(random, router.experts);
  const selectionBias = new Float32Array(router.experts);
  if (hot !== undefined) selectionBias[hot] = DECIDED;
  for (const expert of empty) selectionBias[expert] = -DECIDED;
  return {
    spec: {
      ...spec,
      router: { ...router, bias: true, selectionBias: hot !== undefined || empty.length > 0 },
    },
    source: {
      ...biased(layer, random.fork("expert biases")),
      gateBias: async () => gateBias,
      selectionBias: async () => selectionBias,
    },
  };
}

function logUniform(random: Random, least: number, most: number): number {
  return Math.round(least * (most / least) ** random.uniform());
}
