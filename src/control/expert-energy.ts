/**
 * Who used the joules: a measured amount of energy shared out among the experts
 * by the work each one did while it was being measured. The sum is a measurement;
 * the shares are an attribution, because no counter sees a single expert.
 *
 * Energy counters are slow, so a reading may cover one step or a hundred. Work
 * is added up step by step until a reading comes, and the reading closes that
 * stretch. Without a reading nothing is attributed to anyone. What is shared
 * out is the whole of the reading, the device's idle power included.
 *
 * Time is the best measure of work, and where the device takes the experts' time
 * the shares go by it. A GPU does not (its experts run in one kernel, side by
 * side). There the shares go by tokens, as if all energy went into multiplying,
 * which is right for large batches; and a second time by weights read, as if it all
 * went into bringing an expert's weights from memory once for every step that gave
 * it a token, which is right for small ones. In between the truth lies in between.
 */

import { RollingSums } from "./rolling-sums.ts";

/** Joules are counted in whole microjoules, so that sums over the window are exact. */
const MICROJOULES_PER_JOULE = 1e6;

/** What `state()` returns and `load()` takes. */
export interface ExpertEnergyState {
  /** Microjoules per expert of each reading in the window, oldest first. */
  readonly microjoules: readonly (readonly number[])[];
  /** The same, shared out by weights read. */
  readonly microjoulesByReads: readonly (readonly number[])[];
  /** Tokens per expert during each of these readings. */
  readonly tokens: readonly (readonly number[])[];
  /** Of each of these readings: [whether it was shared out by time]. */
  readonly timed: readonly (readonly number[])[];
  /** Work since the last reading. */
  readonly pendingTokens: readonly number[];
  readonly pendingReads: readonly number[];
  readonly pendingTicks: readonly number[];
}

/** What the shares of the readings in the window go by. */
export type EnergyBasis = "time" | "tokens" | "time and tokens";

export class ExpertEnergy {
  readonly #microjoules: RollingSums;
  readonly #microjoulesByReads: RollingSums;
  readonly #tokens: RollingSums;
  readonly #timed: RollingSums;
  readonly #pendingTokens: Float64Array;
  /** Steps that gave an expert a token, and so had its weights read. All experts have weights of one size. */
  readonly #pendingReads: Float64Array;
  readonly #pendingTicks: Float64Array;
  readonly #shared: Float64Array;

  /** @param readings how many readings the window holds */
  constructor(experts: number, readings: number) {
    this.#microjoules = new RollingSums(readings, experts);
    this.#microjoulesByReads = new RollingSums(readings, experts);
    this.#tokens = new RollingSums(readings, experts);
    this.#timed = new RollingSums(readings, 1);
    this.#pendingTokens = new Float64Array(experts);
    this.#pendingReads = new Float64Array(experts);
    this.#pendingTicks = new Float64Array(experts);
    this.#shared = new Float64Array(experts);
  }

  /** True once there is a reading. */
  get known(): boolean {
    return this.#microjoules.filled > 0;
  }

  /** Adds one step's work. @param ticks time per expert in any fixed unit; zeros where it was not measured */
  addWork(tokens: Int32Array, ticks: Float64Array): void {
    const pendingTokens = this.#pendingTokens;
    const pendingReads = this.#pendingReads;
    const pendingTicks = this.#pendingTicks;
    for (let e = 0; e < pendingTokens.length; e++) {
      const count = tokens[e] as number;
      pendingTokens[e] = (pendingTokens[e] as number) + count;
      pendingReads[e] = (pendingReads[e] as number) + (count > 0 ? 1 : 0);
      pendingTicks[e] = (pendingTicks[e] as number) + (ticks[e] as number);
    }
  }

  /** Forgets the work since the last reading: nothing will tell what it cost. */
  dropWork(): void {
    this.#pendingTokens.fill(0);
    this.#pendingReads.fill(0);
    this.#pendingTicks.fill(0);
  }

  /**
   * Shares out what was measured since the last reading: by measured time, or by
   * tokens when no time was measured. Joules spent without any work are nobody's.
   */
  addReading(joules: number): void {
    const timed = this.#pendingTicks.some((ticks) => ticks > 0);
    this.#microjoules.push(this.#share(joules, timed ? this.#pendingTicks : this.#pendingTokens));
    this.#microjoulesByReads.push(this.#share(joules, this.#pendingReads));
    this.#tokens.push(this.#pendingTokens);
    this.#timed.push([Number(timed)]);
    this.dropWork();
  }

  /** Joules of one expert over the readings in the window, or null before the first one. */
  joulesOf(expert: number): number | null {
    if (!this.known) return null;
    return (this.#microjoules.sums[expert] as number) / MICROJOULES_PER_JOULE;
  }

  /** The same, shared out by weights read instead. */
  joulesByReadsOf(expert: number): number | null {
    if (!this.known) return null;
    return (this.#microjoulesByReads.sums[expert] as number) / MICROJOULES_PER_JOULE;
  }

  /** What `joulesOf` goes by, or null before the first reading. */
  get basis(): EnergyBasis | null {
    const timed = this.#timed.sums[0] as number;
    if (!this.known) return null;
    if (timed === 0) return "tokens";
    return timed === this.#timed.filled ? "time" : "time and tokens";
  }

  /** Tokens an expert handled per joule over these readings, or null where that has no meaning. */
  tokensPerJouleOf(expert: number): number | null {
    const joules = this.joulesOf(expert);
    return joules === null || joules === 0 ? null : (this.#tokens.sums[expert] as number) / joules;
  }

  state() {
    return {
      microjoules: this.#microjoules.rows(),
      microjoulesByReads: this.#microjoulesByReads.rows(),
      tokens: this.#tokens.rows(),
      timed: this.#timed.rows(),
      pendingTokens: Array.from(this.#pendingTokens),
      pendingReads: Array.from(this.#pendingReads),
      pendingTicks: Array.from(this.#pendingTicks),
    };
  }

  /** Takes over a state; the object must be fresh and of the same size. */
  load(state: ExpertEnergyState): void {
    for (const row of state.microjoules) this.#microjoules.push(row);
    for (const row of state.microjoulesByReads) this.#microjoulesByReads.push(row);
    for (const row of state.tokens) this.#tokens.push(row);
    for (const row of state.timed) this.#timed.push(row);
    this.#pendingTokens.set(state.pendingTokens);
    this.#pendingReads.set(state.pendingReads);
    this.#pendingTicks.set(state.pendingTicks);
  }

  /** Microjoules per expert in proportion to its work; valid until the next call. */
  #share(joules: number, work: Float64Array): Float64Array {
    const all = total(work);
    const microjoulesPerWork = all > 0 ? (joules * MICROJOULES_PER_JOULE) / all : 0;
    for (let e = 0; e < work.length; e++) {
      this.#shared[e] = Math.round((work[e] as number) * microjoulesPerWork);
    }
    return this.#shared;
  }
}

function total(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}
