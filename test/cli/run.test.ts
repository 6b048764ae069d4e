/** `nexus run` from the outside, on checkpoints of every family, against transformers. */

import assert from "node:assert/strict";
import {
  copyFile,
  cp,
  open,
  readdir,
  readFile,
  rename,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { SafetensorsFile, writeSafetensors } from "../../src/checkpoint/index.ts";
import { relativeError } from "../../src/reference/index.ts";
import type { Tensor } from "../../src/tensor.ts";
import { FIXTURES, inTemporaryFolder, nexus } from "./nexus.ts";

const LAYER = "1";
const ERROR_BOUND = 1e-5;

/** One of every family; every fixture is tried by the tests of the layer itself. */
const FAMILIES = [
  "mixtral",
  "qwen2_moe",
  "qwen3_moe",
  "olmoe",
  "deepseek_v2",
  "deepseek_v3",
  "glm4_moe",
  "gpt_oss",
  "phimoe",
  "llama4_text",
];

async function readAll(file: string): Promise<Record<string, Tensor>> {
  await using open = await SafetensorsFile.open(file);
  const tensors: Record<string, Tensor> = {};
  for (const name of open.tensors.keys()) tensors[name] = await open.read(name);
  return tensors;
}

/** Where `nexus run` reads and writes. */
interface Files {
  readonly checkpoint?: string;
  readonly input: string;
  readonly output: string;
}

function runArgs({ checkpoint = path.join(FIXTURES, "mixtral"), input, output }: Files): string[] {
  const flags = { checkpoint, layer: LAYER, input, output };
  return ["run", ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value])];
}

/** Runs a family's layer on the input of its reference. */
function referenceArgs(family: string, output: string): string[] {
  const checkpoint = path.join(FIXTURES, family);
  const input = path.join(checkpoint, "reference.safetensors");
  return [...runArgs({ checkpoint, input, output }), "--tensor", "block_input"];
}

/** A token's ids with their weights, by id: families list them in different orders. */
function pairs(ids: Tensor, weights: Tensor): [number, number][][] {
  const [tokens, k] = ids.shape as [number, number];
  return Array.from({ length: tokens }, (_, token) =>
    Array.from({ length: k }, (_, choice): [number, number] => [
      ids.data[token * k + choice] as number,
      weights.data[token * k + choice] as number,
    ]).sort(([a], [b]) => a - b),
  );
}

for (const family of FAMILIES) {
  test(`${family}: the output file matches transformers`, async () => {
    await inTemporaryFolder(async (folder) => {
      const output = path.join(folder, "out.safetensors");
      const { code, stdout, stderr } = await nexus([...referenceArgs(family, output), "--json"]);
      assert.equal(stderr, "");
      assert.equal(code, 0);
      const summary = JSON.parse(stdout);
      const expected = await readAll(path.join(FIXTURES, family, "reference.safetensors"));
      const actual = await readAll(output);
      assert.deepEqual(Object.keys(actual).sort(), ["output", "topk_ids", "topk_weights"]);
      assert.equal(actual["output"]?.dtype, "float32");
      assert.equal(actual["topk_ids"]?.dtype, "int32");
      assert.equal(actual["topk_weights"]?.dtype, "float32");
      const reference = expected["block_output"] as Tensor;
      assert.deepEqual(actual["output"]?.shape, reference.shape);
      const error = relativeError((actual["output"] as Tensor).data, reference.data);
      assert.ok(error < ERROR_BOUND, `relative error ${error}`);

      const k = summary.spec.router.topK;
      const tokens = reference.shape[0] as number;
      assert.deepEqual(actual["topk_ids"]?.shape, [tokens, k]);
      assert.deepEqual(actual["topk_weights"]?.shape, [tokens, k]);
      const ids = expected["gate_output_2"];
      if (ids !== undefined) {
        const wanted = pairs(ids, expected["gate_output_1"] as Tensor);
        const got = pairs(actual["topk_ids"] as Tensor, actual["topk_weights"] as Tensor);
        wanted.forEach((row, token) => {
          row.forEach(([id, weight], choice) => {
            const [gotId, gotWeight] = got[token]?.[choice] ?? [-1, 0];
            assert.equal(gotId, id, `token ${token}`);
            assert.ok(
              Math.abs(gotWeight - weight) < 1e-5,
              `token ${token}: ${gotWeight}, ${weight}`,
            );
          });
        });
      }

      assert.equal(summary.command, "run");
      assert.equal(summary.tokens, tokens);
      assert.equal(summary.checkpoint.layer, 1);
      assert.equal(summary.counts.length, summary.spec.router.experts);
      assert.equal(
        summary.counts.reduce((sum: number, count: number) => sum + count, 0),
        tokens * k,
      );
      assert.ok(summary.seconds > 0 && summary.tokensPerSecond > 0);
      assert.ok(summary.weightBytes > 0);
      assert.deepEqual(summary.steps, { eager: 1 });
      assert.equal(summary.nonFiniteRows, 0);
      assert.ok(summary.energy.available || summary.energy.reason.length > 0);
    });
  });
}

test("the summary for people names model, layer, device, load, time, energy and output", async () => {
  await inTemporaryFolder(async (folder) => {
    const output = path.join(folder, "out.safetensors");
    const { code, stdout, stderr } = await nexus(referenceArgs("qwen3_moe", output));
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.ok(!stdout.includes("\u001b"));
    assert.doesNotMatch(stdout, /Warning/);
    for (const line of stdout.split("\n")) assert.ok([...line].length <= 80, line);
    for (const expected of [
      /^Model +Qwen3-MoE, layer 1 of/m,
      /^Layer +16 experts, top-4 \(softmax, renormalised\), hidden 64/m,
      /^Device +\S/m,
      /^Input +37 tokens/m,
      /expert +\d+ +█+ .* %/,
      /^Time +[\d.,]+ (ms|us|s) on the device, [\d.,]+ tokens\/s \(first step, cold\)/m,
      /^Steps +1 eager/m,
      /^Energy +\S/m,
      /^Output +\S/m,
    ]) {
      assert.match(stdout, expected);
    }
  });
});

test("hidden states may be [batch, sequence, hidden], and more than one batch of them", async () => {
  await inTemporaryFolder(async (folder) => {
    const reference = await readAll(path.join(FIXTURES, "mixtral", "reference.safetensors"));
    const block = reference["block_input"] as Tensor<Float32Array>;
    const [tokens, hidden] = block.shape as [number, number];
    const copies = 140;
    const data = new Float32Array(copies * block.data.length);
    for (let i = 0; i < copies; i++) data.set(block.data, i * block.data.length);
    const input = path.join(folder, "in.safetensors");
    const output = path.join(folder, "out.safetensors");
    await writeSafetensors(input, {
      hidden_states: { dtype: "float32", shape: [copies, tokens, hidden], data },
    });
    const { code, stderr, stdout } = await nexus([...runArgs({ input, output }), "--json"]);
    assert.equal(stderr, "");
    assert.equal(code, 0);
    const summary = JSON.parse(stdout);
    assert.ok(Object.values<number>(summary.steps).reduce((sum, count) => sum + count, 0) > 1);
    const actual = (await readAll(output))["output"] as Tensor;
    assert.deepEqual(actual.shape, [copies * tokens, hidden]);
    const expected = reference["block_output"] as Tensor;
    const size = expected.data.length;
    for (let i = 0; i < copies; i++) {
      const error = relativeError(actual.data.subarray(i * size, (i + 1) * size), expected.data);
      assert.ok(error < ERROR_BOUND, `copy ${i}: relative error ${error}`);
    }
  });
});

test("a single step shows who was hot in it: the experts of a token that all others are like", async () => {
  await inTemporaryFolder(async (folder) => {
    const reference = await readAll(path.join(FIXTURES, "mixtral", "reference.safetensors"));
    const block = reference["block_input"] as Tensor<Float32Array>;
    const hidden = block.shape[1] as number;
    const copies = 37;
    const data = Float32Array.from(
      { length: copies * hidden },
      (_, i) => block.data[i % hidden] as number,
    );
    const input = path.join(folder, "in.safetensors");
    await writeSafetensors(input, { hidden_states: { shape: [copies, hidden], data } });
    const output = path.join(folder, "out.safetensors");
    const { code, stdout } = await nexus([...runArgs({ input, output }), "--json"]);
    assert.equal(code, 0);
    const { counts, heat } = JSON.parse(stdout);
    assert.deepEqual(
      heat,
      counts.map((count: number) => (count === copies ? "hot" : "cold")),
    );
  });
});

test("16-bit input is taken, and an existing output file is replaced as a whole", async () => {
  await inTemporaryFolder(async (folder) => {
    const input = path.join(folder, "in.safetensors");
    const output = path.join(folder, "out.safetensors");
    await writeFile(output, "something older");
    const data = new Uint16Array(3 * 64).map((_, i) => 0x3f80 + (i % 64)); // 1 to 1.5
    await writeSafetensors(input, { hidden_states: { dtype: "bfloat16", shape: [3, 64], data } });
    const { code, stderr } = await nexus(runArgs({ input, output }));
    assert.equal(stderr, "");
    assert.equal(code, 0);
    assert.deepEqual((await readAll(output))["output"]?.shape, [3, 64]);
    assert.deepEqual((await readdir(folder)).sort(), ["in.safetensors", "out.safetensors"]);
  });
});

test("no file of the checkpoint is overwritten, whatever its index calls it", async () => {
  await inTemporaryFolder(async (folder) => {
    const checkpoint = path.join(folder, "mixtral");
    await cp(path.join(FIXTURES, "mixtral"), checkpoint, { recursive: true });
    const shard = path.join(checkpoint, "weights-part1.safetensors");
    await rename(path.join(checkpoint, "model.safetensors"), shard);
    const names = Object.keys(await readAll(shard));
    const weight_map = Object.fromEntries(names.map((name) => [name, path.basename(shard)]));
    const index = path.join(checkpoint, "model.safetensors.index.json");
    await writeFile(index, JSON.stringify({ weight_map }));
    const other = path.join(checkpoint, "model-of-another-split.safetensors");
    await writeFile(other, "weights all the same");
    for (const file of [shard, index, path.join(checkpoint, "config.json"), other]) {
      const before = await readFile(file);
      const args = [...referenceArgs("mixtral", file), "--checkpoint", checkpoint];
      const { code, stderr } = await nexus(args);
      assert.match(stderr, /^nexus: --output .* would overwrite what is read\. Choose another/);
      assert.equal(code, 2);
      assert.deepEqual(await readFile(file), before);
    }
  });
});

test("a token whose logits are not finite is named by its place in the input", async () => {
  await inTemporaryFolder(async (folder) => {
    const tokens = 2100; // more than one batch
    const data = new Float32Array(tokens * 64).fill(0.5);
    data[2070 * 64 + 5] = Number.NaN;
    const input = path.join(folder, "in.safetensors");
    const output = path.join(folder, "out.safetensors");
    await writeSafetensors(input, {
      hidden_states: { dtype: "float32", shape: [tokens, 64], data },
    });
    const { code, stdout, stderr } = await nexus(runArgs({ input, output }));
    assert.equal(stdout, "");
    assert.match(stderr, /^nexus: .*row 2070.*\n$/);
    assert.equal(code, 2);
    await assert.rejects(stat(output), "nothing may be written");
  });
});

test("output that is not finite is written, counted and warned of", async () => {
  await inTemporaryFolder(async (folder) => {
    const checkpoint = path.join(folder, "mixtral");
    await cp(path.join(FIXTURES, "mixtral"), checkpoint, { recursive: true });
    const model = path.join(checkpoint, "model.safetensors");
    const tensor = `model.layers.${LAYER}.block_sparse_moe.experts.0.w2.weight`;
    await using weights = await SafetensorsFile.open(model);
    const handle = await open(model, "r+");
    // All bits set are NaN in every float type.
    await handle.write(new Uint8Array(4).fill(255), 0, 4, weights.info(tensor).start);
    await handle.close();
    const output = path.join(folder, "out.safetensors");
    const args = [...referenceArgs("mixtral", output), "--checkpoint", checkpoint];

    const { code, stdout } = await nexus([...args, "--json"]);
    assert.equal(code, 0);
    const { nonFiniteRows, tokens, counts } = JSON.parse(stdout);
    const { data } = (await readAll(output))["output"] as Tensor;
    const width = data.length / tokens;
    const rows = Array.from({ length: tokens }, (_, row) =>
      data.subarray(row * width, (row + 1) * width).some((value) => !Number.isFinite(value)),
    );
    assert.equal(nonFiniteRows, rows.filter(Boolean).length);
    assert.equal(nonFiniteRows, counts[0]);
    assert.ok(nonFiniteRows > 0);

    const summary = await nexus(args);
    assert.equal(summary.code, 0);
    assert.equal(summary.stderr, "");
    const wanted = new RegExp(
      `^Warning +NaN or infinity in ${nonFiniteRows} of ${tokens} output rows`,
      "m",
    );
    assert.match(summary.stdout, wanted);
  });
});

test("a truncated checkpoint is one line that names the file", async () => {
  await inTemporaryFolder(async (folder) => {
    const checkpoint = path.join(folder, "mixtral");
    await cp(path.join(FIXTURES, "mixtral"), checkpoint, { recursive: true });
    const model = path.join(checkpoint, "model.safetensors");
    const { size } = await stat(model);
    const reference = path.join(folder, "reference.safetensors");
    await copyFile(path.join(checkpoint, "reference.safetensors"), reference);
    await truncate(model, size - 1000);
    const { code, stdout, stderr } = await nexus([
      ...runArgs({ checkpoint, input: reference, output: path.join(folder, "out.safetensors") }),
      "--tensor",
      "block_input",
    ]);
    assert.equal(stdout, "");
    assert.match(stderr, /^nexus: .*model\.safetensors: .*\n$/);
    assert.equal(code, 2);
  });
});
