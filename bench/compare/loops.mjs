/**
 * The cells of the original system's table: its three configurations at batches of 32 to 512,
 * beside loops over the experts only. The baseline is weak, so these cells are a part of their own.
 */

import { SHAPES } from "./cells.mjs";

export const CONFIGURATIONS = ["small", "medium", "large"];
export const BATCHES = [32, 128, 512];

/** The loop as it is commonly written, the fastest that PyTorch can be given, and what it offers without one: bench/peers. */
export const LOOP_PEERS = ["loop", "loop-sorted", "dense"];

/** [{ shape, cells }], energy in every cell. */
export function loopCells() {
  return CONFIGURATIONS.map((name) => ({
    shape: SHAPES.find((shape) => shape.name === name),
    cells: BATCHES.map((tokens) => ({ tokens, routing: "uniform", energy: true })),
  }));
}
