/**
 * From where experts should be to where they are: pins come first, then each
 * slice keeps as many experts as it has room for and hands the rest down, from
 * hot to warm and from warm to cold, least worth first. The cold slice takes
 * whoever comes, so that nobody is left without a slice.
 */

import type { ExpertSliceId } from "../plan.ts";
import type { Placing } from "./policy.ts";

/**
 * An expert that has a place keeps it until a competitor is worth this much
 * more: two experts of nearly equal share would otherwise swap places in every plan.
 */
const RESIDENT_BONUS = 1.25;

/** Room on a slice, in experts, and why there is no more. */
export interface Room {
  readonly experts: number;
  readonly reason: string;
}

export interface Residence {
  /** By expert index. */
  readonly slices: readonly ExpertSliceId[];
  /** Why an expert is not where its policy wanted it, for those who are not. */
  readonly moved: ReadonlyMap<number, string>;
}

const NEXT_DOWN: Readonly<Record<"A" | "B", ExpertSliceId>> = { A: "B", B: "C" };

/**
 * @param pins slices that experts were sent to by hand; these are never handed down
 * @param rooms room on the slices that have a limit
 * @param before where experts were in the plan before, if there was one
 */
export function settle(
  placing: Placing,
  pins: ReadonlyMap<number, ExpertSliceId>,
  rooms: Readonly<Record<"A" | "B", Room | undefined>>,
  before: readonly ExpertSliceId[] | undefined,
): Residence {
  const slices = [...placing.slices];
  const moved = new Map<number, string>();
  for (const [expert, slice] of pins) {
    slices[expert] = slice;
    moved.set(expert, `is pinned to slice ${slice}`);
  }
  for (const slice of ["A", "B"] as const) {
    const room = rooms[slice];
    if (room === undefined) continue;
    const residents = slices.flatMap((at, expert) => (at === slice ? [expert] : []));
    const movable = residents.filter((expert) => !pins.has(expert));
    const worth = (expert: number) =>
      (placing.worth[expert] as number) * (before?.[expert] === slice ? RESIDENT_BONUS : 1);
    movable.sort((a, b) => worth(a) - worth(b) || b - a);
    const next = NEXT_DOWN[slice];
    for (const expert of movable.slice(0, Math.max(0, residents.length - room.experts))) {
      slices[expert] = next;
      const earlier = moved.get(expert);
      const now = `${placing.why(expert)}, but ${room.reason} and others come first`;
      moved.set(expert, earlier === undefined ? now : `${earlier}, and ${room.reason} as well`);
    }
  }
  return { slices, moved };
}
