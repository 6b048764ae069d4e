import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { Checkpoint } from "../../src/checkpoint/checkpoint.ts";
import { DisposedError } from "../../src/errors.ts";
import { fixtureDirectory } from "../fixtures/index.ts";
import { assertFault, CountingOpener, directoryOf, packFile } from "./support.ts";

const INDEX = "model.safetensors.index.json";
const one = packFile({ "a.weight": { dtype: "F32", shape: [2, 3] } });
const two = packFile({ "b.weight": { dtype: "BF16", shape: [4] } });
const sharded = {
  "config.json": { model_type: "mixtral" },
  [INDEX]: { weight_map: { "a.weight": "1.safetensors", "b.weight": "2.safetensors" } },
  "1.safetensors": one,
  "2.safetensors": two,
};

test("a single file is a checkpoint", async (t) => {
  const directory = await directoryOf(t, { "config.json": {}, "model.safetensors": one });
  await using checkpoint = await Checkpoint.open(directory);
  assert.deepEqual([...checkpoint.names], ["a.weight"]);
  const { dtype, shape, file } = await checkpoint.info("a.weight");
  assert.deepEqual([dtype, shape, file], ["F32", [2, 3], join(directory, "model.safetensors")]);
  assert.deepEqual((await checkpoint.readSlice("a.weight", 1)).shape, [3]);
});

test("a shard is opened when a tensor of its is asked for, and once", async (t) => {
  const directory = await directoryOf(t, sharded);
  const opener = new CountingOpener();
  const checkpoint = await Checkpoint.open(directory, opener.openSource);
  assert.deepEqual(opener.opened, []);
  assert.deepEqual([...checkpoint.names], ["a.weight", "b.weight"]);
  const files = Object.keys(sharded).map((name) => join(directory, name));
  assert.deepEqual([...checkpoint.files], files);
  await Promise.all([checkpoint.info("b.weight"), checkpoint.read("b.weight")]);
  await checkpoint.read("b.weight");
  assert.deepEqual(opener.opened, ["2.safetensors"]);
  await checkpoint[Symbol.asyncDispose]();
  await checkpoint[Symbol.asyncDispose]();
  assert.equal(opener.open, 0);
  await assert.rejects(checkpoint.read("b.weight"), DisposedError);
});

test("a closed checkpoint opens no shard, and closing waits until those open are closed", async (t) => {
  const opener = new CountingOpener();
  let closed = 0;
  const checkpoint = await Checkpoint.open(await directoryOf(t, sharded), async (path) => {
    const source = await opener.openSource(path);
    const close = async () => {
      await new Promise(setImmediate);
      closed++;
      await source[Symbol.asyncDispose]();
    };
    return { ...source, [Symbol.asyncDispose]: close };
  });
  await checkpoint.info("a.weight");
  await checkpoint[Symbol.asyncDispose]();
  assert.equal(closed, 1);
  await assert.rejects(checkpoint.read("b.weight"), DisposedError);
  assert.deepEqual(opener.opened, ["1.safetensors"]);
});

test("a shard that does not hold what the index says is refused", async (t) => {
  const directory = await directoryOf(t, { ...sharded, "2.safetensors": one });
  await using checkpoint = await Checkpoint.open(directory);
  await checkpoint.info("a.weight");
  const expected = { tensor: "b.weight", file: /2\.safetensors$/ };
  await assertFault(checkpoint.info("b.weight"), "missing-tensor", expected);
});

test("a shard that is not there, or not sound, is named", async (t) => {
  const { "2.safetensors": _, ...without } = sharded;
  await using absent = await Checkpoint.open(await directoryOf(t, without));
  await absent.info("a.weight");
  await assertFault(absent.info("b.weight"), "missing-file", { file: /2\.safetensors$/ });

  const cut = { ...sharded, "2.safetensors": two.subarray(0, two.byteLength - 1) };
  await using broken = await Checkpoint.open(await directoryOf(t, cut));
  await assertFault(broken.info("b.weight"), "truncated", { file: /2\.safetensors$/ });
});

test("an index may not lead out of the directory", async (t) => {
  const outside = ["../x.safetensors", "/etc/passwd", "a/../../x", "..", ".", "", "a\0b", 7, null];
  for (const shard of outside) {
    const index = { weight_map: { "a.weight": shard } };
    const directory = await directoryOf(t, { ...sharded, [INDEX]: index });
    const expected = { tensor: "a.weight", file: /index\.json$/ };
    await assertFault(Checkpoint.open(directory), "bad-config", expected);
  }
});

test("an index may name files below the directory, whatever dots they begin with", async (t) => {
  const weight_map = { "a.weight": "..shards/1.safetensors" };
  const directory = await directoryOf(t, { ...sharded, [INDEX]: { weight_map } });
  await using checkpoint = await Checkpoint.open(directory);
  await assertFault(checkpoint.info("a.weight"), "missing-file", { file: /\.\.shards/ });
});

test("an index that is no index is refused", async (t) => {
  for (const index of ["{", "[]", {}, { weight_map: [] }, { weight_map: null }]) {
    const directory = await directoryOf(t, { ...sharded, [INDEX]: index });
    await assertFault(Checkpoint.open(directory), "bad-config", { file: /index\.json$/ });
  }
});

test("a config or an index that is a pipe or beyond all size is refused at once", async (t) => {
  for (const name of ["config.json", INDEX]) {
    const { [name]: _, ...others } = sharded as Record<string, unknown>;
    const piped = await directoryOf(t, others);
    execFileSync("mkfifo", [join(piped, name)]);
    const expected = { message: /not a regular file/ };
    await assertFault(Checkpoint.open(piped), "missing-file", expected);

    const swollen = await directoryOf(t, sharded);
    await truncate(join(swollen, name), 2 ** 33); // a hole: takes no room on disk
    await assertFault(Checkpoint.open(swollen), "bad-config", { message: /8589934592 bytes/ });
  }
});

test("a directory without config or weights says what is missing and what to do", async (t) => {
  const config = { "config.json": {} };
  const open = async (files: Record<string, unknown>) =>
    Checkpoint.open(await directoryOf(t, files));
  await assertFault(open({}), "missing-file", { file: /config\.json$/, message: /does not exist/ });
  await assertFault(open({ "config.json": "{" }), "bad-config", { file: /config\.json$/ });
  await assertFault(open({ "config.json": "[]" }), "bad-config", { file: /config\.json$/ });
  await assertFault(open(config), "missing-file", { message: /Download/ });
  const pickled = { ...config, "pytorch_model.bin": "" };
  await assertFault(open(pickled), "missing-file", { message: /safe_serialization/ });
  const nowhere = Checkpoint.open(join(await directoryOf(t, {}), "nowhere"));
  await assertFault(nowhere, "missing-file");
});

test("a single file that is damaged is refused on opening", async (t) => {
  const bytes = one.subarray(0, 20);
  const directory = await directoryOf(t, { "config.json": {}, "model.safetensors": bytes });
  await assertFault(Checkpoint.open(directory), "truncated", { file: /model\.safetensors$/ });
});

test("a tensor nobody listed is missing from the listing", async (t) => {
  await using checkpoint = await Checkpoint.open(await directoryOf(t, sharded));
  const expected = { tensor: "c.weight", file: /index\.json$/ };
  await assertFault(checkpoint.read("c.weight"), "missing-tensor", expected);
});

test("a real index lists what its shards hold", async () => {
  const directory = fixtureDirectory("olmoe_sharded");
  const index = JSON.parse(await readFile(join(directory, INDEX), "utf8"));
  await using checkpoint = await Checkpoint.open(directory);
  assert.ok(new Set(Object.values(index.weight_map)).size > 2);
  for (const name of checkpoint.names) {
    assert.ok((await checkpoint.info(name)).file.endsWith(index.weight_map[name]));
  }
});
