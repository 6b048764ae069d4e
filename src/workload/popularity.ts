/**
 * How popular each expert is: the skew that a workload has. Real MoE models load
 * their experts unevenly, roughly by a power law, and which experts are busy
 * changes with the text; both are what hot, warm and cold slices are for.
 *
 * Popularity is a wish. Logits that realise it are made in logits.ts, hidden
 * states that realise it through a real gate in hidden-states.ts.
 */

import { InvalidArgumentError } from "../errors.ts";
import type { Random } from "./random.ts";

/** `uniform`: every expert alike. `zipf`: the r-th most popular expert (from 1) has weight 1 / r^exponent. */
export type RoutingSkew =
  | { readonly kind: "uniform" }
  | { readonly kind: "zipf"; readonly exponent: number };

export class ExpertPopularity {
  readonly skew: RoutingSkew;
  /** Expert indices, most popular first. */
  readonly ranking: readonly number[];
  /** Probability of each expert by index; adds up to 1. */
  readonly probabilities: Float64Array;

  private constructor(skew: RoutingSkew, ranking: readonly number[]) {
    this.skew = skew;
    this.ranking = ranking;
    this.probabilities = new Float64Array(ranking.length);
    let total = 0;
    for (let rank = 1; rank <= ranking.length; rank++) total += weightOfRank(skew, rank);
    ranking.forEach((expert, i) => {
      this.probabilities[expert] = weightOfRank(skew, i + 1) / total;
    });
  }

  /** Chance decides which experts are the popular ones. */
  static draw(skew: RoutingSkew, experts: number, random: Random): ExpertPopularity {
    return new ExpertPopularity(skew, random.permutation(experts));
  }

  /** The same skew with the hot set moved: the experts of the less popular half become the most popular. */
  moved(): ExpertPopularity {
    const half = Math.floor(this.ranking.length / 2);
    return new ExpertPopularity(this.skew, [
      ...this.ranking.slice(half),
      ...this.ranking.slice(0, half),
    ]);
  }
}

/**
 * Reads `"uniform"` or `"zipf:1.0"`.
 *
 * @throws InvalidArgumentError for anything else
 */
export function parseSkew(text: string): RoutingSkew {
  if (text === "uniform") return { kind: "uniform" };
  const [kind, value, ...rest] = text.split(":");
  const exponent = value === undefined || value.trim() === "" ? Number.NaN : Number(value);
  if (kind === "zipf" && rest.length === 0 && Number.isFinite(exponent) && exponent >= 0) {
    return { kind: "zipf", exponent };
  }
  throw new InvalidArgumentError(
    `"${text}" is no routing. Use "uniform" or "zipf:S" with an exponent S of 0 or more, such as zipf:1.0.`,
  );
}

/** The text that `parseSkew` reads. */
export function formatSkew(skew: RoutingSkew): string {
  return skew.kind === "uniform" ? "uniform" : `zipf:${skew.exponent}`;
}

function weightOfRank(skew: RoutingSkew, rank: number): number {
  return skew.kind === "uniform" ? 1 : rank ** -skew.exponent;
}
