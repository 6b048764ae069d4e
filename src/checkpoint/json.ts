/** JSON that someone else wrote: reading it, and quoting it in errors. */

import { readFile } from "node:fs/promises";
import { CheckpointError } from "../errors.ts";
import { unreadable } from "./safetensors/source.ts";

/** Longest piece of a foreign value that an error quotes; a forged file can hold megabytes of it. */
const QUOTE_CHARACTERS = 80;

/** True for a JSON object that is no array and not null. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value as it would stand in the file, cut short. */
export function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? "undefined";
  return text.length > QUOTE_CHARACTERS ? `${text.slice(0, QUOTE_CHARACTERS - 3)}...` : text;
}

/** The JSON object in a file. @throws CheckpointError `missing-file` or `bad-config` */
export async function readJsonObject(file: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw unreadable(file, error);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError("bad-config", file, "is not valid JSON.", undefined, { cause });
  }
  if (!isRecord(json)) throw new CheckpointError("bad-config", file, "is not a JSON object.");
  return json;
}
