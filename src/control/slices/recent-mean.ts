/** The mean of numbers that come one by one, and how certain it is; with a memory, older numbers count less and less. */
export class RecentMean {
  readonly #memory: number;
  #mean = 0;
  /** Mean squared deviation from it. */
  #spread = 0;
  #n = 0;

  /** @param memory numbers after which one has lost about two thirds of its weight; default: none is forgotten */
  constructor(memory = Number.POSITIVE_INFINITY) {
    this.#memory = memory;
  }

  get mean(): number {
    return this.#mean;
  }

  /** How many equal numbers would make a mean as certain: all of them at first, in the end just under twice the memory. */
  get n(): number {
    return this.#n;
  }

  /** Squared standard error of the mean; known from the second number on. */
  get error(): number {
    return this.#n < 2 ? Number.POSITIVE_INFINITY : this.#spread / (this.#n - 1);
  }

  add(value: number): void {
    this.#n = Math.min(this.#n + 1, 2 * this.#memory - 1);
    const weight = 1 / Math.min(this.#n, this.#memory);
    const delta = value - this.#mean;
    this.#mean += weight * delta;
    this.#spread = (1 - weight) * (this.#spread + weight * delta * delta);
  }
}
