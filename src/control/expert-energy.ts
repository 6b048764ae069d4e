/**
 * Who used the joules: a measured amount of energy shared out among the experts
 * by the work each one did while it was being measured.
 *
 * Energy counters are slow, so a reading may cover one step or a hundred. Work
 * is added up step by step until a reading comes, and the reading closes that
 * stretch. Without a reading nothing is attributed to anyone. What is shared
 * out is the whole of the reading, the device's idle power included.
 */

import { RollingSums } from "./rolling-sums.ts";

/** Joules are counted in whole microjoules, so that sums over the window are exact. */
const MICROJOULES_PER_JOULE = 1e6;

/** What `state()` returns and `load()` takes. */
export interface ExpertEnergyState {
  /** Microjoules per expert of each reading in the window, oldest first. */
  readonly microjoules: readonly (readonly number[])[];
  /** Tokens per expert during each of these readings. */
  readonly tokens: readonly (readonly number[])[];
  /** Work since the last reading. */
  readonly pendingTokens: readonly number[];
  readonly pendingTicks: readonly number[];
}

export class ExpertEnergy {
  readonly #microjoules: RollingSums;
  readonly #tokens: RollingSums;
  readonly #pendingTokens: Float64Array;
  readonly #pendingTicks: Float64Array;
  readonly #shared: Float64Array;

  /** @param readings how many readings the window holds */
  constructor(experts: number, readings: number) {
    this.#microjoules = new RollingSums(readings, experts);
    this.#tokens = new RollingSums(readings, experts);
    this.#pendingTokens = new Float64Array(experts);
    this.#pendingTicks = new Float64Array(experts);
    this.#shared = new Float64Array(experts);
  }

  /** True once there is a reading. */
  get known(): boolean {
    return this.#microjoules.filled > 0;
  }

  /** Adds one step's work. @param ticks time per expert in any fixed unit; zeros where it was not measured */
  addWork(tokens: ArrayLike<number>, ticks: ArrayLike<number>): void {
    for (let e = 0; e < this.#pendingTokens.length; e++) {
      this.#pendingTokens[e] = (this.#pendingTokens[e] as number) + (tokens[e] as number);
      this.#pendingTicks[e] = (this.#pendingTicks[e] as number) + (ticks[e] as number);
    }
  }

  /** Forgets the work since the last reading: nothing will tell what it cost. */
  dropWork(): void {
    this.#pendingTokens.fill(0);
    this.#pendingTicks.fill(0);
  }

  /**
   * Shares out what was measured since the last reading: by measured time, or by
   * tokens when no time was measured. Joules spent without any work are nobody's.
   */
  addReading(joules: number): void {
    const timed = total(this.#pendingTicks);
    const work = timed > 0 ? this.#pendingTicks : this.#pendingTokens;
    const all = timed > 0 ? timed : total(this.#pendingTokens);
    const microjoulesPerWork = all > 0 ? (joules * MICROJOULES_PER_JOULE) / all : 0;
    for (let e = 0; e < work.length; e++) {
      this.#shared[e] = Math.round((work[e] as number) * microjoulesPerWork);
    }
    this.#microjoules.push(this.#shared);
    this.#tokens.push(this.#pendingTokens);
    this.dropWork();
  }

  /** Joules of one expert over the readings in the window, or null before the first one. */
  joulesOf(expert: number): number | null {
    if (!this.known) return null;
    return (this.#microjoules.sums[expert] as number) / MICROJOULES_PER_JOULE;
  }

  /** Tokens an expert handled per joule over these readings, or null where that has no meaning. */
  tokensPerJouleOf(expert: number): number | null {
    const joules = this.joulesOf(expert);
    return joules === null || joules === 0 ? null : (this.#tokens.sums[expert] as number) / joules;
  }

  state() {
    return {
      microjoules: this.#microjoules.rows(),
      tokens: this.#tokens.rows(),
      pendingTokens: Array.from(this.#pendingTokens),
      pendingTicks: Array.from(this.#pendingTicks),
    };
  }

  /** Takes over a state; the object must be fresh and of the same size. */
  load(state: ExpertEnergyState): void {
    for (const row of state.microjoules) this.#microjoules.push(row);
    for (const row of state.tokens) this.#tokens.push(row);
    this.#pendingTokens.set(state.pendingTokens);
    this.#pendingTicks.set(state.pendingTicks);
  }
}

function total(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}
