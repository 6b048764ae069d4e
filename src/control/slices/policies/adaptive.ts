/**
 * Learns from measurements. Experts are placed by their heat, as everywhere. How the
 * device is divided is found by trying (division-search.ts), and so is whether to
 * divide it at all (contest.ts): where it is not, slices take turns with the whole
 * device, which serves best whatever fills it by itself. While that is ahead the
 * search for a better division has the few plans that measuring divisions gets.
 *
 * Cost is the time of a step per token, and where joules of both sides are measured,
 * time and energy multiplied (the energy-delay product). Joules count if all steps
 * since the reading before ran one way: so on a GPU, whose counter wants a second, time
 * decides alone. With the same seed and the same measurements it makes the same decisions.
 */

import { shown } from "../../../errors/wording.ts";
import { InvalidArgumentError } from "../../../errors.ts";
import { type Fields, requireFields } from "../../../execution/checks.ts";
import type { Realisation } from "../../../execution/device.ts";
import type {
  Division,
  LoadView,
  Measurement,
  Placing,
  SlicePolicy,
  WorkBySlice,
} from "../policy.ts";
import { percent, placeByHeat, weighByWork } from "../policy.ts";
import { Arm } from "./arm.ts";
import { Contest } from "./contest.ts";
import { DivisionSearch } from "./division-search.ts";

/** What a measurement is of: a division, or none. */
type Side = Arm | "undivided";

const OPTIONS: Fields<{ seed?: number }> = { seed: true };

/** Tries divisions out, and keeps the one under which steps are fastest. */
export class AdaptivePolicy implements SlicePolicy {
  readonly name = "adaptive";
  readonly #random: () => number;
  readonly #search: DivisionSearch;
  readonly #contest = new Contest();
  /** What was in force when the plan now running was made: whether not dividing is an option, and whether that is an open question. */
  #contested = false;
  #open = false;
  /** Tokens since the last joules, and the one side they ran under; null: there were several. */
  #metered: { readonly side: Side | null; readonly tokens: number } | undefined;

  /** @param options.seed of the random turns, a whole number @throws InvalidArgumentError for another, and for unknown options */
  constructor(options: { readonly seed?: number } = {}) {
    requireFields(options, "options", "an object, or left out", OPTIONS);
    const { seed = 1 } = options;
    if (!Number.isSafeInteger(seed)) {
      throw new InvalidArgumentError(`The seed is ${shown(seed)}; it must be a whole number.`);
    }
    this.#random = generator(seed);
    this.#search = new DivisionSearch(this.#random);
  }

  /** True while no better division is searched for, because no move to another one was found to be better. */
  get resting(): boolean {
    return this.#search.resting;
  }

  place(view: LoadView): Placing {
    return placeByHeat(view);
  }

  divide(view: LoadView, work: WorkBySlice): Division {
    this.#search.look(view, work);
    this.#contested = view.mayUndivide;
    this.#open = view.mayUndivide && !this.#contest.settled;
    if (!view.mayUndivide) return this.#search.next();
    const isLeaders = this.#random() >= this.#contest.share;
    if (isLeaders === (this.#contest.leader === "undivided")) return this.#undivided(view, work);
    // A search would hold divisions against each other that ran at other times.
    return this.#open ? this.#search.incumbent : this.#search.next();
  }

  observe(division: Division, measurement: Measurement): void {
    const side = division instanceof Arm ? division : "undivided";
    const { seconds, tokens, comparable = true } = measurement;
    this.#meter(comparable ? side : null, measurement);
    if (!comparable || seconds === 0 || tokens === 0) return;
    const way = this.#wayOf(side);
    if (way !== undefined) this.#contest.addTime(way, seconds, tokens);
    if (side !== "undivided" && !this.#open) this.#search.observe(side, seconds, tokens);
  }

  /** What a measurement counts for beside the search: challengers are not what dividing costs. */
  #wayOf(side: Side): "divided" | "undivided" | undefined {
    if (!this.#contested) return undefined;
    if (side === "undivided") return side;
    return side === this.#search.incumbent ? "divided" : undefined;
  }

  #meter(now: Side | null, { tokens, joules }: Measurement): void {
    const before = this.#metered ?? { side: now, tokens: 0 };
    const side = before.side === now ? now : null;
    this.#metered = { side, tokens: before.tokens + tokens };
    if (joules === null) return;
    // Joules of steps under several divisions say nothing about any one of them.
    if (side !== null && joules !== "lost" && joules > 0 && this.#metered.tokens > 0) {
      const way = this.#wayOf(side);
      if (way !== undefined) this.#contest.addEnergy(way, joules, this.#metered.tokens);
      if (side !== "undivided") side.addEnergy(joules, this.#metered.tokens);
    }
    this.#metered = undefined;
  }

  #undivided({ realisations }: LoadView, work: WorkBySlice): Division {
    const saved = this.#contest.gainOf("undivided")?.gain ?? 0;
    const isTried = this.#contest.leader === "divided" || saved <= 0;
    return {
      weights: weighByWork((slice) => work[slice].share),
      undivided: true,
      holdSmallChanges: false,
      why: isTried
        ? "as not dividing is being tried"
        : `lately measured ${percent(1 - Math.exp(-saved))} cheaper per token than dividing the device`,
      realisation: {
        kind: realisations[0] as Realisation,
        reason: "Nothing is divided, so there is nothing to partition.",
      },
    };
  }
}

/** Random numbers from 0 to 1 (Marsaglia's xorshift32). */
function generator(seed: number): () => number {
  // State 0 would stay 0; the odd factor spreads small seeds over all 32 bits.
  let state = Math.imul(seed + 1, 0x9e3779b1) | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
