/** What the search for a division compares: one way to divide the device, and what it was measured to cost. */

import type { Realisation } from "../../../execution/device.ts";
import type { Division } from "../policy.ts";
import { CostSamples, type Gain, productOf } from "../trial.ts";

export type Weights = Division["weights"];

const BEST_SO_FAR = "in the best division measured so far";

export class Arm implements Division {
  readonly weights: Weights;
  readonly realisation: { readonly kind: Realisation; readonly reason: string };
  readonly holdSmallChanges = false;
  readonly why: string;
  readonly #time = new CostSamples();
  readonly #energy = new CostSamples();

  constructor(weights: Weights, kind: Realisation, reason: string, why = BEST_SO_FAR) {
    this.weights = weights;
    this.why = why;
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
    return productOf(this.#time.gainOver(other.#time), this.#energy.gainOver(other.#energy));
  }

  /** The same division, nothing measured. */
  afresh(reason = this.realisation.reason): Arm {
    return new Arm(this.weights, this.realisation.kind, reason);
  }
}
