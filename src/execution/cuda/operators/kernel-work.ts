/** A kernel, its values and its grid as work that can be issued. */

import type { Kernel } from "../bundle/kernel-set.ts";
import type { KernelValues, Launch } from "../launch/launch.ts";
import type { KernelWork, MemoryRange } from "../work.ts";
import type { OperatorContext } from "./context.ts";
import type { Grid } from "./grids.ts";

/** What a launch is written down with. */
export type LaunchContext = Pick<OperatorContext, "kernels" | "arena" | "facts">;

export interface WorkOptions {
  readonly budgeted?: boolean;
  readonly weights?: MemoryRange;
  readonly mirrors?: readonly bigint[];
}

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
  { budgeted = false, weights, mirrors }: WorkOptions = {},
): OwnKernelWork {
  const x = grid.blocks(facts.multiprocessors);
  return {
    kind: "kernel",
    name: kernel.entry.name,
    launch: arena.prepare(kernel, values, { x, y: grid.y, z: 1 }),
    blocks: grid.blocks,
    persistent: grid.persistent,
    budgeted,
    ...(weights && { weights }),
    ...(mirrors && { mirrors }),
  };
}
