/**
 * How messages word what they repeat. Names, values and shapes come from files that
 * someone else wrote, and may be megabytes long, hold terminal escapes, or reorder
 * the line they stand in; whatever a message repeats of them goes through here.
 */

import { inspect } from "node:util";

/** Longest piece of a foreign value that a message repeats; real tensor names are half as long. */
const MOST_CHARACTERS = 120;

/** Longest path a message repeats: enough for any real one, far from the megabytes an index can forge. */
const MOST_PATH_CHARACTERS = 1024;

/** Longest text for a value of any other kind: room for the device or the options that were taken for something else. */
const MOST_SHOWN_CHARACTERS = 400;

/** Extents of a shape that a message repeats; a layer's tensors have three at most. */
const EXTENTS_IN_ERROR = 8;

/** Controls (C0, DEL, C1), invisible format characters with those that turn text around, line ends, halves of characters. */
export const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A value as JSON would have it, in printable characters, cut short. */
export function quote(value: unknown): string {
  const isText = typeof value === "string";
  // Cut before it is escaped too: escapes of a hundred megabytes fit no string.
  const json = toJson(isText ? value.slice(0, MOST_CHARACTERS) : value);
  const text = escapeUnprintable(json.slice(0, MOST_CHARACTERS + 1));
  if (text.length <= MOST_CHARACTERS) return text;
  const end = isText ? '..."' : "...";
  return text.slice(0, MOST_CHARACTERS - end.length) + end;
}

/** A value as messages show it: one short line, whatever it is. */
export function shown(value: unknown): string {
  if (typeof value === "string") return quote(value);
  const text = inspect(value, {
    depth: 0,
    maxArrayLength: 4,
    maxStringLength: 80,
    breakLength: Number.POSITIVE_INFINITY,
  });
  return escapeUnprintable(
    text.length > MOST_SHOWN_CHARACTERS ? `${text.slice(0, MOST_SHOWN_CHARACTERS)}...` : text,
  );
}

/** A path as it is, but for unprintable characters and for what no path needs of length. */
export function printablePath(path: string): string {
  const cut =
    path.length > MOST_PATH_CHARACTERS ? `${path.slice(0, MOST_PATH_CHARACTERS)}...` : path;
  return escapeUnprintable(cut);
}

/** `1 byte`, `2 bytes`. */
export function bytesText(count: number): string {
  return count === 1 ? "1 byte" : `${count} bytes`;
}

/** `[2, 3]`; of a forged shape with extents beyond number, the first few, whatever they are. */
export function shapeText(shape: readonly number[]): string {
  const more = shape.length > EXTENTS_IN_ERROR ? ", ..." : "";
  return `[${Array.from(shape.slice(0, EXTENTS_IN_ERROR), (extent) => shown(extent)).join(", ")}${more}]`;
}

function toJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? "undefined";
  } catch {
    // Nested deeper than the stack, which JSON.parse minds less than JSON.stringify.
    return Array.isArray(value) ? "[...]" : "{...}";
  }
}

function escapeUnprintable(text: string): string {
  return text.replace(UNPRINTABLE, (character) =>
    Array.from(
      { length: character.length },
      (_, i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, "0")}`,
    ).join(""),
  );
}
