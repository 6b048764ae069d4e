import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import {
  chmod,
  lstat,
  mkdir,
  readdir,
  readFile,
  realpath,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { SafetensorsFile } from "../../../src/checkpoint/safetensors/reader.ts";
import { writeSafetensors } from "../../../src/checkpoint/safetensors/writer.ts";
import { InvalidArgumentError, ShapeError } from "../../../src/errors.ts";
import { sizeOf, type Tensor } from "../../../src/tensor.ts";
import { rejectsWith } from "../../support/rejects.ts";
import { temporaryDirectory } from "../support.ts";

const shape = fc.array(fc.nat(4), { maxLength: 4 });
const tensor: fc.Arbitrary<Tensor> = shape.chain((shape) => {
  const length = sizeOf(shape);
  const size = { minLength: length, maxLength: length };
  const bits = fc.uint16Array(size);
  return fc.oneof(
    fc.float32Array(size).map((data) => ({ dtype: "float32" as const, shape, data })),
    fc.int32Array(size).map((data) => ({ dtype: "int32" as const, shape, data })),
    bits.map((data) => ({ dtype: "bfloat16" as const, shape, data })),
    bits.map((data) => ({ dtype: "float16" as const, shape, data })),
  );
});
const name = fc.string({ unit: "binary", maxLength: 12 }).filter((n) => n !== "__metadata__");

test("what is written is read back, bit for bit", async (t) => {
  const file = join(await temporaryDirectory(t), "out.safetensors");
  const written = fc.uniqueArray(fc.tuple(name, tensor), { maxLength: 6, selector: ([n]) => n });
  const metadata = fc.dictionary(fc.string(), fc.string(), { maxKeys: 3, noNullPrototype: true });
  await fc.assert(
    fc.asyncProperty(written, metadata, async (entries, metadata) => {
      await writeSafetensors(file, Object.fromEntries(entries), metadata);
      await using back = await SafetensorsFile.open(file);
      assert.deepEqual([...back.tensors.keys()].sort(), entries.map(([n]) => n).sort());
      for (const [name, tensor] of entries) assert.deepEqual(await back.read(name), tensor);
      assert.deepEqual(Object.fromEntries(back.metadata), metadata);
    }),
    { numRuns: 60 },
  );
});

test("every tensor lies at a multiple of its element size, the data at a multiple of 8", async (t) => {
  const file = join(await temporaryDirectory(t), "out.safetensors");
  const one = (dtype: Tensor["dtype"], data: Tensor["data"]) => ({
    dtype,
    shape: [data.length],
    data,
  });
  await writeSafetensors(file, {
    half: one("bfloat16", new Uint16Array(3)),
    ids: one("int32", new Int32Array(1)),
    full: one("float32", new Float32Array(1)),
  });
  const dataStart = 8 + Number((await readFile(file)).readBigUInt64LE());
  assert.equal(dataStart % 8, 0);
  await using back = await SafetensorsFile.open(file);
  for (const [name, width] of Object.entries({ half: 2, ids: 4, full: 4 })) {
    assert.equal(back.info(name).start % width, 0, name);
  }
});

test("views into larger and shared memory are written by their own bytes", async (t) => {
  const file = join(await temporaryDirectory(t), "out.safetensors");
  const shared = new Float32Array(new SharedArrayBuffer(16), 4, 2);
  shared.set([5, 6]);
  const data = Float32Array.of(1, 2, 3, 4).subarray(1, 3);
  await writeSafetensors(file, {
    view: { dtype: "float32", shape: [2], data },
    shared: { dtype: "float32", shape: [2], data: shared },
  });
  await using back = await SafetensorsFile.open(file);
  assert.deepEqual((await back.read("view")).data, Float32Array.of(2, 3));
  assert.deepEqual((await back.read("shared")).data, Float32Array.of(5, 6));
});

const one: Tensor = { dtype: "float32", shape: [1], data: Float32Array.of(1) };

test("a file that cannot be written leaves nothing behind and the old one alone", async (t) => {
  const directory = await temporaryDirectory(t);
  await assert.rejects(writeSafetensors(join(directory, "no", "out"), { one }), (error: Error) => {
    assert.ok(error instanceof InvalidArgumentError);
    assert.match(error.message, /Cannot write .*ENOENT/);
    return true;
  });
  await mkdir(join(directory, "taken"));
  await writeFile(join(directory, "taken", "inside"), "");
  await assert.rejects(writeSafetensors(join(directory, "taken"), { one }), InvalidArgumentError);
  assert.deepEqual(await readdir(directory), ["taken"]);

  const file = join(directory, "out");
  await writeSafetensors(file, { one });
  const before = await readFile(file);
  const cut = { ...one, shape: [2] };
  await assert.rejects(writeSafetensors(file, { cut }), ShapeError);
  await assert.rejects(writeSafetensors(file, { __metadata__: one }), InvalidArgumentError);
  assert.deepEqual(await readFile(file), before);
  assert.deepEqual((await readdir(directory)).sort(), ["out", "taken"]);
});

test("a failure half way removes the temporary file", async (t) => {
  const directory = await temporaryDirectory(t);
  // An array whose bytes cannot be had once the header is out.
  let during: string[] = [];
  const data = Object.defineProperty(Float32Array.of(1), "byteOffset", {
    get() {
      during = readdirSync(directory);
      throw new Error("gone");
    },
  });
  const fickle: Tensor = { dtype: "float32", shape: [1], data };
  await assert.rejects(writeSafetensors(join(directory, "out"), { fickle }), /gone/);
  assert.match(during.join(), /^\.nexus-.*\.tmp$/);
  assert.deepEqual(await readdir(directory), []);
});

test("data that is not of the element type it says is refused before anything is written", async (t) => {
  const directory = await temporaryDirectory(t);
  const file = join(directory, "out");
  const wrong = [
    { dtype: "bfloat16", shape: [1], data: Float32Array.of(1) },
    { dtype: "float32", shape: [1], data: Uint16Array.of(1) },
    { dtype: "int32", shape: [1], data: Float32Array.of(1) },
    { dtype: "float8", shape: [1], data: Float32Array.of(1) },
  ] as Tensor[];
  for (const tensor of wrong) {
    await assert.rejects(writeSafetensors(file, { "a\u001b": tensor }), (error: Error) => {
      assert.ok(error instanceof InvalidArgumentError);
      assert.match(error.message, /"a\\u001b"/);
      return true;
    });
  }
  assert.deepEqual(await readdir(directory), []);
});

test("a link stays, and what it leads to is written, there or not", async (t) => {
  const directory = await temporaryDirectory(t);
  const inside = join(directory, "inside");
  await mkdir(inside);
  await writeFile(join(inside, "old"), "older");
  await symlink("inside/old", join(directory, "link"));
  await symlink("new", join(inside, "dangling"));
  await symlink("inside/dangling", join(directory, "twice"));
  for (const [link, target] of [
    ["link", "old"],
    ["twice", "new"],
  ] as const) {
    await writeSafetensors(join(directory, link), { one });
    assert.ok((await lstat(join(directory, link))).isSymbolicLink());
    assert.equal(await realpath(join(directory, link)), await realpath(join(inside, target)));
    await using back = await SafetensorsFile.open(join(inside, target));
    assert.deepEqual((await back.read("one")).data, one.data);
  }
  assert.deepEqual((await readdir(directory)).sort(), ["inside", "link", "twice"]);
  assert.deepEqual((await readdir(inside)).sort(), ["dangling", "new", "old"]);

  await symlink("loop", join(directory, "loop"));
  await assert.rejects(writeSafetensors(join(directory, "loop"), { one }), /Cannot write .*ELOOP/);
});

test("a file that is replaced keeps its permissions, behind a link too; a new one has those of any", async (t) => {
  const directory = await temporaryDirectory(t);
  const permissions = async (file: string) => (await stat(file)).mode & 0o777;
  const file = join(directory, "out");
  await symlink("out", join(directory, "link"));
  await writeFile(join(directory, "any"), "");
  await writeSafetensors(file, { one });
  assert.equal(await permissions(file), await permissions(join(directory, "any")));
  for (const mode of [0o600, 0o444, 0o666, 0o640]) {
    await chmod(file, mode);
    for (const path of [file, join(directory, "link")]) {
      await writeSafetensors(path, { one });
      assert.equal(await permissions(file), mode);
    }
  }
});

test("what is not a regular file is left as it is, behind a link too", async (t) => {
  const directory = await temporaryDirectory(t);
  const pipe = join(directory, "pipe");
  execFileSync("mkfifo", [pipe]);
  await symlink("pipe", join(directory, "link"));
  for (const file of [pipe, join(directory, "link")]) {
    await assert.rejects(writeSafetensors(file, { one }), (error: Error) => {
      assert.ok(error instanceof InvalidArgumentError);
      assert.match(error.message, /Name a regular file/);
      return true;
    });
  }
  assert.ok((await lstat(pipe)).isFIFO());
  assert.deepEqual((await readdir(directory)).sort(), ["link", "pipe"]);
});

test("the longest name a folder takes can be written", async (t) => {
  const directory = await temporaryDirectory(t);
  await writeSafetensors(join(directory, "x".repeat(255)), { one });
  assert.deepEqual(await readdir(directory), ["x".repeat(255)]);
  const tooLong = writeSafetensors(join(directory, "x".repeat(256)), { one });
  await assert.rejects(tooLong, /Cannot write .*ENAMETOOLONG/);
});

test("what has no named fields is refused, as nothing of it would be written", async (t) => {
  const directory = await temporaryDirectory(t);
  const file = join(directory, "out");
  // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
  const as = (value: unknown): any => value;
  const refused = (message: RegExp, ...given: unknown[]) =>
    rejectsWith(
      () => writeSafetensors(...(given as Parameters<typeof writeSafetensors>)),
      message,
      InvalidArgumentError,
    );
  await refused(/^tensors is Map.*fromEntries/, file, new Map([["one", one]]));
  await refused(/^tensors is undefined/, file);
  await refused(/^metadata is Map.*fromEntries/, file, { one }, new Map([["format", "pt"]]));
  await refused(/^metadata\["k"\] is 5; .*only text/, file, { one }, { k: 5 });
  await refused(/^file is 5; .*path/, as(5), { one });
  assert.deepEqual(await readdir(directory), []);
});

test("tensors whose memory shrinks, grows or is gone meanwhile: the old file stays", async (t) => {
  const folder = await temporaryDirectory(t);
  const file = join(folder, "kept.safetensors");
  const old = { a: { dtype: "float32", shape: [2], data: Float32Array.of(1, 2) } } as const;
  await writeSafetensors(file, old);
  const changes: ((buffer: ArrayBuffer & { resize(bytes: number): void }) => void)[] = [
    (buffer) => buffer.resize(40),
    (buffer) => buffer.resize(4096),
    (buffer) => structuredClone(buffer, { transfer: [buffer] }),
  ];
  for (const change of changes) {
    // Node 20 has resizable buffers, the types of its language version do not.
    const buffer = Reflect.construct(ArrayBuffer, [1024, { maxByteLength: 8192 }]);
    const data = new Float32Array(buffer);
    const writing = writeSafetensors(file, { a: { dtype: "float32", shape: [256], data } });
    change(buffer);
    await rejectsWith(() => writing, /has 256 elements, but its data now has \d+\./, ShapeError);
    assert.deepEqual(await readdir(folder), ["kept.safetensors"]);
    await using back = await SafetensorsFile.open(file);
    assert.deepEqual(await back.read("a"), old.a);
  }
});
