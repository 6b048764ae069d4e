/** What the checkpoint tests build on: raw safetensors bytes, files that live in memory and count, tiny checkpoints. */

import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { BITS_PER_ELEMENT, type StoredDType } from "../../src/checkpoint/safetensors/header.ts";
import { SafetensorsFile } from "../../src/checkpoint/safetensors/reader.ts";
import { type ByteSource, openFile } from "../../src/checkpoint/safetensors/source.ts";
import { CheckpointError, type CheckpointFault } from "../../src/errors.ts";
import { sizeOf } from "../../src/tensor.ts";

/** A safetensors file from a header as it should stand in the file (text, or JSON to be) and the data after it. */
export function rawFile(header: unknown, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const json = Buffer.from(text, "utf8");
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.byteLength));
  return Buffer.concat([length, json, data]);
}

/** A tensor for `packFile`: zeros unless `data` is given. */
export interface RawTensor {
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  readonly data?: Uint8Array;
}

/** A sound safetensors file of tensors of any stored type. */
export function packFile(tensors: Readonly<Record<string, RawTensor>>): Uint8Array {
  const header: Record<string, unknown> = {};
  const pieces: Uint8Array[] = [];
  let begin = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const bytes = data ?? new Uint8Array((sizeOf(shape) * BITS_PER_ELEMENT[dtype]) / 8);
    header[name] = { dtype, shape, data_offsets: [begin, begin + bytes.byteLength] };
    begin += bytes.byteLength;
    pieces.push(bytes);
  }
  return rawFile(header, Buffer.concat(pieces));
}

/** Bytes served from memory, with a note of every range that was read. */
export class MemorySource implements ByteSource {
  readonly path: string;
  readonly reads: { position: number; length: number }[] = [];
  closed = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array, path = "memory.safetensors") {
    this.#bytes = bytes;
    this.path = path;
  }

  get size(): number {
    return this.#bytes.byteLength;
  }

  async read(target: Uint8Array, position: number): Promise<void> {
    assert.ok(position + target.byteLength <= this.size, "read past the end");
    this.reads.push({ position, length: target.byteLength });
    target.set(this.#bytes.subarray(position, position + target.byteLength));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.closed++;
  }
}

/** A safetensors file that lies in memory. */
export function openBytes(bytes: Uint8Array): Promise<SafetensorsFile> {
  const source = new MemorySource(bytes);
  return SafetensorsFile.open(source.path, async () => source);
}

/** Opens real files and counts, by file name, how often they were opened and what was read. */
export class CountingOpener {
  readonly opened: string[] = [];
  readonly bytes = new Map<string, number>();
  readonly #open = new Set<ByteSource>();

  /** Files that are open now. */
  get open(): number {
    return this.#open.size;
  }

  readonly openSource = async (path: string): Promise<ByteSource> => {
    const source = await openFile(path);
    const name = path.split("/").at(-1) as string;
    this.opened.push(name);
    this.#open.add(source);
    const { bytes } = this;
    const close = () => {
      this.#open.delete(source);
      return source[Symbol.asyncDispose]();
    };
    return {
      path: source.path,
      size: source.size,
      read: (target, position) => {
        bytes.set(name, (bytes.get(name) ?? 0) + target.byteLength);
        return source.read(target, position);
      },
      [Symbol.asyncDispose]: close,
    };
  };
}

/** Asserts that work fails with a CheckpointError of one fault, naming the tensor and saying something that matches. */
export async function assertFault(
  work: Promise<unknown>,
  fault: CheckpointFault,
  expected: { readonly tensor?: string; readonly file?: RegExp; readonly message?: RegExp } = {},
): Promise<void> {
  await assert.rejects(work, (error) => {
    assert.ok(error instanceof CheckpointError, `not a CheckpointError: ${error}`);
    assert.equal(error.fault, fault, error.message);
    assert.equal(error.tensor, expected.tensor, error.message);
    if (expected.file) assert.match(error.file, expected.file);
    if (expected.message) assert.match(error.message, expected.message);
    return true;
  });
}

/** A fresh directory that goes away with the test. */
export async function temporaryDirectory(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "nexus-checkpoint-"));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Writes files into a fresh directory: objects as JSON, bytes as they are. */
export async function directoryOf(
  t: TestContext,
  files: Readonly<Record<string, unknown>>,
): Promise<string> {
  const directory = await temporaryDirectory(t);
  for (const [name, content] of Object.entries(files)) {
    const isRaw = typeof content === "string" || content instanceof Uint8Array;
    await writeFile(join(directory, name), isRaw ? content : JSON.stringify(content));
  }
  return directory;
}

/** Config of a two-layer Mixtral of two experts, 4 wide and 3 deep. */
export const TINY_CONFIG = {
  model_type: "mixtral",
  hidden_size: 4,
  intermediate_size: 3,
  num_hidden_layers: 2,
  num_local_experts: 2,
  num_experts_per_tok: 1,
};

/** Tensors of both its layers, all zero. */
export function tinyTensors(dtype: StoredDType = "BF16"): Record<string, RawTensor> {
  const tensors: Record<string, RawTensor> = {};
  for (const layer of [0, 1]) {
    const block = `model.layers.${layer}.block_sparse_moe`;
    tensors[`${block}.gate.weight`] = { dtype, shape: [2, 4] };
    for (const expert of [0, 1]) {
      tensors[`${block}.experts.${expert}.w1.weight`] = { dtype, shape: [3, 4] };
      tensors[`${block}.experts.${expert}.w2.weight`] = { dtype, shape: [4, 3] };
      tensors[`${block}.experts.${expert}.w3.weight`] = { dtype, shape: [3, 4] };
    }
  }
  return tensors;
}
