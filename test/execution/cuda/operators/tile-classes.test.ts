/** Classes of tiles: when experts are kept apart by their rows, and that every number of rows is of one class. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { tileClasses } from "../../../../src/execution/cuda/operators/tile-classes.ts";
import { FakeDevice } from "./harness.ts";

const MIB = 2 ** 20;
const H100 = 3.35e12;
const H200 = 4.8e12;

interface Case {
  readonly tokens: number;
  readonly experts: number;
  readonly topK: number;
  readonly expertMib: number;
  readonly beside?: boolean;
  readonly speed?: number;
}

async function classesOf({ tokens, experts, topK, expertMib, beside = true, speed = H200 }: Case) {
  const { context } = await FakeDevice.open({ memoryBytesPerSecond: speed, l2Bytes: 50 * MIB });
  return tileClasses(context, "bfloat16", {
    slots: tokens * topK,
    experts,
    weightBytes: experts * expertMib * MIB,
    mostTokens: tokens,
    packedBeside: beside,
  });
}

const MIXTRAL = { tokens: 256, experts: 8, topK: 2, expertMib: 336 };
const DEEPSEEK = { tokens: 1024, experts: 256, topK: 8, expertMib: 84 };
const ANY = 0x7fffffff;

describe("classes of tiles", () => {
  for (const [rows, each, found] of [
    [
      "few rows",
      { ...DEEPSEEK, tokens: 256 },
      [
        [32, 1, 32],
        [64, 33, 64],
        [128, 65, ANY],
      ],
    ],
    [
      "32 rows",
      DEEPSEEK,
      [
        [32, 1, 32],
        [64, 33, 64],
        [128, 65, ANY],
      ],
    ],
    [
      "some more",
      { ...DEEPSEEK, tokens: 1025 },
      [
        [32, 1, 32],
        [128, 33, ANY],
      ],
    ],
    [
      "64 rows",
      MIXTRAL,
      [
        [32, 1, 32],
        [128, 33, ANY],
      ],
    ],
  ] as const) {
    it(`are several of large experts with ${rows} on average that are kept both ways where memory is fast`, async () => {
      const classes = await classesOf(each);
      assert.deepEqual(
        classes.map(({ rows, leastRows, mostRows }) => [rows, leastRows, mostRows]),
        found,
      );
      assert.deepEqual(
        classes.map(({ reads }) => reads),
        [...classes.slice(1).map(() => "packed"), "plain"],
      );
    });
  }

  for (const [why, each, height] of [
    ["weights are kept one way", { ...DEEPSEEK, beside: false }, 64],
    ["memory is not fast", { ...DEEPSEEK, speed: H100 }, 64],
    ["there are few tokens", { ...DEEPSEEK, tokens: 255 }, 32],
    ["experts have many rows on average", { ...MIXTRAL, tokens: 257 }, 128],
    ["the L2 holds an expert", { ...DEEPSEEK, expertMib: 50 }, 64],
  ] as const) {
    it(`are one where ${why}`, async () => {
      const [only, ...others] = await classesOf(each);
      assert.deepEqual(only, { rows: height, leastRows: 1, mostRows: ANY });
      assert.deepEqual(others, []);
    });
  }
});
