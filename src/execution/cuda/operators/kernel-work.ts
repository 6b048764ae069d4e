/** A kernel, its values and its grid as work that can be issued. */

import type { Kernel } from "../bundle/kernel-set.ts";
import type { KernelValues, Launch } from "../launch/launch.ts";
import type { KernelWork, MemoryRange } from "../work.ts";
import type { OperatorContext } from "./context.ts";
import { type Grid, residentBlocks } from "./grids.ts";

/** What a launch is written down with. */
export type LaunchContext = Pick<OperatorContext, "kernels" | "arena" | "facts">;

export interface WorkOptions {
  readonly budgeted?: boolean;
  readonly weights?: MemoryRange;
  readonly mapped?: bigint;
  readonly mirrors?: readonly bigint[];
  readonly tidying?: KernelValues;
  readonly tidies?: boolean;
  readonly tidiesUp?: boolean;
  readonly tidiesOwn?: boolean;
  /** Whether it may start beside the end of the kernel in front; absent: where that gains something. */
  readonly early?: boolean;
  /**
   * Whether it may do so behind products only: it reads what routing and buckets wrote before it waits for the
   * kernel in front (kernels/triton/overlap.py).
   */
  readonly behindProducts?: boolean;
}

/** Operators whose kernels are products: what they write before their end is rows alone. */
const PRODUCTS: readonly unknown[] = ["project", "project_packed"];

/**
 * Measured on an H100, for second products: with room for 10 pieces a block early starts gain up to 1.5 %, with room for
 * 17 they lose 1 to 3 %.
 */
const MOST_ROUNDS_EARLY = 12;

/** A kernel's work, and its memory of the arena. */
export interface OwnKernelWork extends KernelWork {
  readonly launch: Launch;
}

/** Writes a launch down with the grid of a whole device. */
export function kernelWork(
  { arena, facts }: Pick<LaunchContext, "arena" | "facts">,
  kernel: Kernel,
  values: KernelValues,
  grid: Grid,
  { budgeted = false, early, behindProducts = false, ...rest }: WorkOptions = {},
): OwnKernelWork {
  const x = grid.blocks(facts.multiprocessors);
  const room = residentBlocks(kernel.entry, facts.multiprocessors);
  return {
    kind: "kernel",
    name: kernel.entry.name,
    launch: arena.prepare(kernel, values, { x, y: grid.y, z: 1 }),
    blocks: grid.blocks,
    persistent: grid.persistent,
    budgeted,
    early: (blocks, front) =>
      (front.product || !behindProducts) &&
      (early ?? gainsByStartingEarly(kernel, blocks, grid, room)),
    product: PRODUCTS.includes(kernel.entry.selects["operator"]),
    ...rest,
  };
}

/**
 * Blocks that start early settle on whichever multiprocessors are free first. Fewer than there is room for
 * would crowd there, and leave the others idle once they may begin. And for a persistent grid that goes through
 * many pieces each, what a launch takes is nothing, and blocks in their usual places were faster.
 */
function gainsByStartingEarly(
  { entry }: Kernel,
  x: number,
  { y, persistent, pieces }: Grid,
  room: number,
): boolean {
  if (persistent && pieces > MOST_ROUNDS_EARLY * room) return false;
  return entry.grid.blocks_per_multiprocessor === 1 || x * y >= room;
}
