/**
 * Finds the best way to divide the device by trying.
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
 * A load that spreads over the slices in another way, or a step that has come to
 * cost much more or less than it did, starts it again.
 */

import type { Realisation } from "../../../execution/device.ts";
import { BUDGETED_SLICE_IDS, type BudgetedSliceId, EXPERT_SLICE_IDS } from "../../plan.ts";
import { type LoadView, percent, type WorkBySlice, weighByWork } from "../policy.ts";
import { isCheaper, isHopeless, marginOf } from "../trial.ts";
import { Arm, type Weights } from "./arm.ts";

/** Parts of the device that a move shifts, coarse to fine. A thirty-second changes a step's time by less than trials can see. */
const MOVE_SIZES = [1 / 8, 1 / 16, 1 / 32] as const;

/** Samples of either side at which a trial is judged; after the last it is over. Few, because every look is a chance to be fooled. */
const LAST_VERDICT = 32;
const VERDICTS_AT = [8, 16, LAST_VERDICT] as const;

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
  | { readonly kind: "realise"; readonly realisation: Realisation };

/** What a search is of. */
interface Searched {
  /** When it began. */
  readonly work: WorkBySlice;
  /** The slices that had some. */
  readonly inUse: readonly BudgetedSliceId[];
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

export class DivisionSearch {
  readonly #random: () => number;
  #incumbent: Arm | undefined;
  #trial: Trial | undefined;
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

  /** @param random numbers from 0 to 1, for turns and the order of moves */
  constructor(random: () => number) {
    this.#random = random;
  }

  /** True while no trial is under way because no move was found to be better. */
  get resting(): boolean {
    return this.#reference !== undefined;
  }

  /** The best division known. */
  get incumbent(): Arm {
    return this.#incumbent as Arm;
  }

  /** Takes notice of the load; before all else. */
  look(view: LoadView, work: WorkBySlice): void {
    this.#view = view;
    this.#work = work;
    if (this.#searched !== undefined && !hasShifted(this.#searched, work)) return;
    this.#begin(unit(weighByWork((slice) => work[slice].share)), STARTING);
  }

  /** The division whose turn it is. */
  next(): Arm {
    if (this.#trial === undefined) return this.incumbent;
    if (this.#turns.length === 0) {
      const both = [this.incumbent, this.#trial.challenger];
      this.#turns = this.#random() < 0.5 ? both : both.reverse();
    }
    return this.#turns.shift() as Arm;
  }

  /** A step under the division took so long. */
  observe(division: Arm, seconds: number, tokens: number): void {
    division.addTime(seconds, tokens);
    // Measurements of divisions that are out of the running come late, and are left at that.
    if (division !== this.#incumbent && division !== this.#trial?.challenger) return;
    if (this.#reference !== undefined) this.#watch(this.#reference);
    else if (this.#trial === undefined) this.#proceed();
    else this.#judge(this.#trial);
  }

  #begin(weights: Weights, why?: string): void {
    const work = this.#work as WorkBySlice;
    const used = EXPERT_SLICE_IDS.filter((slice) => work[slice].experts > 0);
    this.#searched = { work, inUse: [...used, "D"] };
    const [first] = (this.#view as LoadView).realisations;
    const kind = this.#incumbent?.realisation.kind ?? (first as Realisation);
    this.#incumbent = new Arm(weights, kind, `${kind} is what the search starts from.`, why);
    this.#endTrial();
    this.#reference = undefined;
    this.#level = 0;
    this.#untried = this.#allMoves();
  }

  #endTrial(): void {
    this.#trial = undefined;
    this.#turns = [];
  }

  /** Puts up the next challenger that can be made, or rests. */
  #proceed(): void {
    const { incumbent } = this;
    const { quanta } = this.#view as LoadView;
    for (;;) {
      const move = this.#untried.shift();
      if (move !== undefined) {
        const challenger = this.#make(incumbent, move);
        if (challenger === undefined) continue;
        this.#trial = { challenger, move, verdicts: 0 };
        // What was measured before was of an older load: both sides start even.
        this.#incumbent = incumbent.afresh();
        return;
      }
      const size = MOVE_SIZES[this.#level + 1];
      if (size === undefined || size * quanta < 1) break;
      this.#level++;
      this.#untried = this.#allMoves();
    }
    this.#reference = incumbent;
    this.#incumbent = incumbent.afresh();
  }

  #judge(trial: Trial): void {
    const { incumbent } = this;
    const { challenger, move } = trial;
    const samples = Math.min(challenger.samples, incumbent.samples);
    if (samples < (VERDICTS_AT[trial.verdicts] as number)) return;
    trial.verdicts++;
    const last = trial.verdicts === VERDICTS_AT.length;
    const result = challenger.gainOver(incumbent);
    if (isCheaper(result)) {
      this.#accept(trial, result.gain, samples);
    } else if (last || isHopeless(result)) {
      if (move.kind === "realise") {
        const { kind } = incumbent.realisation;
        this.#incumbent = incumbent.afresh(
          `${kind} is kept: ${move.realisation} was not measured to be cheaper.`,
        );
      }
      this.#endTrial();
      this.#proceed();
    }
  }

  #accept({ challenger, move }: Trial, gain: number, samples: number): void {
    this.#endTrial();
    if (move.kind === "shift") {
      this.#incumbent = challenger;
      this.#untried = [move, ...this.#allMoves()];
    } else {
      const [winner, loser] = [challenger.realisation.kind, this.incumbent.realisation.kind];
      const measured = `measured ${percent(1 - Math.exp(-gain))} cheaper per token than ${loser}`;
      this.#incumbent = challenger.afresh(
        `${winner} was ${measured}, over ${samples} steps of each.`,
      );
      this.#untried = this.#allMoves();
    }
    this.#proceed();
  }

  /** While the search rests: is a step still as dear as it was? */
  #watch(reference: Arm): void {
    const { incumbent } = this;
    if (incumbent.samples < LAST_VERDICT) return;
    const result = incumbent.gainOver(reference);
    const shift = Math.abs(result?.gain ?? 0);
    if (result !== undefined && shift > COST_SHIFT && shift > marginOf(result)) {
      this.#begin(incumbent.weights);
      return;
    }
    // With no batch size in common these are the first measurements to go by.
    if (result === undefined) this.#reference = incumbent;
    this.#incumbent = incumbent.afresh();
  }

  /** Every move there is from here to another division, in random order. */
  #allMoves(): Move[] {
    const { kind } = this.incumbent.realisation;
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
      return new Arm(
        ...([weights, move.realisation, `${move.realisation} is being tried.`, ON_TRIAL] as const),
      );
    }
    const size = MOVE_SIZES[this.#level] as number;
    const left = weights[move.from] - size;
    if (left * (this.#view as LoadView).quanta < 1) return undefined;
    const moved =
      move.to === "all others"
        ? scale(weights, (1 - left) / (1 - weights[move.from]), { [move.from]: left })
        : { ...weights, [move.from]: left, [move.to]: weights[move.to] + size };
    return new Arm(moved, realisation.kind, realisation.reason, ON_TRIAL);
  }
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
