/**
 * Dividing a whole number of equal pieces among claims.
 *
 * Largest remainder (Hamilton's method) by weight, then floors: who falls below
 * its floor is lifted to it, and the pieces for that, as well as for targets
 * that do not all fit, come from the lowest priority first. The pieces may be
 * sixteenths of a thread, multiprocessors or bytes; this file does not care.
 */

/** What one party asks for. */
export interface Claim {
  /** Part of what no target takes, relative to the other weights; 0 or more. */
  readonly weight: number;
  /** Pieces it gets in any case. */
  readonly floor: number;
  /** Pieces it gets if there is room, in place of a part by weight. */
  readonly target?: number | undefined;
  /** The lowest gives first; of equals, the one listed last. */
  readonly priority: number;
}

/**
 * @param total number of pieces; the floors must fit in it
 * @returns pieces per claim. They add up to `total` unless every claim that
 *   weighs anything has a target and the targets are less.
 */
export function apportion(total: number, claims: readonly Claim[]): number[] {
  const pieces = claims.map((claim) => Math.max(claim.target ?? 0, claim.floor));
  let targeted = 0;
  claims.forEach((claim, i) => {
    if (claim.target !== undefined) targeted += pieces[i] as number;
  });
  const weights = claims.map((claim) => (claim.target === undefined ? claim.weight : 0));
  largestRemainder(Math.max(0, total - targeted), weights).forEach((part, i) => {
    pieces[i] = Math.max(pieces[i] as number, part);
  });

  let excess = pieces.reduce((sum, part) => sum + part, 0) - total;
  const givers = claims.map((_, i) => i).reverse();
  givers.sort((a, b) => (claims[a] as Claim).priority - (claims[b] as Claim).priority);
  for (const giver of givers) {
    if (excess <= 0) break;
    const given = Math.min(excess, (pieces[giver] as number) - (claims[giver] as Claim).floor);
    pieces[giver] = (pieces[giver] as number) - given;
    excess -= given;
  }
  return pieces;
}

/** Splits `total` in proportion to the weights; what rounding down leaves goes to the largest fractions, of equals to the first. */
function largestRemainder(total: number, weights: readonly number[]): number[] {
  const sum = weights.reduce((a, b) => a + b, 0);
  if (sum === 0) return weights.map(() => 0);
  const exact = weights.map((weight) => (weight / sum) * total);
  const parts = exact.map(Math.floor);
  const left = total - parts.reduce((a, b) => a + b, 0);
  const byFraction = weights.map((_, i) => i);
  const fraction = (i: number) => (exact[i] as number) - (parts[i] as number);
  byFraction.sort((a, b) => fraction(b) - fraction(a));
  for (const i of byFraction.slice(0, left)) parts[i] = (parts[i] as number) + 1;
  return parts;
}
