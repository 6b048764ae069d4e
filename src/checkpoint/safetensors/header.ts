/**
 * The header of a safetensors file, taken as hostile until proven sound.
 *
 * The format (github.com/huggingface/safetensors) is 8 bytes of little-endian
 * header length, that many bytes of JSON, and the tensors' bytes end to end. The
 * JSON maps each name to `{dtype, shape, data_offsets: [begin, end]}`, offsets
 * counted from the end of the header, beside an optional `__metadata__` map of
 * strings. The tensors must tile the data exactly: no overlap, no hole, nothing
 * left over. That rule is what makes a truncated file tell itself from a header
 * that lies: if the tensors tile, but past the end of the file, bytes are missing.
 *
 * Nothing here reads a file, and nothing here looks at a tensor's bytes.
 */

import { bytesText, quote } from "../../errors/wording.ts";
import { CheckpointError, type CheckpointFault } from "../../errors.ts";
import { isRecord } from "../json.ts";

/** Longest header the format allows, in bytes; it keeps a forged length from claiming the memory. */
export const MAX_HEADER_BYTES = 100_000_000;

/** Element types of the format and their size in bits. */
export const BITS_PER_ELEMENT = {
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

/** An element type as the format spells it. */
export type StoredDType = keyof typeof BITS_PER_ELEMENT;

/** Where a tensor lies in its file and what it is. */
export interface TensorInfo {
  readonly dtype: StoredDType;
  readonly shape: readonly number[];
  /** First byte, counted from the beginning of the file. */
  readonly start: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/**
 * Checks a header and lists its tensors.
 *
 * @param file named in errors
 * @param bytes the JSON alone, without the length in front of it
 * @param dataStart where the tensors' bytes begin in the file
 * @param fileSize size of the whole file in bytes
 * @throws CheckpointError `bad-header`, `wrong-dtype` (an element type the format does not have),
 *   `bad-offsets`, `overlap` or `truncated`, naming the tensor where one is at fault
 */
export function parseHeader(
  file: string,
  bytes: Uint8Array,
  dataStart: number,
  fileSize: number,
): SafetensorsHeader {
  const text = decodeText(file, bytes);
  const json = parseObject(file, text);
  rejectDuplicateKeys(file, text);

  let metadata: ReadonlyMap<string, string> = new Map();
  const tensors = new Map<string, TensorInfo>();
  for (const [name, value] of Object.entries(json)) {
    if (name === "__metadata__") metadata = parseMetadata(file, value);
    else tensors.set(name, parseEntry(file, name, value, dataStart));
  }
  checkTiling(file, tensors, dataStart, fileSize);
  return { metadata, tensors };
}

function decodeText(file: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw badHeader(file, "the header is not valid UTF-8", undefined, { cause });
  }
}

function parseObject(file: string, text: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw badHeader(file, "the header is not valid JSON", undefined, { cause });
  }
  if (!isRecord(json)) throw badHeader(file, "the header is not a JSON object");
  return json;
}

/**
 * JSON.parse keeps the last of two equal keys without a word, so that two readers
 * could see two different tensors under one name. `text` is known to be valid JSON,
 * in which a string followed by a colon is a key and nothing else is.
 */
function rejectDuplicateKeys(file: string, text: string): void {
  const objects: Set<string>[] = [];
  let at = 0;
  while (at < text.length) {
    const character = text[at];
    if (character === "{") objects.push(new Set());
    else if (character === "}") objects.pop();
    else if (character === '"') {
      const start = at;
      for (at++; text[at] !== '"'; at++) if (text[at] === "\\") at++;
      let next = at + 1;
      while (" \t\n\r".includes(text[next] ?? "x")) next++;
      if (text[next] === ":") {
        const key = JSON.parse(text.slice(start, at + 1)) as string;
        if (objects.at(-1)?.has(key)) {
          throw badHeader(
            file,
            `the header has the key ${quote(key)} twice in one object`,
            objects.length === 1 ? key : undefined,
          );
        }
        objects.at(-1)?.add(key);
      }
    }
    at++;
  }
}

function parseMetadata(file: string, value: unknown): ReadonlyMap<string, string> {
  if (!isRecord(value)) throw badHeader(file, "__metadata__ is not a JSON object");
  const metadata = new Map<string, string>();
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== "string") {
      throw badHeader(
        file,
        `__metadata__ has ${quote(text)} under ${quote(key)}; only strings are allowed`,
      );
    }
    metadata.set(key, text);
  }
  return metadata;
}

function parseEntry(file: string, name: string, value: unknown, dataStart: number): TensorInfo {
  if (!isRecord(value)) throw badHeader(file, "its entry is not a JSON object", name);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isStoredDType(dtype)) {
    throw new CheckpointError(
      "wrong-dtype",
      file,
      `${quote(dtype)} is not an element type of the safetensors format`,
      name,
    );
  }
  if (!Array.isArray(shape) || !shape.every(isExtent)) {
    throw badHeader(file, `its shape ${quote(shape)} is not a list of whole numbers`, name);
  }
  const byteLength = byteLengthOf(dtype, shape);
  if (byteLength === undefined) {
    throw badHeader(
      file,
      `its shape ${quote(shape)} is not a countable number of bytes of ${dtype}`,
      name,
    );
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isExtent)) {
    throw badOffsets(file, `its data_offsets ${quote(offsets)} are not two whole numbers`, name);
  }
  const [begin, end] = offsets as [number, number];
  if (end - begin !== byteLength) {
    throw badOffsets(
      file,
      `its data_offsets [${begin}, ${end}] span ${bytesText(end - begin)}, but ${dtype} of shape ${quote(shape)} takes ${byteLength}`,
      name,
    );
  }
  return { dtype, shape, start: dataStart + begin, byteLength };
}

/** Undefined if a partial product overflows, even where a later extent of 0 would hide it, or half a byte is left. */
function byteLengthOf(dtype: StoredDType, shape: readonly number[]): number | undefined {
  let bits: number = BITS_PER_ELEMENT[dtype];
  for (const extent of shape) {
    bits *= extent;
    if (!Number.isSafeInteger(bits)) return undefined;
  }
  return bits % 8 === 0 ? bits / 8 : undefined;
}

function checkTiling(
  file: string,
  tensors: ReadonlyMap<string, TensorInfo>,
  dataStart: number,
  fileSize: number,
): void {
  const inOrder = [...tensors].sort(
    ([, a], [, b]) => a.start - b.start || a.byteLength - b.byteLength,
  );
  let end = dataStart;
  let previous = "";
  for (const [name, { start, byteLength }] of inOrder) {
    if (start < end) {
      throw new CheckpointError(
        "overlap",
        file,
        `its bytes from ${start - dataStart} overlap those of ${quote(previous)}, which end at ${end - dataStart}`,
        name,
      );
    }
    if (start > end) {
      const where = start >= fileSize ? ", past the end of the file" : "";
      throw badOffsets(
        file,
        `its bytes begin at ${start - dataStart}${where}, but the tensor before it ends at ${end - dataStart}; the format allows no holes`,
        name,
      );
    }
    end = start + byteLength;
    previous = name;
  }
  if (end > fileSize) {
    throw new CheckpointError(
      "truncated",
      file,
      `its tensors take ${bytesText(end - dataStart)}, and it ends ${bytesText(end - fileSize)} early. Download or copy the file again.`,
    );
  }
  if (end < fileSize) {
    throw badOffsets(
      file,
      `after the last tensor there is no end but ${bytesText(fileSize - end)} more; the format allows no holes`,
    );
  }
}

function isStoredDType(value: unknown): value is StoredDType {
  return typeof value === "string" && Object.hasOwn(BITS_PER_ELEMENT, value);
}

function isExtent(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function badHeader(file: string, message: string, tensor?: string, options?: ErrorOptions) {
  return fault("bad-header", file, message, tensor, options);
}

function badOffsets(file: string, message: string, tensor?: string) {
  return fault("bad-offsets", file, message, tensor);
}

function fault(
  kind: CheckpointFault,
  file: string,
  message: string,
  tensor?: string,
  options?: ErrorOptions,
): CheckpointError {
  return new CheckpointError(
    kind,
    file,
    `${message}. The file is damaged or not a safetensors file.`,
    tensor,
    options,
  );
}
