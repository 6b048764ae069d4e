/**
 * Reads tensors out of one safetensors file, each by its own byte range and only
 * when asked. The header is read and checked in full on opening (header.ts); the
 * data is not touched until then, and never mapped or cached.
 *
 * Values come out as Tensor (tensor.ts): 16-bit floats as their bits, F64 rounded
 * to float32, I64 as int32 where it fits. The bytes are taken as they lie, which is
 * right on little-endian machines, the only ones Node ships WebAssembly SIMD for.
 */

import { bytesText, quote, shapeText, shown } from "../../errors/wording.ts";
import { CheckpointError, DisposedError, InvalidArgumentError } from "../../errors.ts";
import type { DType, Tensor, TensorData } from "../../tensor.ts";
import { MAX_HEADER_BYTES, parseHeader, type StoredDType, type TensorInfo } from "./header.ts";
import { type ByteSource, type OpenSource, openFile } from "./source.ts";

/** Bytes in front of the header that give its length. */
const LENGTH_BYTES = 8;

/** How many names an error lists when the one asked for is not there. */
const NAMES_IN_ERROR = 8;

const READ_AS: Partial<Record<StoredDType, DType>> = {
  F64: "float32",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I64: "int32",
  I32: "int32",
};

/** The element type a stored type is read as; undefined if Nexus does not read it. */
export function readAs(dtype: StoredDType): DType | undefined {
  return READ_AS[dtype];
}

/** One open safetensors file. Close it when done; closing twice is fine. */
export class SafetensorsFile implements AsyncDisposable {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #source: ByteSource;
  #closed = false;

  private constructor(
    source: ByteSource,
    tensors: ReadonlyMap<string, TensorInfo>,
    metadata: ReadonlyMap<string, string>,
  ) {
    this.#source = source;
    this.tensors = tensors;
    this.metadata = metadata;
  }

  /**
   * Opens a file and checks its header.
   *
   * @throws CheckpointError `missing-file`, `truncated`, `bad-header`, `bad-offsets`, `overlap` or `wrong-dtype`
   * @throws InvalidArgumentError if the path is none
   */
  static async open(path: string, openSource: OpenSource = openFile): Promise<SafetensorsFile> {
    if (typeof path !== "string") {
      throw new InvalidArgumentError(
        `path is ${shown(path)}; it must be the path of a safetensors file.`,
      );
    }
    const source = await openSource(path);
    try {
      const { tensors, metadata } = await readHeader(source);
      return new SafetensorsFile(source, tensors, metadata);
    } catch (error) {
      await source[Symbol.asyncDispose]();
      throw error;
    }
  }

  get path(): string {
    return this.#source.path;
  }

  /** @throws CheckpointError `missing-tensor` */
  info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (info !== undefined) return info;
    const names = [...this.tensors.keys()];
    const listed = names.slice(0, NAMES_IN_ERROR).map(quote).join(", ");
    const more = names.length > NAMES_IN_ERROR ? ` and ${names.length - NAMES_IN_ERROR} more` : "";
    throw new CheckpointError(
      "missing-tensor",
      this.path,
      `is not in the file, which holds ${listed || "no tensor at all"}${more}.`,
      name,
    );
  }

  /**
   * Reads a whole tensor.
   *
   * @throws CheckpointError `missing-tensor`, `wrong-dtype` (a type Nexus does not read), `truncated`,
   *   or `unsupported` for a tensor larger than the process can hold
   */
  async read(name: string): Promise<Tensor> {
    const { shape, start, byteLength } = this.info(name);
    return this.#read(name, shape, start, byteLength);
  }

  /**
   * Reads one slice along the first dimension: `tensor[index]`, of shape `shape.slice(1)`.
   *
   * @throws CheckpointError as `read` does
   * @throws InvalidArgumentError if the tensor has no such slice
   */
  async readSlice(name: string, index: number): Promise<Tensor> {
    const { shape, start, byteLength } = this.info(name);
    const [count = 0, ...rest] = shape;
    if (!Number.isInteger(index) || index < 0 || index >= count) {
      const remedy = count > 0 ? `slices go from 0 to ${count - 1}` : "read it whole, with read()";
      throw new InvalidArgumentError(
        `Tensor ${quote(name)} of shape ${shapeText(shape)} has no slice ${shown(index)}; ${remedy}.`,
      );
    }
    const sliceBytes = byteLength / count;
    return this.#read(name, rest, start + index * sliceBytes, sliceBytes);
  }

  async #read(
    name: string,
    shape: readonly number[],
    start: number,
    byteLength: number,
  ): Promise<Tensor> {
    if (this.#closed) throw new DisposedError(`Safetensors file ${this.path}`);
    const stored = this.info(name).dtype;
    const dtype = readAs(stored);
    if (dtype === undefined) {
      throw new CheckpointError(
        "wrong-dtype",
        this.path,
        `is stored as ${stored}, which Nexus does not read. Store it as F32, BF16 or F16 (whole numbers as I32).`,
        name,
      );
    }
    const bytes = this.#allocating(name, byteLength, () => new Uint8Array(byteLength));
    await this.#source.read(bytes, start);
    const decode = () => this.#decode(name, bytes.buffer, stored);
    return { dtype, shape, data: this.#allocating(name, byteLength, decode) };
  }

  /** Does what makes room for a tensor; memory and typed arrays both have an end, which Node reports as a RangeError. */
  #allocating<T>(name: string, byteLength: number, work: () => T): T {
    try {
      return work();
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
      throw new CheckpointError(
        "unsupported",
        this.path,
        `takes ${byteLength} bytes, more than this process can hold in one piece.`,
        name,
        { cause },
      );
    }
  }

  #decode(name: string, buffer: ArrayBuffer, stored: StoredDType): TensorData {
    switch (stored) {
      case "F64":
        return Float32Array.from(new Float64Array(buffer));
      case "F32":
        return new Float32Array(buffer);
      case "I32":
        return new Int32Array(buffer);
      case "I64":
        return this.#narrow(name, new BigInt64Array(buffer));
      default:
        return new Uint16Array(buffer);
    }
  }

  #narrow(name: string, wide: BigInt64Array): Int32Array {
    const narrow = new Int32Array(wide.length);
    for (let i = 0; i < wide.length; i++) {
      narrow[i] = Number(wide[i]);
      if (BigInt(narrow[i] as number) !== wide[i]) {
        throw new CheckpointError(
          "wrong-dtype",
          this.path,
          `is stored as I64 and holds ${wide[i]}, which int32 cannot.`,
          name,
        );
      }
    }
    return narrow;
  }

  /** Closes the file; harmless when repeated. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#source[Symbol.asyncDispose]();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

async function readHeader(source: ByteSource) {
  const { path, size } = source;
  if (size < LENGTH_BYTES) {
    throw new CheckpointError(
      "truncated",
      path,
      `is ${bytesText(size)} long; a safetensors file has at least ${LENGTH_BYTES}. Download or copy it again.`,
    );
  }
  const prefix = new Uint8Array(LENGTH_BYTES);
  await source.read(prefix, 0);
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES) {
    throw new CheckpointError(
      "bad-header",
      path,
      `claims a header of ${length} bytes; the format allows ${MAX_HEADER_BYTES}. It is not a safetensors file.`,
    );
  }
  const dataStart = LENGTH_BYTES + Number(length);
  if (dataStart > size) {
    throw new CheckpointError(
      "truncated",
      path,
      `ends inside its header, ${bytesText(dataStart - size)} early. Download or copy it again.`,
    );
  }
  const json = new Uint8Array(Number(length));
  await source.read(json, LENGTH_BYTES);
  return parseHeader(path, json, dataStart, size);
}
