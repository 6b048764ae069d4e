/** `nexus run` on a GPU: the files it writes against those that it writes on the CPU, from the same hidden states. */

import assert from "node:assert/strict";
import path from "node:path";
import { readLayer, SafetensorsFile, writeSafetensors } from "../../src/checkpoint/index.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { type Fixture, loadFixture } from "../fixtures/index.ts";
import { gpuTest } from "../gpu/gpu.ts";
import { agreeingTokens, ERROR_BOUND, rounded, rowsOf } from "../gpu/layers.ts";
import { inTemporaryFolder, nexus } from "./nexus.ts";

/** Routing weights are float32 on both devices. */
const WEIGHT_BOUND = 1e-4;

interface Written {
  readonly output: Float32Array;
  readonly ids: Int32Array;
  readonly weights: Float32Array;
}

for (const name of ["mixtral", "gpt_oss", "deepseek_v3"] as const) {
  gpuTest(`${name}: a run on the GPU writes what one on the CPU does`, async (_device, t) => {
    const fixture = await loadFixture(name);
    const { spec, weights } = await readLayer(fixture.directory, { layer: fixture.layer });
    await using _ = weights;
    // Rounded beforehand, so that both route the same numbers.
    const { dtype } = spec.experts;
    const hidden = rounded(fixture.input.data, dtype);
    const exact = await referenceLayer(spec, weights, hidden);
    await inTemporaryFolder(async (folder) => {
      const input = path.join(folder, "in.safetensors");
      const shape = [fixture.tokens, fixture.hiddenSize];
      await writeSafetensors(input, { hidden_states: { dtype: "float32", shape, data: hidden } });
      const onCpu = await run(fixture, input, "cpu");
      const onGpu = await run(fixture, input, "cuda");
      const { topK, hiddenSize } = fixture;
      const tokens = agreeingTokens(onGpu.ids, { ...exact, ids: onCpu.ids }, topK, name);
      assert.ok(tokens.length >= 0.9 * fixture.tokens, `only ${tokens.length} tokens are clear`);
      const error = relativeError(
        rowsOf(onGpu.output, tokens, hiddenSize),
        rowsOf(onCpu.output, tokens, hiddenSize),
      );
      assert.ok(error < ERROR_BOUND[dtype], `the output is off by ${error}`);
      const weightError = relativeError(
        rowsOf(onGpu.weights, tokens, topK),
        rowsOf(onCpu.weights, tokens, topK),
      );
      assert.ok(weightError < WEIGHT_BOUND, `top-k weights are off by ${weightError}`);
      t.diagnostic(`relative error ${error.toExponential(2)} (bound ${ERROR_BOUND[dtype]})`);
    });
  });
}

/** Runs the fixture's layer by the command line, and reads the file that comes of it. */
async function run(
  { directory, layer }: Fixture,
  input: string,
  device: "cpu" | "cuda",
): Promise<Written> {
  const output = path.join(path.dirname(input), `${device}.safetensors`);
  const flags = { checkpoint: directory, layer: `${layer}`, input, output, device };
  const named = Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, value]);
  const { code, stdout, stderr } = await nexus(["run", ...named, "--json"]);
  assert.equal(stderr, "");
  assert.equal(code, 0);
  const summary = JSON.parse(stdout);
  assert.equal(summary.device.kind, device);
  assert.equal(summary.nonFiniteRows, 0);
  await using file = await SafetensorsFile.open(output);
  const [rows, ids, weights] = await Promise.all(
    ["output", "topk_ids", "topk_weights"].map((name) => file.read(name)),
  );
  return {
    output: rows?.data as Float32Array,
    ids: ids?.data as Int32Array,
    weights: weights?.data as Float32Array,
  };
}
