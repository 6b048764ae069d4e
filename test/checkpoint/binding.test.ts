import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { Checkpoint } from "../../src/checkpoint/checkpoint.ts";
import { layerOf, readLayer } from "../../src/checkpoint/index.ts";
import { SafetensorsFile } from "../../src/checkpoint/safetensors/reader.ts";
import { DisposedError } from "../../src/errors.ts";
import { type FixtureName, fixtureDirectory } from "../fixtures/index.ts";
import {
  assertFault,
  CountingOpener,
  directoryOf,
  packFile,
  type RawTensor,
  TINY_CONFIG,
  tinyTensors,
} from "./support.ts";

const BLOCK = "model.layers.1.block_sparse_moe";

async function read(t: TestContext, tensors: Record<string, RawTensor>, layer = 1) {
  const bytes = packFile(tensors);
  return readLayer(
    await directoryOf(t, { "config.json": TINY_CONFIG, "model.safetensors": bytes }),
    {
      layer,
    },
  );
}

/** Opens a fixture's layer and counts what opening and then reading it cost. */
async function countedLayer(name: FixtureName) {
  const opener = new CountingOpener();
  const checkpoint = await Checkpoint.open(fixtureDirectory(name), opener.openSource);
  const { spec, weights } = await layerOf(checkpoint, 1);
  const total = () => [...opener.bytes.values()].reduce((sum, n) => sum + n, 0);
  const headers = total();
  const cost = async (work: Promise<unknown> | undefined) => {
    const before = total();
    await work;
    return total() - before;
  };
  return { spec, weights, opener, headers, cost };
}

test("a layer's tensors are all there and fit", async (t) => {
  for (const layer of [0, 1]) {
    const { spec, weights } = await read(t, tinyTensors(), layer);
    assert.equal(spec.experts.dtype, "bfloat16");
    await weights[Symbol.asyncDispose]();
  }
});

test("a missing tensor, wherever it is, is found before any weight is read", async (t) => {
  for (const name of Object.keys(tinyTensors()).filter((n) => n.startsWith(BLOCK))) {
    const { [name]: _, ...rest } = tinyTensors();
    await assertFault(read(t, rest), "missing-tensor", {
      tensor: name,
      file: /model\.safetensors$/,
    });
  }
});

test("a misshapen tensor, wherever it is, is found before any weight is read", async (t) => {
  for (const name of Object.keys(tinyTensors()).filter((n) => n.startsWith(BLOCK))) {
    for (const shape of [[4, 4], [12], [], [1, 3, 4]]) {
      const tensors = { ...tinyTensors(), [name]: { dtype: "BF16" as const, shape } };
      const expected = { tensor: name, message: /config\.json calls for/ };
      await assertFault(read(t, tensors), "wrong-shape", expected);
    }
  }
});

test("so is a misshapen bias, of router or experts, and a misshapen gate of a shared expert", async (t) => {
  const cases = { gpt_oss: 3, deepseek_v3: 1, qwen2_moe: 1 } as const;
  for (const [name, count] of Object.entries(cases) as [FixtureName, number][]) {
    const directory = fixtureDirectory(name);
    const config = await readFile(join(directory, "config.json"), "utf8");
    await using file = await SafetensorsFile.open(join(directory, "model.safetensors"));
    const wanted = /layers\.1\.mlp\..*(bias|shared_expert_gate\.weight)$/;
    const names = [...file.tensors.keys()].filter((tensor) => wanted.test(tensor));
    assert.equal(names.length, count, `${name}: ${names}`);
    for (const tensor of names) {
      const tensors: Record<string, RawTensor> = {};
      for (const [each, { dtype, shape }] of file.tensors) {
        tensors[each] = { dtype, shape: each === tensor ? [1, ...shape] : shape };
      }
      const files = { "config.json": config, "model.safetensors": packFile(tensors) };
      const work = readLayer(await directoryOf(t, files), { layer: 1 });
      await assertFault(work, "wrong-shape", { tensor });
    }
  }
});

test("tensors of another layer are nobody's concern", async (t) => {
  const other = "model.layers.0.block_sparse_moe.experts.0.w1.weight";
  const { [other]: _, ...rest } = tinyTensors();
  await using weights = (await read(t, rest, 1)).weights;
  await weights.expert(0);
  await assertFault(read(t, rest, 0), "missing-tensor", { tensor: other });
});

test("a type that is no float Nexus reads is refused with what to do", async (t) => {
  const name = `${BLOCK}.experts.1.w2.weight`;
  for (const dtype of ["F8_E4M3", "I32", "I64", "U8", "BOOL"] as const) {
    const tensors = { ...tinyTensors(), [name]: { dtype, shape: [4, 3] } };
    await assertFault(read(t, tensors), "wrong-dtype", {
      tensor: name,
      message: /bfloat16 version/,
    });
  }
});

test("experts of two types are refused; the router may have its own", async (t) => {
  const odd = `${BLOCK}.experts.1.w3.weight`;
  const mixed = { ...tinyTensors("F16"), [odd]: { dtype: "BF16" as const, shape: [3, 4] } };
  await assertFault(read(t, mixed), "wrong-dtype", { tensor: odd, message: /bfloat16.*float16/ });

  const router = { dtype: "F32" as const, shape: [2, 4] };
  const { spec, weights } = await read(t, {
    ...tinyTensors("F16"),
    [`${BLOCK}.gate.weight`]: router,
  });
  assert.equal(spec.experts.dtype, "float16");
  assert.equal((await weights.gate?.())?.dtype, "float32");
  await weights[Symbol.asyncDispose]();
});

test("a forged expert count fails on the router, not by counting to it", async (t) => {
  const config = { ...TINY_CONFIG, num_local_experts: 1e15 };
  const files = { "config.json": config, "model.safetensors": packFile(tinyTensors()) };
  const work = readLayer(await directoryOf(t, files), { layer: 1 });
  await assertFault(work, "wrong-shape", { tensor: `${BLOCK}.gate.weight` });
});

test("a layer that is refused leaves no file open", async (t) => {
  const files = { "config.json": TINY_CONFIG, "model.safetensors": packFile({}) };
  const opener = new CountingOpener();
  const checkpoint = await Checkpoint.open(await directoryOf(t, files), opener.openSource);
  await assertFault(layerOf(checkpoint, 1), "missing-tensor", { tensor: `${BLOCK}.gate.weight` });
  assert.equal(opener.opened.length, 1);
  assert.equal(opener.open, 0);
});

test("opening a layer reads headers, an expert its own bytes", async () => {
  const { spec, weights, headers, cost } = await countedLayer("mixtral");
  assert.equal(headers, 8 + 7416, "the length of the header and the header");
  const { hiddenSize: hidden, intermediateSize: intermediate } = spec.experts;
  assert.equal(await cost(weights.expert(3)), 3 * hidden * intermediate * 2);
  assert.equal(await cost(weights.gate?.()), spec.router.experts * hidden * 2);
  await weights[Symbol.asyncDispose]();
});

test("of packed experts only the one asked for is read, and once", async () => {
  for (const name of ["mixtral_packed", "llama4_text"] as const) {
    const { spec, weights, cost } = await countedLayer(name);
    const { hiddenSize: hidden, intermediateSize: intermediate } = spec.experts;
    assert.equal(await cost(weights.expert(1)), 3 * hidden * intermediate * 2, name);
    await weights[Symbol.asyncDispose]();
  }
  const { spec, weights, cost } = await countedLayer("gpt_oss");
  const { hiddenSize: hidden, intermediateSize: intermediate } = spec.experts;
  const biases = 2 * intermediate + hidden;
  assert.equal(await cost(weights.expert(7)), (3 * hidden * intermediate + biases) * 2);
  await weights[Symbol.asyncDispose]();
});

test("of a sharded checkpoint only the shards with the layer's tensors are opened", async () => {
  const { opener, weights } = await countedLayer("olmoe_sharded");
  const shards = (await readdir(fixtureDirectory("olmoe_sharded"))).filter((f) =>
    f.startsWith("model-"),
  );
  const norm = shards.at(-1);
  await using checkpoint = await Checkpoint.open(fixtureDirectory("olmoe_sharded"));
  const strangers = (await checkpoint.info("model.norm.weight")).file;
  assert.ok(strangers.endsWith(norm as string), "the stranger has a shard of its own");
  assert.deepEqual(
    opener.opened.sort(),
    shards.filter((f) => join("/", f) !== join("/", norm as string)).sort(),
  );
  await weights[Symbol.asyncDispose]();
});

test("weights say that they are closed, and can be closed again", async (t) => {
  const { weights } = await read(t, tinyTensors());
  await weights[Symbol.asyncDispose]();
  await weights[Symbol.asyncDispose]();
  await assert.rejects(async () => weights.gate?.(), DisposedError);
});
