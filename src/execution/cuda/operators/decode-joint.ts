/**
 * Whether decode's products of packed weights take several tokens together, so that an expert that these share is read and expanded once
 * (kernels/triton/experts/decode_packed.py), or each by itself. All on an H200, by products unless it says steps; on an H100 nothing of it
 * was measured.
 */

import { GROUP_ROWS } from "../packed-layout.ts";

/** What it depends on. */
export interface JointSizes {
  /** Most tokens of the step. */
  readonly mostTokens: number;
  readonly topK: number;
  readonly experts: number;
  /** Rows of a matrix of the second product. */
  readonly n: number;
  readonly multiprocessors: number;
}

/**
 * From so many choices an expert tokens share some even if all experts are as popular. First products on an H200, by themselves, apart and
 * together, uniform and Zipf 1.5: with 1/8 20.8 us to 21.7 and 18.5 to 18.9 (2 tokens of qwen3-30b-a3b), with 1/2 133 to 126 and
 * 131 to 126 (2 of mixtral-8x7b).
 */
const SHARED_CHOICES = 1 / 2;
/**
 * From so many tokens what skewed loads gain is more than what others lose: with 4 tokens of qwen3-30b-a3b 35.9 to 36.7 and 27.2 to 25.6. With
 * the second product together as well a step of it takes 63.5 us instead of 64.0, with Zipf 1 and 1.5 56.7 instead of 58.1 and 49.6 instead of 52.2.
 */
const MANY_TOKENS = 3;
/**
 * Second products have a program for a group of rows then, instead of one for each token as well. With more of them than this for each
 * multiprocessor they keep the memory busy anyway: 4096 rows, 4 tokens, 146 us to 110; 7168 rows, 2 tokens, 90.9 to 83.5. With
 * fewer it takes shared experts or many tokens: 2048 rows 49.1 to 44.1 and 45.1 to 31.7 with 1/2, 21.5 to 23.6 and 19.4 to 17.2 with 1/4;
 * 2880 rows 48.7 to 49.6 and 46.3 to 38.9 with 1/2, 28.2 to 32.4 and 25.6 to 25.4 with 1/4. With hardly half a program each nothing helps:
 * 1024 rows 8.4 to 12.8 and 8.3 to 10.1 with 1/2.
 */
const MANY_PROGRAMS = 1.5;
const FEWEST_PROGRAMS = 0.9;

export function jointly({ mostTokens, topK, experts, n, multiprocessors }: JointSizes): {
  readonly first: boolean;
  readonly second: boolean;
} {
  if (mostTokens === 1) return { first: false, second: false };
  const first = mostTokens * topK >= SHARED_CHOICES * experts || mostTokens >= MANY_TOKENS;
  const programs = n / GROUP_ROWS / multiprocessors;
  const second = programs >= MANY_PROGRAMS || (first && programs >= FEWEST_PROGRAMS);
  return { first, second };
}
