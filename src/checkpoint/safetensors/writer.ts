/**
 * Writes a safetensors file in one go: under a temporary name in the same folder,
 * then renamed, so that a reader sees the old file or the whole new one, and a
 * failure leaves nothing behind. Renaming would put a file in the place of anything,
 * a device included, so only files are replaced, and links are followed first.
 */

import { randomUUID } from "node:crypto";
import { type FileHandle, open, readlink, realpath, rename, rm, stat } from "node:fs/promises";
import path from "node:path";
import { printablePath, quote, shown } from "../../errors/wording.ts";
import { InvalidArgumentError, ShapeError } from "../../errors.ts";
import { requireObject } from "../../execution/checks.ts";
import {
  BYTES_PER_ELEMENT,
  checkDataLength,
  type DType,
  type Tensor,
  type TensorLike,
  toTensor,
} from "../../tensor.ts";
import type { StoredDType } from "./header.ts";
import { MAX_IO_BYTES } from "./source.ts";

/** The header is padded with spaces to this, so that data the format lays out by size stays aligned in the file. */
const HEADER_ALIGNMENT = 8;

const STORED_AS: Readonly<Record<DType, StoredDType>> = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int32: "I32",
};

/**
 * Writes tensors to `file`, replacing the file that is there, whose permissions the new one gets; a
 * symbolic link stays and its target is written.
 *
 * @param tensors by name, in any order; float64 data are rounded to float32
 * @param metadata strings kept in the header under `__metadata__`
 * @throws InvalidArgumentError for a name the format reserves, metadata that is no text, an element type
 *   that does not fit its array, and if the file cannot be written
 * @throws ShapeError if a shape does not hold exactly the tensor's elements, also if their memory is transferred or resized meanwhile
 */
export async function writeSafetensors(
  file: string,
  tensors: Readonly<Record<string, TensorLike>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  if (typeof file !== "string") {
    throw new InvalidArgumentError(
      `file is ${shown(file)}; it must be the path of a file to write.`,
    );
  }
  requireNamed(tensors, "tensors", "an object of tensors by name");
  requireNamed(metadata, "metadata", "an object of texts by name, or left out");
  for (const [name, text] of Object.entries(metadata)) {
    if (typeof text === "string") continue;
    throw new InvalidArgumentError(
      `metadata[${quote(name)}] is ${shown(text)}; the safetensors format allows only text there.`,
    );
  }
  // Widest elements first, so that every tensor starts at a multiple of its element size.
  const entries = Object.entries(tensors)
    .map(([name, tensor]) => [name, toTensor(tensor, `Tensor ${quote(name)}`)] as const)
    .sort(([, a], [, b]) => BYTES_PER_ELEMENT[b.dtype] - BYTES_PER_ELEMENT[a.dtype]);
  const header = makeHeader(entries, metadata);
  const target = await writableTarget(file);
  // Not the target's own name with an ending: that may leave no room for one.
  const temporary = path.join(path.dirname(target), `.nexus-${randomUUID()}.tmp`);
  try {
    const permissions = await permissionsOf(target);
    const handle = await open(temporary, "wx", permissions);
    try {
      // The umask has taken from those that were asked for.
      if (permissions !== undefined) await handle.chmod(permissions);
      await writeAll(handle, header);
      for (const [, tensor] of entries) {
        const { data } = tensor;
        // The header says how long it was when it was checked.
        checkDataLength(tensor);
        await writeAll(handle, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
        checkDataLength(tensor);
      }
      // Renaming only orders names; without this a crash could leave the new name on old emptiness.
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
  } catch (cause) {
    await rm(temporary, { force: true });
    throw unwritable(file, cause);
  }
}

/** A Map or a list has no named fields, so that nothing of it would be written. */
function requireNamed(value: object, name: string, rule: string): void {
  requireObject(value, name, rule);
  if (!(Symbol.iterator in value)) return;
  throw new InvalidArgumentError(
    `${name} is ${shown(value)}; it must be ${rule}. Make one of a Map by Object.fromEntries().`,
  );
}

/**
 * The file that writing to `file` makes or replaces: itself, or what it links to, there or not.
 *
 * @throws InvalidArgumentError if something is there that is no regular file, or a name is too long or cannot be followed
 */
export async function writableTarget(file: string): Promise<string> {
  try {
    const found = await stat(file).catch(ifAbsent);
    if (found !== undefined) {
      if (found.isFile()) return await realpath(file);
      throw new InvalidArgumentError(
        `Cannot write ${printablePath(file)}: it is a folder, device, pipe or socket. Name a regular file, or one that is not there yet.`,
      );
    }
    const link = await readlink(file).catch(ifAbsent);
    if (link === undefined) return file;
    // Joined as text: tidying `..` away would go wrong where the folder before it is a link.
    const folder = await realpath(path.dirname(file));
    return await writableTarget(path.isAbsolute(link) ? link : `${folder}${path.sep}${link}`);
  } catch (cause) {
    throw unwritable(file, cause);
  }
}

/** Who may do what with the file; undefined where there is none yet. */
async function permissionsOf(file: string): Promise<number | undefined> {
  const found = await stat(file).catch(ifAbsent);
  return found && found.mode & 0o777;
}

function ifAbsent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== "ENOENT") throw error;
}

function unwritable(file: string, cause: unknown): InvalidArgumentError | ShapeError {
  if (cause instanceof InvalidArgumentError || cause instanceof ShapeError) return cause;
  const { code, message } = cause as NodeJS.ErrnoException;
  return new InvalidArgumentError(
    `Cannot write ${printablePath(file)} (${code ?? message}). Choose a file name in a folder that exists, has room and may be written to.`,
    { cause },
  );
}

function makeHeader(
  entries: readonly (readonly [string, Tensor])[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const fields: [string, unknown][] = [];
  if (Object.keys(metadata).length > 0) fields.push(["__metadata__", metadata]);
  let begin = 0;
  for (const [name, { dtype, shape, data }] of entries) {
    if (name === "__metadata__") {
      throw new InvalidArgumentError(
        `A tensor cannot be called "__metadata__": the safetensors format keeps that name for itself.`,
      );
    }
    const end = begin + data.byteLength;
    fields.push([name, { dtype: STORED_AS[dtype], shape, data_offsets: [begin, end] }]);
    begin = end;
  }
  const json = Buffer.from(JSON.stringify(Object.fromEntries(fields)), "utf8");
  const length = Math.ceil(json.byteLength / HEADER_ALIGNMENT) * HEADER_ALIGNMENT;
  const header = Buffer.alloc(8 + length, " ");
  header.writeBigUInt64LE(BigInt(length), 0);
  json.copy(header, 8);
  return header;
}

async function writeAll(handle: Pick<FileHandle, "write">, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await handle.write(
      bytes,
      done,
      Math.min(bytes.byteLength - done, MAX_IO_BYTES),
    );
    done += bytesWritten;
  }
}
