/**
 * Learns from measurements. Experts are placed by their heat, as everywhere; how
 * the device is divided is found by trying.
 *
 * A hill climb: the best division known (the incumbent) starts as the
 * proportional one. A challenger is made from it by one move: a slice gives a
 * part of the device to another one or to all others, or the budgets are made
 * real in another way. (A step takes as long as its slowest slice. Giving to one
 * slice helps where one is slowest, giving to all where several are equally slow.)
 * Both then run in random turns, so that neither gets the busier batches, until
 * the challenger is cheaper or dearer beyond the noise or the trial has taken
 * long enough. What won is moved on from, first in the same direction; when no
 * move wins, moves get smaller, and after the smallest the search rests, having
 * tried some tens of divisions.
 *
 * First of all the incumbent is held against not dividing at all, slices taking turns
 * with the whole device, which serves best whatever fills it by itself. Where that wins
 * the search has only every so many plans to try divisions with, and the others are not
 * divided, until a division is cheaper. If none is the search rests there, and if the load
 * moves meanwhile it begins again, and still has no more.
 *
 * A load that spreads over the slices in another
 * way, or a step that has come to cost much more or less than it did, starts it
 * again.
 *
 * Cost is the time of a step per token, and where joules are measured, time and
 * energy multiplied (the energy-delay product). With the same seed and the same
 * measurements it makes the same decisions.
 */

import { InvalidArgumentError } from "../../../errors.ts";
import type { Realisation } from "../../../execution/device.ts";
import { BUDGETED_SLICE_IDS, type BudgetedSliceId, EXPERT_SLICE_IDS } from "../../plan.ts";
import type { StepJoules } from "../../profiler.ts";
import type {
  Division,
  LoadView,
  Measurement,
  Placing,
  SlicePolicy,
  WorkBySlice,
} from "../policy.ts";
import { percent, placeByHeat, weighByWork } from "../policy.ts";
import type { Gain } from "../trial.ts";
import { Arm, type Weights } from "./arm.ts";

/** Parts of the device that a move shifts, coarse to fine. A thirty-second changes a step's time by less than trials can see. */
const MOVE_SIZES = [1 / 8, 1 / 16, 1 / 32] as const;

/** A challenger has to save this much: less is not worth the graphs that a new division needs. */
const MIN_ADAPTIVE_GAIN = 0.02;

/** And its gain has to be this many standard errors: by chance alone one trial in some hundreds shows that. */
const CONFIDENCE = 3;

/** Samples of either side at which a trial is judged; after the last it is over. Few, because every look is a chance to be fooled. */
const LAST_VERDICT = 32;
const VERDICTS_AT = [8, 16, LAST_VERDICT] as const;

/** Part of the plans that a search has where not dividing is cheaper than what it started from: trials cost some tenths of a step each. */
const SEARCH_SHARE = 1 / 16;

/** Part of the tokens that has to move to other slices for what was learned to be put aside. */
const LOAD_SHIFT = 0.2;

/** So does a slice that had no experts when the search began and has this part of the tokens now. */
const NEWCOMER_SHARE = 0.05;

/** Relative change of a step's cost, under a load that spreads as before, after which the search starts again. */
const COST_SHIFT = 0.25;

type Move =
  | {
      readonly kind: "shift";
      readonly from: BudgetedSliceId;
      /** All: in proportion to what they have. */
      readonly to: BudgetedSliceId | "all others";
    }
  | { readonly kind: "realise"; readonly realisation: Realisation }
  | { readonly kind: "undivide" };

/** What a search is of. */
interface Searched {
  /** When it began. */
  readonly work: WorkBySlice;
  /** The slices that had some. */
  readonly inUse: readonly BudgetedSliceId[];
  readonly mayUndivide: boolean;
}

interface Trial {
  readonly challenger: Arm;
  /** What was done to the incumbent to make it. */
  readonly move: Move;
  /** Times it was judged. */
  verdicts: number;
}

const STARTING = "in proportion to recent use, from where the search starts";
const ON_TRIAL = "in a division that is being tried";
const UNDIVIDED_ON_TRIAL = "as not dividing is being tried";

export class AdaptivePolicy implements SlicePolicy {
  readonly name = "adaptive";
  readonly #random: () => number;
  #incumbent: Arm | undefined;
  #trial: Trial | undefined;
  /** While a search is under way and not dividing is cheaper than what it started from: what runs when it has no turn. */
  #meanwhile: Arm | undefined;
  /** Divisions whose turn comes next: both sides of the trial, in random order. */
  #turns: Arm[] = [];
  /** Moves of the present size that are still to be tried from the incumbent. */
  #untried: Move[] = [];
  #level = 0;
  /** While the search rests: the incumbent as it was measured at the end of the search. */
  #reference: Arm | undefined;
  #view: LoadView | undefined;
  #work: WorkBySlice | undefined;
  #searched: Searched | undefined;
  /** Tokens since the last joules, and the one division they ran under; null: there were several. */
  #metered: { readonly arm: Arm | null; readonly tokens: number } | undefined;

  /** @param seed of the random turns, a whole number */
  constructor({ seed = 1 }: { readonly seed?: number } = {}) {
    if (!Number.isSafeInteger(seed)) {
      throw new InvalidArgumentError(`The seed is ${seed}; it must be a whole number.`);
    }
    this.#random = generator(seed);
  }

  /** True while no trial is under way because no move was found to be better. */
  get resting(): boolean {
    return this.#reference !== undefined;
  }

  place(view: LoadView): Placing {
    return placeByHeat(view);
  }

  divide(view: LoadView, work: WorkBySlice): Division {
    this.#view = view;
    this.#work = work;
    const searched = this.#searched;
    const otherwise = searched?.mayUndivide !== view.mayUndivide;
    if (searched === undefined || otherwise || hasShifted(searched, work)) {
      const ahead = this.#meanwhile ?? this.#incumbent;
      this.#search(this.#proportional(), ahead?.undivided && view.mayUndivide ? ahead : undefined);
    }
    if (this.#meanwhile !== undefined && this.#random() >= SEARCH_SHARE) return this.#meanwhile;
    if (this.#trial === undefined) return this.#incumbent as Arm;
    if (this.#turns.length === 0) {
      const both = [this.#incumbent as Arm, this.#trial.challenger];
      this.#turns = this.#random() < 0.5 ? both : both.reverse();
    }
    return this.#turns.shift() as Arm;
  }

  observe(division: Division, { seconds, tokens, joules }: Measurement): void {
    if (!(division instanceof Arm)) return;
    this.#meter(division, tokens, joules);
    if (seconds > 0 && tokens > 0) division.addTime(seconds, tokens);
    // Measurements of divisions that are out of the running come late, and are left at that.
    if (division !== this.#incumbent && division !== this.#trial?.challenger) return;
    if (this.#reference !== undefined) this.#watch(this.#reference);
    else if (this.#trial === undefined) this.#next();
    else this.#judge(this.#trial);
  }

  #meter(division: Arm, tokens: number, joules: StepJoules): void {
    const before = this.#metered ?? { arm: division, tokens: 0 };
    const arm = before.arm === division ? division : null;
    this.#metered = { arm, tokens: before.tokens + tokens };
    if (joules === null) return;
    // Joules of steps under several divisions say nothing about any one of them.
    if (arm !== null && joules !== "lost" && joules > 0 && this.#metered.tokens > 0) {
      arm.addEnergy(joules, this.#metered.tokens);
    }
    this.#metered = undefined;
  }

  /** Where a search starts that has no division to go on from. */
  #proportional(): Arm {
    const [view, work] = [this.#view as LoadView, this.#work as WorkBySlice];
    const kind = this.#incumbent?.realisation.kind ?? (view.realisations[0] as Realisation);
    const weights = unit(weighByWork((slice) => work[slice].share));
    const reason = `${kind} is what the search starts from.`;
    return new Arm(weights, kind, reason, { why: STARTING });
  }

  /** Begins anew from an incumbent, which divides. @param ahead not dividing, if that was cheaper before the load moved */
  #search(incumbent: Arm, ahead?: Arm): void {
    const work = this.#work as WorkBySlice;
    const used = EXPERT_SLICE_IDS.filter((slice) => work[slice].experts > 0);
    const { mayUndivide } = this.#view as LoadView;
    this.#searched = { work, inUse: [...used, "D"], mayUndivide };
    this.#incumbent = incumbent;
    this.#endTrial();
    this.#meanwhile = ahead;
    this.#reference = undefined;
    this.#level = 0;
    this.#untried = this.#allMoves();
    if (mayUndivide && ahead === undefined) this.#untried.unshift({ kind: "undivide" });
  }

  #endTrial(): void {
    this.#trial = undefined;
    this.#turns = [];
  }

  /** Puts up the next challenger that can be made, or rests. */
  #next(): void {
    const incumbent = this.#incumbent as Arm;
    const { quanta } = this.#view as LoadView;
    for (;;) {
      const move = this.#untried.shift();
      if (move !== undefined) {
        const challenger = this.#make(incumbent, move);
        if (challenger === undefined) continue;
        this.#trial = { challenger, move, verdicts: 0 };
        // What was measured before was of an older load: all sides start even.
        this.#incumbent = incumbent.afresh();
        this.#meanwhile = this.#meanwhile?.afresh();
        return;
      }
      const size = MOVE_SIZES[this.#level + 1];
      if (size === undefined || size * quanta < 1) break;
      this.#level++;
      this.#untried = this.#allMoves();
    }
    // No division was cheaper than not dividing, if that is ahead.
    this.#reference = this.#meanwhile ?? incumbent;
    this.#incumbent = this.#reference.afresh();
    this.#meanwhile = undefined;
  }

  #judge(trial: Trial): void {
    const incumbent = this.#incumbent as Arm;
    const { challenger, move } = trial;
    const samples = Math.min(challenger.samples, incumbent.samples);
    if (samples < (VERDICTS_AT[trial.verdicts] as number)) return;
    trial.verdicts++;
    if (this.#meanwhile !== undefined && isCheaper(incumbent.gainOver(this.#meanwhile))) {
      this.#meanwhile = undefined;
    }
    const last = trial.verdicts === VERDICTS_AT.length;
    const result = challenger.gainOver(incumbent);
    const gain = result?.gain ?? 0;
    const margin = result === undefined ? Number.POSITIVE_INFINITY : marginOf(result);
    if (isCheaper(result)) {
      this.#accept(trial, gain, samples);
    } else if (last || gain + margin < MIN_ADAPTIVE_GAIN) {
      if (move.kind === "realise") {
        const { kind } = incumbent.realisation;
        this.#incumbent = incumbent.afresh(
          `${kind} is kept: ${move.realisation} was not measured to be cheaper.`,
        );
      }
      this.#endTrial();
      this.#next();
    }
  }

  #accept({ challenger, move }: Trial, gain: number, samples: number): void {
    const incumbent = this.#incumbent as Arm;
    const measured = `measured ${percent(1 - Math.exp(-gain))} cheaper per token than`;
    this.#endTrial();
    if (move.kind === "shift") {
      this.#incumbent = challenger;
      this.#untried = [move, ...this.#allMoves()];
    } else if (move.kind === "realise") {
      const [winner, loser] = [challenger.realisation.kind, incumbent.realisation.kind];
      this.#incumbent = challenger.afresh(
        `${winner} was ${measured} ${loser}, over ${samples} steps of each.`,
      );
      this.#untried = this.#allMoves();
    } else {
      this.#meanwhile = challenger.undividedFor(
        `${measured} dividing the device, over ${samples} steps of each`,
      );
    }
    this.#next();
  }

  /** While the search rests: is a step still as dear as it was? */
  #watch(reference: Arm): void {
    const incumbent = this.#incumbent as Arm;
    if (incumbent.samples < LAST_VERDICT) return;
    const result = incumbent.gainOver(reference);
    const shift = Math.abs(result?.gain ?? 0);
    if (result !== undefined && shift > COST_SHIFT && shift > marginOf(result)) {
      this.#search(incumbent.undivided ? this.#proportional() : incumbent.afresh());
      return;
    }
    // With no batch size in common these are the first measurements to go by.
    if (result === undefined) this.#reference = incumbent;
    this.#incumbent = incumbent.afresh();
  }

  /** Every move there is from here to another division, in random order. */
  #allMoves(): Move[] {
    const { kind } = (this.#incumbent as Arm).realisation;
    const { realisations } = this.#view as LoadView;
    const moves: Move[] = realisations
      .filter((realisation) => realisation !== kind)
      .map((realisation) => ({ kind: "realise", realisation }));
    const inUse = this.#searched?.inUse ?? [];
    for (const from of inUse) {
      for (const to of [...inUse, "all others"] as const) {
        if (from !== to) moves.push({ kind: "shift", from, to });
      }
    }
    for (let i = moves.length - 1; i > 0; i--) {
      const j = Math.floor(this.#random() * (i + 1));
      [moves[i], moves[j]] = [moves[j] as Move, moves[i] as Move];
    }
    return moves;
  }

  /** The incumbent after a move; undefined if a slice in use would be left with less than a quantum. */
  #make(incumbent: Arm, move: Move): Arm | undefined {
    const { weights, realisation } = incumbent;
    if (move.kind === "realise") {
      return new Arm(weights, move.realisation, `${move.realisation} is being tried.`, {
        why: ON_TRIAL,
      });
    }
    if (move.kind === "undivide") {
      return incumbent.undividedFor(UNDIVIDED_ON_TRIAL);
    }
    const size = MOVE_SIZES[this.#level] as number;
    const left = weights[move.from] - size;
    if (left * (this.#view as LoadView).quanta < 1) return undefined;
    const moved =
      move.to === "all others"
        ? scale(weights, (1 - left) / (1 - weights[move.from]), { [move.from]: left })
        : { ...weights, [move.from]: left, [move.to]: weights[move.to] + size };
    return new Arm(moved, realisation.kind, realisation.reason, { why: ON_TRIAL });
  }
}

/** Enough to go by it. */
function isCheaper(result: Gain | undefined): boolean {
  return result !== undefined && result.gain > Math.max(MIN_ADAPTIVE_GAIN, marginOf(result));
}

function marginOf({ variance }: Gain): number {
  return CONFIDENCE * Math.sqrt(variance);
}

/** Whether the tokens now spread over the slices in another way than when the search began. */
function hasShifted(searched: Searched, work: WorkBySlice): boolean {
  let moved = 0;
  for (const slice of EXPERT_SLICE_IDS) {
    const { share } = work[slice];
    if (!searched.inUse.includes(slice) && share > NEWCOMER_SHARE) return true;
    // Half the sum of differences is the part of the tokens that is elsewhere.
    moved += Math.abs(share - searched.work[slice].share) / 2;
  }
  return moved > LOAD_SHIFT;
}

function scale(weights: Weights, factor: number, except: Partial<Weights>): Weights {
  const { A, B, C, D } = weights;
  return { A: A * factor, B: B * factor, C: C * factor, D: D * factor, ...except };
}

function unit(weights: Weights): Weights {
  const sum = BUDGETED_SLICE_IDS.reduce((total, slice) => total + weights[slice], 0);
  return scale(weights, 1 / sum, {});
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
