/**
 * Partitions: green contexts, each with multiprocessors of its own.
 *
 * The driver does not take multiprocessors by number. It cuts the device into equal
 * groups and a remainder, and only pieces of one and the same cut can be joined into
 * a context. So one cut serves all partitions, and each takes the next groups until
 * it has enough.
 *
 * Two cuts are tried. The usual one has groups of 8 on an H200 (15, and 12
 * multiprocessors over), within which blocks of a cluster can meet. Where sizes do
 * not fit it, the fine one takes multiprocessors apart regardless of clusters (66
 * groups of 2), which Nexus's kernels do not use.
 *
 * Sizes that add up to the whole device need not fit even that: rounded up to groups they
 * may be more than there are. Then the fine cut is divided as nearly as its groups allow.
 */

import { InvalidArgumentError } from "../../../errors.ts";
import type { Checked } from "./checked.ts";
import type { Partition } from "./driver.ts";
import { release } from "./errors.ts";
import type { PartitionCalls } from "./ffi.ts";
import { DEVICE_RESOURCE } from "./structs.ts";

const RESOURCE_MULTIPROCESSORS = 1;
const SPLIT_USUAL = 0;
/** CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING */
const SPLIT_FINE = 1;
/** The driver raises it to the least that it hands out. */
const SMALLEST_GROUP = 1;
/** The one flag there is, and it is required. */
const GREEN_DEFAULT_STREAM = 1;

/** How the device is cut. */
export interface Split {
  /** Multiprocessors of each group; all groups are alike. */
  readonly groupSize: number;
  readonly groups: number;
  /** Multiprocessors left over, which form one more, different group. */
  readonly remainder: number;
}

/** Groups of one partition: `count` from `first` on, and perhaps the remainder. */
export interface Share {
  readonly first: number;
  readonly count: number;
  readonly remainder: boolean;
}

/**
 * Divides a cut among partitions of at least the given sizes.
 *
 * The remainder is left alone where there are groups enough: the driver promises less for it
 * (it may lack the room for clusters).
 *
 * @returns the share of each, in order, or null if they do not fit
 */
export function shareOut(split: Split, sizes: readonly number[]): readonly Share[] | null {
  const noHolder = -1;
  const holders = split.remainder > 0 ? sizes.length : 0;
  for (let holder = noHolder; holder < holders; holder++) {
    let first = 0;
    const shares = sizes.map((size, i) => {
      const remainder = i === holder;
      const wanted = remainder ? Math.max(0, size - split.remainder) : size;
      const share = { first, count: Math.ceil(wanted / split.groupSize), remainder };
      first += share.count;
      return share;
    });
    if (first <= split.groups) return shares;
  }
  return null;
}

/**
 * Divides a cut among partitions of nearly the given sizes: each has the whole groups that are
 * in its size, but at least one, and what is left goes to those that lack most.
 *
 * @returns the share of each, in order, or null if together they are more than the device has,
 *   or there are more of them than groups
 */
export function shareOutNearly(split: Split, sizes: readonly number[]): readonly Share[] | null {
  const { groupSize, groups, remainder } = split;
  const wanted = sizes.reduce((sum, size) => sum + size, 0);
  if (wanted > groups * groupSize + remainder || sizes.length > groups) return null;
  const counts = sizes.map((size) => Math.max(1, Math.floor(size / groupSize)));
  const lacking = (i: number) => (sizes[i] as number) - (counts[i] as number) * groupSize;
  // Those that lack least first.
  const order = [...sizes.keys()].sort((a, b) => lacking(a) - lacking(b));
  let left = groups - counts.reduce((sum, count) => sum + count, 0);
  for (; left < 0; left++) take(counts, counts.indexOf(Math.max(...counts)), -1);
  for (let i = order.pop(); i !== undefined && left > 0 && lacking(i) > 0; i = order.pop()) {
    take(counts, i, 1);
    left -= 1;
  }
  let first = 0;
  return counts.map((count) => {
    first += count;
    return { first: first - count, count, remainder: false };
  });
}

function take(counts: number[], at: number, change: 1 | -1): void {
  counts[at] = (counts[at] as number) + change;
}

/** A cut with the structures that stand for its pieces. */
interface Pieces extends Split {
  /** One CUdevResource after the other, the remainder's last. */
  readonly resources: Uint8Array;
}

/**
 * Makes a green context of at least so many multiprocessors for each size, or, where such do not
 * fit beside each other, of nearly so many. No two share one.
 *
 * @throws InvalidArgumentError if they do not fit the device
 * @throws CudaError
 */
export function createPartitions(
  checked: Checked,
  calls: PartitionCalls,
  ordinal: number,
  sizes: readonly number[],
): readonly Partition[] {
  if (sizes.length === 0 || !sizes.every((size) => Number.isSafeInteger(size) && size > 0)) {
    throw new InvalidArgumentError(
      `Partitions of [${sizes.join(", ")}] multiprocessors: give one positive integer for each.`,
    );
  }
  const device = checked.device(ordinal);
  const tried: Pieces[] = [];
  for (const flags of [SPLIT_USUAL, SPLIT_FINE]) {
    const pieces = cut(checked, calls, device, flags);
    const shares = shareOut(pieces, sizes);
    if (shares !== null) return makeContexts(checked, calls, device, pieces, shares);
    tried.push(pieces);
  }
  const finest = tried.at(-1) as Pieces;
  const nearly = shareOutNearly(finest, sizes);
  if (nearly !== null) return makeContexts(checked, calls, device, finest, nearly);
  throw new InvalidArgumentError(
    `Partitions of [${sizes.join(", ")}] multiprocessors do not fit: ` +
      `the device gives out ${tried.map(describe).join(", or ")}. Ask for fewer.`,
  );
}

function describe(split: Split): string {
  return `${split.groups} groups of ${split.groupSize} and ${split.remainder} more`;
}

function cut(checked: Checked, calls: PartitionCalls, device: number, flags: number): Pieces {
  const { size } = DEVICE_RESOURCE;
  const whole = new Uint8Array(size);
  checked.check(
    "cuDeviceGetDevResource",
    calls.cuDeviceGetDevResource(device, whole, RESOURCE_MULTIPROCESSORS),
  );
  const split = (target: Uint8Array | null, rest: Uint8Array | null): number => {
    const code = calls.cuDevSmResourceSplitByCount(
      target,
      checked.first,
      whole,
      rest,
      flags,
      SMALLEST_GROUP,
    );
    checked.check("cuDevSmResourceSplitByCount", code);
    return checked.int32(0);
  };
  // Without a place for them the driver only counts the groups.
  const most = split(null, null);
  const resources = new Uint8Array((most + 1) * size);
  const remainder = new Uint8Array(size);
  checked.setInt32(0, most);
  const groups = split(resources, remainder);
  resources.set(remainder, groups * size);
  return {
    resources,
    groups,
    groupSize: multiprocessorsOf(resources, 0),
    remainder: multiprocessorsOf(resources, groups),
  };
}

/** 0 for a piece that is not there: its type is 0 and so are its bytes. */
function multiprocessorsOf(resources: Uint8Array, index: number): number {
  const at = resources.byteOffset + index * DEVICE_RESOURCE.size;
  return new DataView(resources.buffer, at).getUint32(DEVICE_RESOURCE.multiprocessors, true);
}

function makeContexts(
  checked: Checked,
  calls: PartitionCalls,
  device: number,
  pieces: Pieces,
  shares: readonly Share[],
): Partition[] {
  const made: Partition[] = [];
  try {
    for (const share of shares) made.push(makeContext(checked, calls, device, pieces, share));
    return made;
  } catch (error) {
    for (const partition of made) release(() => destroyPartition(checked, calls, partition));
    throw error;
  }
}

function makeContext(
  checked: Checked,
  calls: PartitionCalls,
  device: number,
  pieces: Pieces,
  share: Share,
): Partition {
  const { size } = DEVICE_RESOURCE;
  const count = share.count + (share.remainder ? 1 : 0);
  const taken = new Uint8Array(count * size);
  const { first } = share;
  taken.set(pieces.resources.subarray(first * size, (first + share.count) * size));
  if (share.remainder) {
    const at = pieces.groups * size;
    taken.set(pieces.resources.subarray(at, at + size), share.count * size);
  }
  checked.check(
    "cuDevResourceGenerateDesc",
    calls.cuDevResourceGenerateDesc(checked.first, taken, count),
  );
  const description = checked.handle(0);
  checked.check(
    "cuGreenCtxCreate",
    calls.cuGreenCtxCreate(checked.first, description, device, GREEN_DEFAULT_STREAM),
  );
  return {
    context: checked.handle(0),
    multiprocessors: share.count * pieces.groupSize + (share.remainder ? pieces.remainder : 0),
  };
}

export function destroyPartition(
  checked: Checked,
  calls: PartitionCalls,
  partition: Partition,
): void {
  checked.check("cuGreenCtxDestroy", calls.cuGreenCtxDestroy(partition.context));
}
