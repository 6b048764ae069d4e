/**
 * Colour, where it can be seen: only when standard output is a terminal that
 * takes escape sequences and NO_COLOR (no-color.org) is not set. Everything that
 * is told by colour is told in words too.
 */

import { styleText } from "node:util";

export type Format = Parameters<typeof styleText>[0];

/** Applies a format to a text, or leaves the text alone. */
export type Style = (format: Format, text: string) => string;

const plain: Style = (_format, text) => text;
const coloured: Style = (format, text) => styleText(format, text, { validateStream: false });

/** Whether a stream is a terminal that takes escape sequences; one that says it is dumb would show them. */
export function takesEscapes(
  stream: { readonly isTTY?: boolean },
  environment: NodeJS.ProcessEnv = process.env,
): boolean {
  return stream.isTTY === true && environment["TERM"] !== "dumb";
}

/** The style for a stream, as its kind and the environment allow. */
export function styleFor(
  stream: { readonly isTTY?: boolean } = process.stdout,
  environment: NodeJS.ProcessEnv = process.env,
): Style {
  const { NO_COLOR } = environment;
  return takesEscapes(stream, environment) && (NO_COLOR === undefined || NO_COLOR === "")
    ? coloured
    : plain;
}
