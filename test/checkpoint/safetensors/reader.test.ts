import assert from "node:assert/strict";
import { open, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { MAX_HEADER_BYTES } from "../../../src/checkpoint/safetensors/header.ts";
import { SafetensorsFile } from "../../../src/checkpoint/safetensors/reader.ts";
import { FileSource } from "../../../src/checkpoint/safetensors/source.ts";
import { type CheckpointFault, DisposedError, InvalidArgumentError } from "../../../src/errors.ts";
import {
  assertFault,
  MemorySource,
  openBytes,
  packFile,
  rawFile,
  temporaryDirectory,
} from "../support.ts";

const bytesOf = (data: ArrayBufferView) =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** A sound entry of 8 bytes at the front of the data. */
const A = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
const EIGHT = new Uint8Array(8);

// ---------------------------------------------------------------------------
// What a header must not be

const bad: [what: string, bytes: Uint8Array, fault: CheckpointFault, tensor?: string][] = [
  ["an empty file", new Uint8Array(0), "truncated"],
  ["a file shorter than the length field", new Uint8Array(7), "truncated"],
  ["a length beyond the format's limit", lengthOf(MAX_HEADER_BYTES + 1), "bad-header"],
  ["a length of 2^64 - 1", new Uint8Array(16).fill(255), "bad-header"],
  ["a length beyond the file", lengthOf(1000), "truncated"],
  ["a length of 0", rawFile(""), "bad-header"],
  [
    "invalid UTF-8",
    rawFileOf(Buffer.from('{"__metadata__":{"a":"\xff"}}', "latin1")),
    "bad-header",
  ],
  ["a byte order mark", rawFile("\ufeff{}"), "bad-header"],
  ["broken JSON", rawFile('{"a":'), "bad-header"],
  ["a JSON list", rawFile([]), "bad-header"],
  ["a JSON null", rawFile("null"), "bad-header"],
  ["deeply nested JSON", rawFile("[".repeat(1e6)), "bad-header"],
  ["an entry that is a list", rawFile({ a: [] }), "bad-header", "a"],
  ["an unknown dtype", rawFile({ a: { ...A, dtype: "F31" } }, EIGHT), "wrong-dtype", "a"],
  [
    "a dtype that is an Object method",
    rawFile({ a: { ...A, dtype: "toString" } }),
    "wrong-dtype",
    "a",
  ],
  ["no dtype", rawFile({ a: { shape: [2], data_offsets: [0, 8] } }), "wrong-dtype", "a"],
  ["no shape", rawFile({ a: { dtype: "F32", data_offsets: [0, 8] } }), "bad-header", "a"],
  ["a negative extent", rawFile({ a: { ...A, shape: [-2] } }, EIGHT), "bad-header", "a"],
  ["a fractional extent", rawFile({ a: { ...A, shape: [2.5] } }, EIGHT), "bad-header", "a"],
  ["an extent in quotes", rawFile({ a: { ...A, shape: ["2"] } }, EIGHT), "bad-header", "a"],
  [
    "a product that overflows",
    rawFile({ a: { ...A, shape: [2 ** 40, 2 ** 40] } }, EIGHT),
    "bad-header",
    "a",
  ],
  [
    "a product that overflows to 0",
    rawFile({ a: { ...A, shape: [2 ** 40, 2 ** 40, 0] } }),
    "bad-header",
    "a",
  ],
  [
    "half a byte",
    rawFile({ a: { dtype: "F4", shape: [1], data_offsets: [0, 1] } }),
    "bad-header",
    "a",
  ],
  ["no offsets", rawFile({ a: { dtype: "F32", shape: [2] } }), "bad-offsets", "a"],
  ["one offset", rawFile({ a: { ...A, data_offsets: [0] } }), "bad-offsets", "a"],
  ["a negative offset", rawFile({ a: { ...A, data_offsets: [-8, 0] } }), "bad-offsets", "a"],
  ["a huge offset", rawFile({ a: { ...A, data_offsets: [0, 1e300] } }), "bad-offsets", "a"],
  [
    "offsets the wrong way round",
    rawFile({ a: { ...A, data_offsets: [8, 0] } }, EIGHT),
    "bad-offsets",
    "a",
  ],
  [
    "a span that is not the size",
    rawFile({ a: { ...A, data_offsets: [0, 4] } }, EIGHT),
    "bad-offsets",
    "a",
  ],
  [
    "offsets past the end",
    rawFile({ a: { ...A, data_offsets: [800, 808] } }, EIGHT),
    "bad-offsets",
    "a",
  ],
  [
    "a hole at the front",
    rawFile({ a: { ...A, data_offsets: [8, 16] } }, new Uint8Array(16)),
    "bad-offsets",
    "a",
  ],
  [
    "a hole in the middle",
    rawFile({ a: A, b: { ...A, data_offsets: [12, 20] } }, new Uint8Array(20)),
    "bad-offsets",
    "b",
  ],
  ["bytes left over", rawFile({ a: A }, new Uint8Array(9)), "bad-offsets"],
  ["data without tensors", rawFile({}, EIGHT), "bad-offsets"],
  [
    "an overlap",
    rawFile({ a: A, b: { ...A, data_offsets: [4, 12] } }, new Uint8Array(12)),
    "overlap",
    "b",
  ],
  ["two tensors on the same bytes", rawFile({ a: A, b: A }, EIGHT), "overlap", "b"],
  [
    "an empty tensor inside another",
    rawFile({ a: A, b: { dtype: "F32", shape: [0], data_offsets: [4, 4] } }, EIGHT),
    "overlap",
    "b",
  ],
  ["missing data", rawFile({ a: A }, new Uint8Array(7)), "truncated"],
  [
    "a tensor twice",
    rawFile(`{"a":${JSON.stringify(A)},"a":${JSON.stringify(A)}}`, EIGHT),
    "bad-header",
    "a",
  ],
  [
    "a tensor twice, once escaped",
    rawFile(`{"a":${JSON.stringify(A)},"\\u0061" :${JSON.stringify(A)}}`, EIGHT),
    "bad-header",
    "a",
  ],
  [
    "a key of an entry twice",
    rawFile('{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "bad-header",
  ],
  ["metadata that is a list", rawFile({ __metadata__: [] }), "bad-header"],
  ["metadata with a number", rawFile({ __metadata__: { a: 1 } }), "bad-header"],
];

for (const [what, bytes, fault, tensor] of bad) {
  test(`${what} is refused as ${fault}`, async () => {
    const source = new MemorySource(bytes, "some/where.safetensors");
    await assertFault(
      SafetensorsFile.open(source.path, async () => source),
      fault,
      { file: /^some\/where\.safetensors$/, ...(tensor !== undefined && { tensor }) },
    );
    assert.equal(source.closed, 1, "a file that is refused is closed");
  });
}

test("errors quote no more than a little of a forged header", async () => {
  const bytes = rawFile({ a: { ...A, shape: "x".repeat(1e6) } });
  await assert.rejects(openBytes(bytes), (error: Error) => error.message.length < 400);
});

function lengthOf(length: number): Uint8Array {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  return bytes;
}

function rawFileOf(json: Uint8Array): Uint8Array {
  const bytes = rawFile("x".repeat(json.byteLength));
  bytes.set(json, 8);
  return bytes;
}

// ---------------------------------------------------------------------------
// What is read

test("tensors are read as what they are", async () => {
  await using file = await openBytes(
    packFile({
      f64: { dtype: "F64", shape: [2], data: bytesOf(Float64Array.of(0.1, -3)) },
      f32: { dtype: "F32", shape: [1, 2], data: bytesOf(Float32Array.of(1.5, -2)) },
      bf16: { dtype: "BF16", shape: [2], data: bytesOf(Uint16Array.of(0x3f80, 0xc000)) },
      f16: { dtype: "F16", shape: [1], data: bytesOf(Uint16Array.of(0x3c00)) },
      i64: { dtype: "I64", shape: [2], data: bytesOf(BigInt64Array.of(7n, -(2n ** 31n))) },
      i32: { dtype: "I32", shape: [], data: bytesOf(Int32Array.of(-9)) },
      none: { dtype: "F32", shape: [3, 0, 2] },
    }),
  );
  const f32 = (values: number[], shape: number[]) => ({
    dtype: "float32",
    shape,
    data: Float32Array.from(values),
  });
  assert.deepEqual(await file.read("f64"), f32([Math.fround(0.1), -3], [2]));
  assert.deepEqual(await file.read("f32"), f32([1.5, -2], [1, 2]));
  assert.deepEqual(await file.read("none"), f32([], [3, 0, 2]));
  assert.deepEqual((await file.read("bf16")).data, Uint16Array.of(0x3f80, 0xc000));
  assert.equal((await file.read("bf16")).dtype, "bfloat16");
  assert.equal((await file.read("f16")).dtype, "float16");
  assert.deepEqual((await file.read("i64")).data, Int32Array.of(7, -(2 ** 31)));
  assert.deepEqual(await file.read("i32"), { dtype: "int32", shape: [], data: Int32Array.of(-9) });
});

test("an empty tensor may share its place with the next, in any order", async () => {
  const empty = { dtype: "F32", shape: [0], data_offsets: [0, 0] };
  await using file = await openBytes(rawFile({ a: A, empty }, EIGHT));
  assert.deepEqual((await file.read("empty")).shape, [0]);
});

test("a tensor may be called __proto__", async () => {
  await using file = await openBytes(
    rawFile('{"__proto__":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
  );
  assert.deepEqual((await file.read("__proto__")).shape, [2]);
});

test("types that Nexus does not read are refused when asked for, and only then", async () => {
  for (const dtype of ["U8", "BOOL", "F8_E4M3", "U64", "C64"] as const) {
    await using file = await openBytes(
      packFile({ odd: { dtype, shape: [2] }, fine: { dtype: "F32", shape: [1] } }),
    );
    await file.read("fine");
    await assertFault(file.read("odd"), "wrong-dtype", { tensor: "odd", message: /Store it as/ });
  }
});

test("an I64 value that int32 cannot hold is refused", async () => {
  const data = bytesOf(BigInt64Array.of(1n, 2n ** 31n));
  await using file = await openBytes(packFile({ ids: { dtype: "I64", shape: [2], data } }));
  await assertFault(file.read("ids"), "wrong-dtype", { tensor: "ids", message: /2147483648/ });
});

test("a tensor that is not there is named, with what is", async () => {
  await using file = await openBytes(packFile({ here: { dtype: "F32", shape: [1] } }));
  await assertFault(file.read("there"), "missing-tensor", {
    tensor: "there",
    message: /holds "here"/,
  });
  await assertFault(file.readSlice("there", 0), "missing-tensor", { tensor: "there" });
});

test("only the bytes asked for are read", async () => {
  const values = Float32Array.from({ length: 24 }, (_, i) => i);
  const bytes = packFile({
    before: { dtype: "F32", shape: [100] },
    packed: { dtype: "F32", shape: [4, 2, 3], data: bytesOf(values) },
    after: { dtype: "F32", shape: [100] },
  });
  const source = new MemorySource(bytes);
  await using file = await SafetensorsFile.open(source.path, async () => source);
  const dataStart = bytes.byteLength - 224 * 4;
  const total = () => source.reads.reduce((sum, { length }) => sum + length, 0);
  assert.equal(total(), dataStart, "opening reads the header and nothing else");

  source.reads.length = 0;
  assert.deepEqual((await file.readSlice("packed", 2)).data, values.slice(12, 18));
  assert.deepEqual((await file.readSlice("packed", 2)).shape, [2, 3]);
  const slice = { position: dataStart + 448, length: 24 };
  assert.deepEqual(source.reads, [slice, slice]);
  for (const index of [-1, 4, 0.5, Number.NaN]) {
    await assert.rejects(file.readSlice("packed", index), InvalidArgumentError);
  }
});

test("a scalar and an empty tensor have no slices", async () => {
  await using file = await openBytes(
    packFile({ scalar: { dtype: "F32", shape: [] }, none: { dtype: "F32", shape: [0, 4] } }),
  );
  for (const [name, shape] of [
    ["scalar", "[]"],
    ["none", "[0, 4]"],
  ] as const) {
    await assert.rejects(file.readSlice(name, 0), {
      name: "InvalidArgumentError",
      message: `Tensor "${name}" of shape ${shape} has no slice 0; read it whole, with read().`,
    });
  }
});

test("a closed file says so, and can be closed again", async () => {
  const file = await openBytes(packFile({ a: { dtype: "F32", shape: [1] } }));
  await file[Symbol.asyncDispose]();
  await file[Symbol.asyncDispose]();
  await assert.rejects(file.read("a"), DisposedError);
});

// ---------------------------------------------------------------------------
// Files and the system under them

test("what is not a readable file is missing", async (t) => {
  const directory = await temporaryDirectory(t);
  const absent = join(directory, "absent.safetensors");
  await assertFault(SafetensorsFile.open(absent), "missing-file", { message: /does not exist/ });
  await assertFault(SafetensorsFile.open(directory), "missing-file", { message: /not a regular/ });
  await assertFault(SafetensorsFile.open("a\0b"), "missing-file", { message: /cannot be read/ });
  for (const path of [undefined, null, 7, {}]) {
    await assert.rejects(SafetensorsFile.open(path as never), {
      name: "InvalidArgumentError",
      message: /^path is .*; it must be the path of a safetensors file\.$/,
    });
  }
});

test("short reads are put together, a file that shrank is truncated, a system error is named", async () => {
  const bytes = packFile({ a: { dtype: "F32", shape: [50] } }).map(
    (byte, i) => byte ^ (i > 90 ? i : 0),
  );
  let end = bytes.byteLength;
  let failure: Error | undefined;
  let closes = 0;
  const handle = {
    async read(target: Uint8Array, offset: number, length: number, position: number) {
      if (failure) throw failure;
      const bytesRead = Math.max(0, Math.min(3, length, end - position));
      target.set(bytes.subarray(position, position + bytesRead), offset);
      return { bytesRead, buffer: target };
    },
    async close() {
      closes++;
    },
  } as unknown as Awaited<ReturnType<typeof open>>;
  const source = new FileSource("slow.safetensors", bytes.byteLength, handle);
  const file = await SafetensorsFile.open(source.path, async () => source);
  assert.deepEqual(bytesOf((await file.read("a")).data), new Uint8Array(bytes.slice(-200)));

  end -= 10;
  await assertFault(file.read("a"), "truncated", { file: /slow/, message: /10 bytes early/ });
  failure = Object.assign(new Error("no"), { code: "EIO" });
  await assertFault(file.read("a"), "missing-file", { message: /EIO/ });
  await file[Symbol.asyncDispose]();
  await file[Symbol.asyncDispose]();
  assert.equal(closes, 1);
});

test("tensors beyond 2 and 4 GiB are found", async (t) => {
  const path = join(await temporaryDirectory(t), "large.safetensors");
  const large = 5 * 2 ** 30;
  const header = rawFile({
    large: { dtype: "U8", shape: [large], data_offsets: [0, large] },
    far: { dtype: "F32", shape: [2], data_offsets: [large, large + 8] },
  });
  await writeFile(path, header);
  await truncate(path, header.byteLength + large); // a hole: takes no room on disk
  const handle = await open(path, "r+");
  await handle.write(bytesOf(Float32Array.of(3, 4)), 0, 8, header.byteLength + large);
  await handle.close();
  await using file = await SafetensorsFile.open(path);
  assert.deepEqual((await file.read("far")).data, Float32Array.of(3, 4));
});

const GIB = 2 ** 30;

/** A file whose data is all claim and no bytes. */
function claiming(dtype: "BF16" | "F32", size: number): Promise<SafetensorsFile> {
  const shape = [size / (dtype === "F32" ? 4 : 2)];
  const header = rawFile({ all: { dtype, shape, data_offsets: [0, size] } });
  const source = new MemorySource(header);
  const enormous = {
    path: source.path,
    size: header.byteLength + size,
    read: source.read.bind(source),
    [Symbol.asyncDispose]: () => source[Symbol.asyncDispose](),
  };
  return SafetensorsFile.open(source.path, async () => enormous);
}

test("a tensor larger than memory is refused in words", async () => {
  await using file = await claiming("BF16", 8192 * GIB);
  await assertFault(file.read("all"), "unsupported", { tensor: "all", message: /can hold/ });
});

test("a tensor that memory holds and typed arrays do not is refused in words", async (t) => {
  const size = 16 * GIB;
  const fits = () => new Uint8Array(size).byteLength === size;
  try {
    if (fits()) return t.skip("this version of Node has typed arrays of 16 GiB");
  } catch {}
  await using file = await claiming("F32", size);
  const message = /takes 17179869184 bytes/;
  await assertFault(file.read("all"), "unsupported", { tensor: "all", message });
});
