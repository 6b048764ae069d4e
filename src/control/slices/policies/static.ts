/**
 * Never moves: experts are ranked once and the device is divided by fixed
 * shares. The yardstick for the other policies, and the right choice where the
 * load is known and graphs must not change.
 */

import { shown } from "../../../errors/wording.ts";
import { InvalidArgumentError } from "../../../errors.ts";
import { type Fields, requireFields } from "../../../execution/checks.ts";
import type { ExpertSliceId } from "../../plan.ts";
import type { Division, LoadView, Placing, SlicePolicy, WorkBySlice } from "../policy.ts";
import { AUXILIARY_SHARE } from "../policy.ts";

/**
 * The first quarter of the ranking is hot, the next quarter warm. Under Zipf's
 * law over 64 experts the first quarter gets 71 % of the tokens and the second 14 %.
 */
const LAST_RANK: Readonly<Record<"A" | "B", number>> = { A: 1 / 4, B: 1 / 2 };

/** Near the shares of the tokens above; cold experts wait on memory and get more than theirs. */
const SHARES: Readonly<Record<ExpertSliceId, number>> = { A: 5 / 8, B: 1 / 8, C: 1 / 8 };

const OPTIONS: Fields<{ ranking?: readonly number[] }> = { ranking: true };

/** Places experts once, by a ranking, and divides the device by fixed shares. */
export class StaticPolicy implements SlicePolicy {
  readonly name = "static";
  /** Rank of every expert, 0 first; undefined until it is known. */
  #ranks: Int32Array | undefined;

  /**
   * @param ranking every expert index once, busiest first; without it the first
   *   load that tells experts apart is ranked by its shares
   * @throws InvalidArgumentError if it is not a permutation, and for unknown options
   */
  constructor(options: { readonly ranking?: readonly number[] } = {}) {
    requireFields(options, "options", "an object, or left out", OPTIONS);
    const { ranking } = options;
    if (ranking !== undefined) this.#ranks = ranksOf(ranking);
  }

  place({ experts, shares }: LoadView): Placing {
    const ranks = this.#ranks ?? ranksOf(byShare(shares));
    if (ranks.length !== experts) {
      throw new InvalidArgumentError(
        `The fixed ranking names ${ranks.length} experts but the load has ${experts}.`,
      );
    }
    // An even load ranks nobody, so the ranking waits for one that is not.
    if (shares.some((share) => share !== shares[0])) this.#ranks = ranks;
    return {
      slices: Array.from(ranks, (rank) =>
        rank < experts * LAST_RANK.A ? "A" : rank < experts * LAST_RANK.B ? "B" : "C",
      ),
      worth: ranks.map((rank) => experts - rank),
      why: (expert) =>
        `is number ${(ranks[expert] as number) + 1} of ${experts} in the fixed ranking`,
    };
  }

  divide(_view: LoadView, work: WorkBySlice): Division {
    const share = (slice: ExpertSliceId) => (work[slice].experts > 0 ? SHARES[slice] : 0);
    return {
      weights: { A: share("A"), B: share("B"), C: share("C"), D: AUXILIARY_SHARE },
      holdSmallChanges: false,
      why: "its fixed share",
    };
  }
}

/** Expert indices by falling share, the lower index first among equals. */
function byShare(shares: Float64Array): number[] {
  const order = Array.from(shares, (_, expert) => expert);
  return order.sort((a, b) => (shares[b] as number) - (shares[a] as number));
}

function ranksOf(ranking: readonly number[]): Int32Array {
  if (!Array.isArray(ranking)) {
    throw new InvalidArgumentError(
      `ranking is ${shown(ranking)}; it must be a list of expert indices, busiest first.`,
    );
  }
  const ranks = new Int32Array(ranking.length).fill(-1);
  // Not forEach(), which passes over what a sparse array leaves out.
  for (const [rank, expert] of ranking.entries()) {
    if (ranks[expert] !== -1) {
      throw new InvalidArgumentError(
        `The ranking has ${shown(expert)} at place ${rank}; it must name each expert from 0 to ${ranking.length - 1} once.`,
      );
    }
    ranks[expert] = rank;
  }
  return ranks;
}
