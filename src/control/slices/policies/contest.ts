/**
 * Whether dividing the device or not dividing it is cheaper, kept up to date while
 * it is mostly the cheaper one that runs.
 *
 * Every measurement of the one that is behind is held against what the leader has
 * cost just before, in batches of about the same size: what a load that moves does
 * to both is no difference between them. The differences are averaged for each
 * batch size by itself, the older the less, and over the sizes by how often they
 * have come lately. So nothing has to begin anew when loads or batch sizes change:
 * a size without measurements of both is simply not known yet.
 *
 * How often the one that is behind has its turn follows from what that costs.
 */

import { RecentMean } from "../recent-mean.ts";
import {
  averageOf,
  costPerToken,
  type Gain,
  isCheaper,
  isHopeless,
  productOf,
  sizeClass,
} from "../trial.ts";

export type Way = "divided" | "undivided";

/** Samples after which one is mostly forgotten: of the leader two plans' worth, of the one behind as many as tell some per cent from noise. */
const MEMORY = 16;

/** The same for how often a batch size comes. */
const USE_MEMORY = 64;

/** Fewest samples to go by: of the leader for others to be held against it, and of these for a verdict. */
const FIRST_VERDICT = 8;

/**
 * Until there is a verdict both run alike, but not beyond this many samples: then they are equal, or nearly. Well below what a mean
 * with this memory can count to, as it is held against an average over batch sizes, some of them rare.
 */
const LAST_VERDICT = 1.5 * MEMORY;

/** Part of the leader's latest batches below which a size says nothing any more: it has not come for some hundreds of them. */
const LEAST_USE = 1e-3;

/** Part of the time that may be lost to measuring the one behind. */
const LOSS = 0.01;

/** And most of the plans that it gets: a change of plan costs some tenths of a step by itself. */
const MOST_PLANS = 1 / 16;

/** What is known of batches of about one size. */
class Size {
  /** How many of the leader's latest batches were of it, as a part. */
  use = 0;
  /** Cost per token. */
  readonly costs: Readonly<Record<Way, RecentMean>> = {
    divided: new RecentMean(MEMORY),
    undivided: new RecentMean(MEMORY),
  };
  /** What not dividing saved. */
  readonly saved = new RecentMean(MEMORY);
}

/** The contest in one kind of cost. */
class Standing {
  readonly #sizes = new Map<number, Size>();

  add(way: Way, leader: Way, cost: number, tokens: number): void {
    const key = sizeClass(tokens);
    let at = this.#sizes.get(key);
    if (at === undefined) {
      at = new Size();
      this.#sizes.set(key, at);
    }
    const value = costPerToken(cost, tokens);
    at.costs[way].add(value);
    if (way === leader) {
      for (const size of this.#sizes.values()) size.use *= 1 - 1 / USE_MEMORY;
      at.use += 1 / USE_MEMORY;
    } else if (at.costs[leader].n >= FIRST_VERDICT) {
      const dearer = value - at.costs[leader].mean;
      at.saved.add(way === "divided" ? dearer : -dearer);
    }
  }

  /** What a way saves; undefined while there are no two measurements to go by. */
  gainOf(way: Way): Gain | undefined {
    const sign = way === "undivided" ? 1 : -1;
    return averageOf(
      this.#known.map(({ use, saved }) => ({
        weight: use,
        gain: sign * saved.mean,
        variance: saved.error,
      })),
    );
  }

  /** By how much a way's latest costs are below the other's latest, however long ago these were. */
  leadOf(way: Way): number {
    const sign = way === "undivided" ? 1 : -1;
    const leads = this.#known.map(({ use, costs }) => ({
      weight: use,
      gain: sign * (costs.divided.mean - costs.undivided.mean),
      variance: 0,
    }));
    return averageOf(leads)?.gain ?? 0;
  }

  /** The sizes that come, and have measurements of both. */
  get #known(): Size[] {
    const sizes = [...this.#sizes.values()];
    return sizes.filter(({ use, saved }) => use >= LEAST_USE && saved.n >= 2);
  }

  /** Differences measured, in a size as they come; undefined while the leader is not known well enough in any. */
  samples(leader: Way): number | undefined {
    let uses = 0;
    let samples = 0;
    for (const { use, costs, saved } of this.#sizes.values()) {
      if (costs[leader].n < FIRST_VERDICT) continue;
      uses += use;
      samples += use * saved.n;
    }
    return uses === 0 ? undefined : samples / uses;
  }
}

export class Contest {
  readonly #time = new Standing();
  readonly #energy = new Standing();
  #leader: Way = "divided";

  get leader(): Way {
    return this.#leader;
  }

  addTime(way: Way, seconds: number, tokens: number): void {
    this.#time.add(way, this.#leader, seconds, tokens);
    if (way === this.#leader || this.#samples < FIRST_VERDICT) return;
    if (isCheaper(this.gainOf(way))) this.#leader = way;
  }

  addEnergy(way: Way, joules: number, tokens: number): void {
    this.#energy.add(way, this.#leader, joules, tokens);
  }

  /** What a way saves beside the other, as far as is known. */
  gainOf(way: Way): Gain | undefined {
    return productOf(this.#time.gainOf(way), this.#energy.gainOf(way));
  }

  /** Whether the two have been held against each other, as far as noise allows it, in batches of the sizes that come. */
  get settled(): boolean {
    if (this.#samples < FIRST_VERDICT) return false;
    if (this.#samples >= LAST_VERDICT) return true;
    return isCheaper(this.gainOf(this.#leader)) || isHopeless(this.gainOf(this.#behind));
  }

  /** Part of the plans that the one behind should have. */
  get share(): number {
    if (this.#time.samples(this.#leader) === undefined) return 0;
    if (!this.settled) return 1 / 2;
    const lead = Math.min(this.gainOf(this.#leader)?.gain ?? 0, this.#time.leadOf(this.#leader));
    const dearer = Math.expm1(lead);
    return Math.min(MOST_PLANS, LOSS / Math.max(dearer, LOSS));
  }

  get #behind(): Way {
    return this.#leader === "divided" ? "undivided" : "divided";
  }

  get #samples(): number {
    return this.#time.samples(this.#leader) ?? 0;
  }
}
