/**
 * Per-column sums over the last rows of a stream of rows, kept in one typed
 * array that is allocated once.
 *
 * Every value must be a whole number. Then each addition and subtraction is
 * exact as long as the sums stay below 2^53, and a sum after a million rows is
 * the sum of the rows in the window, to the last bit. Whoever has seconds or
 * joules counts them in small enough units first.
 */
export class RollingSums {
  readonly capacity: number;
  readonly width: number;
  /** Sum of each column over the rows in the window. Read only. */
  readonly sums: Float64Array;
  readonly #rows: Float64Array;
  #next = 0;
  #filled = 0;

  constructor(capacity: number, width: number) {
    this.capacity = capacity;
    this.width = width;
    this.sums = new Float64Array(width);
    this.#rows = new Float64Array(capacity * width);
  }

  /** Rows in the window, `capacity` at most. */
  get filled(): number {
    return this.#filled;
  }

  /** Adds a row; the oldest one leaves once the window is full. */
  push(row: ArrayLike<number>): void {
    const { sums, width } = this;
    const rows = this.#rows;
    const base = this.#next * width;
    for (let i = 0; i < width; i++) {
      const value = row[i] as number;
      sums[i] = (sums[i] as number) + (value - (rows[base + i] as number));
      rows[base + i] = value;
    }
    this.#next = (this.#next + 1) % this.capacity;
    this.#filled = Math.min(this.#filled + 1, this.capacity);
  }

  /** Copies of the rows in the window, oldest first. */
  rows(): number[][] {
    return Array.from({ length: this.#filled }, (_, age) => {
      const slot = (this.#next - this.#filled + age + this.capacity) % this.capacity;
      return Array.from(this.#rows.subarray(slot * this.width, (slot + 1) * this.width));
    });
  }
}
