/** JSON files that someone else wrote. Quoting pieces of them is errors/wording.ts's. */

import { CheckpointError } from "../errors.ts";
import { openFile } from "./safetensors/source.ts";

/**
 * Largest config or index that is read. The index of a model of a thousand shards
 * takes a few MiB; anything near this is no such file, and would only fill memory.
 */
const MAX_JSON_BYTES = 64 * 2 ** 20;

/** True for a JSON object that is no array and not null. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The JSON object in a file. @throws CheckpointError `missing-file`, `truncated` (it shrank meanwhile) or `bad-config` */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  await using source = await openFile(file);
  if (source.size > MAX_JSON_BYTES) {
    throw new CheckpointError(
      "bad-config",
      file,
      `is ${source.size} bytes long; ${MAX_JSON_BYTES} are the most that is read. It is not a config or an index.`,
    );
  }
  const bytes = Buffer.alloc(source.size);
  await source.read(bytes, 0);
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new CheckpointError("bad-config", file, "is not valid JSON.", undefined, { cause });
  }
  if (!isRecord(json)) throw new CheckpointError("bad-config", file, "is not a JSON object.");
  return json;
}
