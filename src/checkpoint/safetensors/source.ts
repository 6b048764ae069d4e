/**
 * Bytes by position: the little that the reader needs of a file. An interface, so
 * that a test can count what is read or hand bytes out in small pieces, and so that
 * nothing above this file knows about file handles.
 */

import { type FileHandle, open, stat } from "node:fs/promises";
import { bytesText } from "../../errors/wording.ts";
import { CheckpointError } from "../../errors.ts";

/** Closing it twice is fine. */
export interface ByteSource extends AsyncDisposable {
  /** What errors call it. */
  readonly path: string;
  readonly size: number;
  /**
   * Fills `target` with the bytes from `position` on.
   * @throws CheckpointError `truncated` if they end early, `missing-file` if the system cannot read them
   */
  read(target: Uint8Array, position: number): Promise<void>;
}

export type OpenSource = (path: string) => Promise<ByteSource>;

/** Most bytes moved by one call: Node takes no length from 2 GiB up, and Linux stops a page short of that. */
export const MAX_IO_BYTES = 2 ** 30;

/** @throws CheckpointError `missing-file` if there is no readable regular file at `path` */
export const openFile: OpenSource = async (path) => {
  try {
    // Asked before opening, because opening a pipe would wait for a writer.
    const found = await stat(path);
    if (!found.isFile()) throw new CheckpointError("missing-file", path, "is not a regular file.");
    return new FileSource(path, found.size, await open(path, "r"));
  } catch (error) {
    throw unreadable(path, error);
  }
};

/** A file on disk. */
export class FileSource implements ByteSource {
  readonly path: string;
  readonly size: number;
  readonly #handle: Pick<FileHandle, "read" | "close">;
  #closed: Promise<void> | undefined;

  constructor(path: string, size: number, handle: Pick<FileHandle, "read" | "close">) {
    this.path = path;
    this.size = size;
    this.#handle = handle;
  }

  async read(target: Uint8Array, position: number): Promise<void> {
    let done = 0;
    while (done < target.byteLength) {
      const want = Math.min(target.byteLength - done, MAX_IO_BYTES);
      const { bytesRead } = await this.#handle
        .read(target, done, want, position + done)
        .catch((error: unknown) => {
          throw unreadable(this.path, error);
        });
      if (bytesRead === 0) {
        throw new CheckpointError(
          "truncated",
          this.path,
          `ends at byte ${position + done}, ${bytesText(target.byteLength - done)} early. It was cut short after it was opened.`,
        );
      }
      done += bytesRead;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#handle.close();
    return this.#closed;
  }
}

/** A system error as a CheckpointError that names the file; other CheckpointErrors pass through. */
export function unreadable(path: string, error: unknown): CheckpointError {
  if (error instanceof CheckpointError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const why =
    code === "ENOENT"
      ? "does not exist. Check the path."
      : code === "ENOTDIR"
        ? "does not exist: a part of its path is a file, not a folder."
        : `cannot be read (${code ?? message}).`;
  return new CheckpointError("missing-file", path, why, undefined, { cause: error });
}
