/** Which of decode's products of packed weights take several tokens together: those that were measured to take less time so. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { jointly } from "../../../../src/execution/cuda/operators/decode-joint.ts";

const H200 = { multiprocessors: 132 };

describe("products of packed weights", () => {
  for (const [shape, experts, topK, n, mostTokens, first, second] of [
    ["qwen3-30b-a3b", 128, 8, 2048, 1, false, false],
    ["qwen3-30b-a3b", 128, 8, 2048, 2, false, false],
    ["qwen3-30b-a3b", 128, 8, 2048, 4, true, true],
    ["olmoe-1b-7b", 64, 8, 2048, 2, false, false],
    ["olmoe-1b-7b", 64, 8, 2048, 4, true, true],
    ["gpt-oss-20b", 32, 4, 2880, 2, false, false],
    ["gpt-oss-20b", 32, 4, 2880, 4, true, true],
    ["mixtral-8x7b", 8, 2, 4096, 1, false, false],
    ["mixtral-8x7b", 8, 2, 4096, 2, true, true],
    ["deepseek-v3", 256, 8, 7168, 2, false, true],
    ["deepseek-v3", 256, 8, 7168, 4, true, true],
    ["medium", 16, 2, 1024, 4, true, false],
  ] as const) {
    it(`of ${mostTokens} tokens of ${shape} take them ${first ? "" : "not "}together at first, ${second ? "" : "not "}at last`, () => {
      assert.deepEqual(jointly({ experts, topK, n, mostTokens, ...H200 }), { first, second });
    });
  }
});
