/**
 * How many blocks a kernel is launched with: the manifest's grid rules.
 *
 * Persistent kernels take as many blocks as their multiprocessors hold, each
 * walking through the work; never more than there can be pieces. The others have a
 * block for every piece there is room for.
 */

import { DeviceUnavailableError, InvalidArgumentError } from "../../../errors.ts";
import { type KernelEntry, REINSTALL } from "../bundle/manifest.ts";

/** Most blocks of a grid along y, and along z; along x there may be 2^31. */
const MOST_GRID_Y = 65_535;

export interface Grid {
  /** Blocks along x for so many multiprocessors. */
  blocks(multiprocessors: number): number;
  /** Whether that depends on them. */
  readonly persistent: boolean;
  readonly y: number;
  /** Pieces of work that there is room for: blocks, unless each goes through several. */
  readonly pieces: number;
}

/**
 * A persistent kernel's grid, over `rows` rows or tiles of so many columns at most. A kernel that
 * `covers` gets a block for every piece where it has all `multiprocessors` of the device: nobody is
 * to be left room, and the hardware deals uneven pieces out better than a fixed walk does. (So on every
 * stream of a group without a budget; blocks without a piece end with the kernel in front.)
 */
export function persistentGrid(
  entry: KernelEntry,
  rows: number,
  columns: number,
  multiprocessors = Number.POSITIVE_INFINITY,
): Grid {
  const { columns_per_block, covers = false } = entry.grid;
  const stretch = columns_per_block ?? incomplete(entry, "columns_per_block");
  const most = Math.max(1, rows * Math.ceil(columns / stretch));
  return {
    blocks: (share) =>
      covers && share >= multiprocessors ? most : Math.min(residentBlocks(entry, share), most),
    persistent: true,
    y: 1,
    pieces: most,
  };
}

/** The grid of a kernel that covers its work, whose extents the manifest gives in these sizes. */
export function coverGrid(entry: KernelEntry, sizes: Readonly<Record<string, number>>): Grid {
  const extent = (axis: "x" | "y"): number => {
    const rule = entry.grid[axis];
    if (rule === undefined) return axis === "x" ? incomplete(entry, axis) : 1;
    const size = sizes[rule.of] ?? incomplete(entry, `meaning to ${rule.of}`);
    return Math.max(1, Math.ceil(size / rule.by)) + rule.more;
  };
  const y = extent("y");
  if (y > MOST_GRID_Y) {
    const remedy = entry.grid.y?.of.includes("tokens") ? " Give it fewer tokens at a time." : "";
    throw new InvalidArgumentError(
      `${entry.name} would be launched with ${y} blocks along y for ${JSON.stringify(sizes)}, and CUDA takes ${MOST_GRID_Y} at most.${remedy}`,
    );
  }
  return fixedGrid(extent("x"), y);
}

/** Blocks of a kernel that so many multiprocessors hold at once. */
export function residentBlocks({ grid }: KernelEntry, multiprocessors: number): number {
  return multiprocessors * grid.blocks_per_multiprocessor;
}

export function fixedGrid(x: number, y = 1): Grid {
  return { blocks: () => x, persistent: false, y, pieces: x * y };
}

function incomplete(entry: KernelEntry, what: string): never {
  throw new DeviceUnavailableError(
    `The grid of kernel ${entry.name} cannot be told: the manifest gives no ${what}. ${REINSTALL}`,
  );
}
