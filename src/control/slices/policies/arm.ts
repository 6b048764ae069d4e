/** What the adaptive policy compares: one way to divide the device, and what it was measured to cost. How it searches is in adaptive.ts. */

import type { Realisation } from "../../../execution/device.ts";
import type { Division } from "../policy.ts";
import { CostSamples, type Gain } from "../trial.ts";

export type Weights = Division["weights"];

const BEST_SO_FAR = "in the best division measured so far";

/** One way to divide the device, or not to, and what it was measured to cost. */
export class Arm implements Division {
  readonly weights: Weights;
  readonly realisation: { readonly kind: Realisation; readonly reason: string };
  readonly holdSmallChanges = false;
  readonly why: string;
  readonly undivided: boolean;
  readonly #time = new CostSamples();
  readonly #energy = new CostSamples();

  constructor(
    weights: Weights,
    kind: Realisation,
    reason: string,
    { why = BEST_SO_FAR, undivided = false } = {},
  ) {
    this.weights = weights;
    this.why = why;
    this.undivided = undivided;
    this.realisation = { kind, reason };
  }

  get samples(): number {
    return this.#time.count;
  }

  addTime(seconds: number, tokens: number): void {
    this.#time.add(seconds, tokens);
  }

  addEnergy(joules: number, tokens: number): void {
    this.#energy.add(joules, tokens);
  }

  gainOver(other: Arm): Gain | undefined {
    const time = this.#time.gainOver(other.#time);
    const energy = this.#energy.gainOver(other.#energy);
    if (time === undefined || energy === undefined) return time;
    return { gain: time.gain + energy.gain, variance: time.variance + energy.variance };
  }

  /** The same division, nothing measured. */
  afresh(reason = this.realisation.reason): Arm {
    const { weights, realisation, undivided, why } = this;
    return new Arm(weights, realisation.kind, reason, {
      undivided,
      why: undivided ? why : BEST_SO_FAR,
    });
  }

  /** The device not divided. */
  undividedFor(why: string): Arm {
    const { weights, realisation } = this;
    return new Arm(weights, realisation.kind, realisation.reason, { undivided: true, why });
  }
}
