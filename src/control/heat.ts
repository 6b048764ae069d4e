/**
 * From an expert's share of the tokens to hot, warm or cold.
 *
 * All thresholds are multiples of the even share 1 / E, so the same numbers mean
 * the same for 8 experts and for 512, whatever the skew. Entering and leaving a
 * class have thresholds of their own: an expert whose share wanders about one of
 * them stays where it is until it reaches the other.
 *
 * This file only compares numbers; who averages the shares, and over what, is
 * the profiler's business.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { type Fields, isAmount, requireFields } from "../execution/checks.ts";
import type { Heat } from "./plan.ts";

/** Thresholds on an expert's share of the tokens, as multiples of the even share 1 / E. */
export interface HeatMultiples {
  /** At or above this an expert becomes hot. */
  readonly hotEnter: number;
  /** Below this a hot expert stops being hot. */
  readonly hotLeave: number;
  /** At or below this an expert becomes cold. */
  readonly coldEnter: number;
  /** Above this a cold expert stops being cold. */
  readonly coldLeave: number;
}

/**
 * Twice and half the even share: an expert at 2 / E brings twice the rows of the
 * average one, which is where a larger row tile starts to pay, and one at half of
 * it fills no tile of the average size. On a Zipf load of 128 experts that makes
 * 11 hot and 81 cold; on an even load every expert is warm. The leaving
 * thresholds lie half way back to the even share: a quarter of the even share
 * (cold) or half of it (hot) of room, several standard deviations of the
 * profiler's average for batches of a few hundred tokens.
 */
export const HEAT_MULTIPLES: HeatMultiples = {
  hotEnter: 2,
  hotLeave: 1.5,
  coldEnter: 0.5,
  coldLeave: 0.75,
};

const FIELDS: Fields<HeatMultiples> = {
  hotEnter: true,
  hotLeave: true,
  coldEnter: true,
  coldLeave: true,
};

/** The thresholds for a given number of experts. */
export class HeatScale {
  readonly multiples: HeatMultiples;
  readonly #hotEnter: number;
  readonly #hotLeave: number;
  readonly #coldEnter: number;
  readonly #coldLeave: number;

  /** @throws InvalidArgumentError for unknown thresholds, and unless 0 <= coldEnter < coldLeave <= 1 <= hotLeave < hotEnter */
  constructor(experts: number, multiples: HeatMultiples = HEAT_MULTIPLES) {
    requireFields(multiples, "thresholds", "multiples of the even share by name", FIELDS);
    const { hotEnter, hotLeave, coldEnter, coldLeave } = multiples;
    const ordered =
      [hotEnter, hotLeave, coldEnter, coldLeave].every(isAmount) &&
      coldEnter < coldLeave &&
      coldLeave <= 1 &&
      1 <= hotLeave &&
      hotLeave < hotEnter;
    if (!ordered) {
      throw new InvalidArgumentError(
        `Heat thresholds are hotEnter ${shown(hotEnter)}, hotLeave ${shown(hotLeave)}, coldLeave ${shown(coldLeave)}, coldEnter ${shown(coldEnter)}; as multiples of the even share they must satisfy 0 <= coldEnter < coldLeave <= 1 <= hotLeave < hotEnter.`,
      );
    }
    this.multiples = { hotEnter, hotLeave, coldEnter, coldLeave };
    const even = 1 / experts;
    // With one or two experts no share can reach twice the even one; there, half
    // way between the even share and everything counts as hot.
    this.#hotEnter = Math.min(hotEnter * even, (even + 1) / 2);
    const room = this.#hotEnter - even;
    this.#hotLeave = even + (room * (hotLeave - 1)) / (hotEnter - 1);
    this.#coldEnter = coldEnter * even;
    this.#coldLeave = coldLeave * even;
  }

  /** @param previous the class it is in now; absent: there is nothing to hold on to */
  classify(share: number, previous?: Heat): Heat {
    if (share >= (previous === "hot" ? this.#hotLeave : this.#hotEnter)) return "hot";
    if (share <= (previous === "cold" ? this.#coldLeave : this.#coldEnter)) return "cold";
    return "warm";
  }
}
