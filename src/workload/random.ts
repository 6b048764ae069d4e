/**
 * Random numbers that a seed decides: the same seed gives the same workload on
 * every machine and Node version, so a demo, a benchmark or a failed test can be
 * run again exactly. For synthetic data only; it is no source of secrets.
 *
 * Generator: xoshiro128** (Blackman and Vigna, "Scrambled Linear Pseudorandom
 * Number Generators", 2018), seeded through SplitMix32 as its authors advise.
 */

const TWO_TO_MINUS_32 = 2 ** -32;

export class Random {
  readonly #seed: number;
  #s0: number;
  #s1: number;
  #s2: number;
  #s3: number;

  /** @param seed any integer; its low 32 bits count */
  constructor(seed: number) {
    this.#seed = seed | 0;
    const next = splitMix32(this.#seed);
    this.#s0 = next();
    this.#s1 = next();
    this.#s2 = next();
    this.#s3 = next();
  }

  /** A generator of its own for one purpose: what it draws does not depend on what others drew before. */
  fork(purpose: string): Random {
    // FNV-1a over the purpose, begun at the seed.
    let hash = this.#seed ^ 0x811c9dc5;
    for (let i = 0; i < purpose.length; i++) {
      hash = Math.imul(hash ^ purpose.charCodeAt(i), 0x01000193);
    }
    return new Random(hash);
  }

  /** A whole number, 0 to 2^32 - 1. */
  bits(): number {
    const product = Math.imul(this.#s1, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9);
    const shifted = this.#s1 << 9;
    this.#s2 ^= this.#s0;
    this.#s3 ^= this.#s1;
    this.#s1 ^= this.#s2;
    this.#s0 ^= this.#s3;
    this.#s2 ^= shifted;
    this.#s3 = (this.#s3 << 11) | (this.#s3 >>> 21);
    return result >>> 0;
  }

  /** Uniform in (0, 1), both ends excluded, so that its logarithm is finite. */
  uniform(): number {
    return (this.bits() + 0.5) * TWO_TO_MINUS_32;
  }

  /** A whole number, 0 to below - 1. */
  integer(below: number): number {
    return Math.floor(this.uniform() * below);
  }

  /** Standard Gumbel: added to log probabilities, the largest sum is a draw from them. */
  gumbel(): number {
    return -Math.log(-Math.log(this.uniform()));
  }

  /** Fills an array with standard normal numbers times `deviation` (Box and Muller's method). */
  fillNormal(out: Float32Array, deviation = 1): Float32Array {
    for (let i = 0; i < out.length; i += 2) {
      const radius = deviation * Math.sqrt(-2 * Math.log(this.uniform()));
      const angle = 2 * Math.PI * this.uniform();
      out[i] = radius * Math.cos(angle);
      out[i + 1] = radius * Math.sin(angle); // past the end of an odd length: ignored
    }
    return out;
  }

  /** The numbers 0 to length - 1 in random order (Fisher and Yates). */
  permutation(length: number): number[] {
    const order = Array.from({ length }, (_, i) => i);
    for (let i = length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [order[i], order[j]] = [order[j] as number, order[i] as number];
    }
    return order;
  }
}

function splitMix32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return z ^ (z >>> 16);
  };
}
