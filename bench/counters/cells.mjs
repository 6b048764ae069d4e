/** Cells whose steps are looked at, written SHAPE:TOKENS:ROUTING. */

import { parseSkew, presetOf } from "../gpu/support.mjs";

/** One token, weights streamed in, and many rows, of fine experts and of coarse ones; and what skew changes. */
export const CELLS = [
  "qwen3-30b-a3b:1:uniform",
  "qwen3-30b-a3b:64:uniform",
  "qwen3-30b-a3b:1024:uniform",
  "qwen3-30b-a3b:4096:uniform",
  "qwen3-30b-a3b:4096:zipf:1.5",
  "mixtral-8x7b:64:uniform",
  "mixtral-8x7b:4096:uniform",
];

/** The fewest kernels there can be: to ask ncu what it knows. */
export const PROBE = "small:1:uniform";

/** @returns { shape, tokens, routing } @throws Error saying what is wrong with the text */
export function parseCell(text) {
  const [shape, count, ...skew] = text.split(":");
  const [tokens, routing] = [Number(count), skew.join(":")];
  presetOf(shape);
  parseSkew(routing);
  if (Number.isInteger(tokens) && tokens >= 1) return { shape, tokens, routing };
  throw new Error(`"${text}" has "${count}" tokens. Use a whole number, 1 or more.`);
}
