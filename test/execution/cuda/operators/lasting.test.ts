/** What products and the sum tell the L2: by the bytes of all weights, and of the rows between kernels. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { CombineOperator } from "../../../../src/execution/operators.ts";
import { BYTES_PER_ELEMENT } from "../../../../src/tensor.ts";
import { FakeDevice } from "./harness.ts";
import { combineOf, decodeOf, lane } from "./operators.ts";

const READ_ONCE = 128;
const KEEP = 256;
const DECODE_SECOND_READ_ONCE = 32;
const ROWS_SPENT = 16;
const INNER_SPENT = 32;
const TOP_K = 2;
const WIDTH = 1024;
const device = await FakeDevice.open();
const { l2Bytes } = device.context.facts;
/** So many that nobody has many rows. */
const MANY_EXPERTS = 1024;
/** Most rows an expert for which anything is kept or dropped. */
const MOST_SHARE = 128;

/** Most tokens whose rows of WIDTH elements are twice what the L2 holds. */
function mostTokens(element: "bfloat16" | "float32"): number {
  return Math.floor((2 * l2Bytes) / (TOP_K * WIDTH * BYTES_PER_ELEMENT[element]));
}

describe("a product", () => {
  const told = async (tokens: number, gather: boolean, weightBytes?: number, experts = 8) => {
    const sizes = { experts, topK: TOP_K, mostTokens: tokens };
    const spec = { inputs: 64, outputs: WIDTH };
    const none = { kind: "none" } as const;
    const { device: own, operator } = await lane(sizes, spec, { gather }, none, weightBytes);
    return Number(own.kernel(operator).values["options"]) & (READ_ONCE | KEEP);
  };

  it("reads weights once and, if it is the first, keeps rows, unless the L2 holds all weights", async () => {
    for (const tokens of [16, 160, 512]) {
      for (const weightBytes of [undefined, l2Bytes + 1]) {
        assert.equal(await told(tokens, true, weightBytes), READ_ONCE | KEEP);
        assert.equal(await told(tokens, false, weightBytes), READ_ONCE);
      }
      assert.equal(await told(tokens, true, l2Bytes), 0);
      assert.equal(await told(tokens, false, l2Bytes), 0);
    }
  });

  it("keeps rows of up to twice the L2, and of up to 128 an expert", async () => {
    const most = mostTokens("bfloat16");
    assert.equal(await told(most, true, undefined, MANY_EXPERTS), READ_ONCE | KEEP);
    assert.equal(await told(most + 1, true, undefined, MANY_EXPERTS), READ_ONCE);
    const ofEight = (MOST_SHARE * 8) / TOP_K;
    assert.equal(await told(ofEight, true), READ_ONCE | KEEP);
    assert.equal(await told(ofEight + 1, true), READ_ONCE);
  });
});

describe("decode", () => {
  /** Whether either product of experts of so many bytes in all reads weights once. */
  const told = async (weightBytes: number, tokens: number) => {
    const own = await FakeDevice.open({ l2Bytes: 4096 * 1024 });
    // 2 x 64 x 64 and 64 x 64 elements of two bytes an expert.
    const count = weightBytes / (3 * 64 * 64 * 2);
    const first = own.projection({ count, inputs: 64, outputs: 64, gated: true });
    const second = own.projection({ count, inputs: 64, outputs: 64 });
    const sizes = { first, second, mostTokens: tokens, topK: TOP_K };
    const { work } = own.encode(decodeOf(own, sizes));
    const [one, other] = own.kernels(work).map(({ values }) => Number(values["options"]));
    return [
      ((one as number) & READ_ONCE) !== 0,
      ((other as number) & DECODE_SECOND_READ_ONCE) !== 0,
    ];
  };
  const [held, more] = [170 * 3 * 64 * 64 * 2, 171 * 3 * 64 * 64 * 2];

  it("reads weights once, the second product a single token's, unless the L2 holds all weights", async () => {
    assert.ok(held <= 4096 * 1024 && more > 4096 * 1024);
    for (const tokens of [1, 2, 4]) {
      assert.deepEqual(await told(held, tokens), [false, false]);
      assert.deepEqual(await told(more, tokens), [true, tokens === 1]);
    }
  });
});

describe("a sum", () => {
  const told = (tokens: number, changes: Parameters<typeof combineOf>[1] = {}) => {
    const sizes = { mostTokens: tokens, topK: TOP_K, width: WIDTH };
    return device.kernel(combineOf(device, { ...sizes, ...changes })).values;
  };

  for (const rowType of ["bfloat16", "float32"] as const) {
    const bytes = BYTES_PER_ELEMENT[rowType];
    const most = mostTokens(rowType);

    it(`drops spent rows of ${rowType} and what they were made of, up to twice the L2 of each`, () => {
      for (const [tokens, innerWidth, expected] of [
        [10, 100, ROWS_SPENT | INNER_SPENT],
        [most, WIDTH, ROWS_SPENT | INNER_SPENT],
        [most, WIDTH + 64, ROWS_SPENT],
        [most + 1, WIDTH - 64, INNER_SPENT],
        [most + 1, WIDTH, 0],
      ] as const) {
        const pitch = Math.ceil(innerWidth / 64) * 64;
        const inner = device.buffer(tokens * TOP_K * pitch * bytes, "inner");
        const values = told(tokens, {
          rowType,
          spent: { inner, innerWidth, experts: MANY_EXPERTS },
        });
        assert.deepEqual(
          [values["options"], values["inner"], values["inner_pitch"]],
          [expected, inner.address, pitch],
        );
      }
    });
  }

  it("drops the rows alone where they were made of nothing else", () => {
    const values = told(10, { spent: { innerWidth: 64, experts: 8 } });
    assert.deepEqual([values["options"], values["inner"]], [ROWS_SPENT, 0n]);
  });

  it("drops nothing where the L2 holds all weights, nor what is not spent", () => {
    const inner = device.buffer(10 * TOP_K * 64 * 2, "inner");
    const spent = (weightBytes: number) => ({
      spent: { inner, innerWidth: 64, experts: 8, weightBytes },
    });
    assert.equal(told(10, spent(l2Bytes))["options"], 0);
    assert.equal(told(10, spent(l2Bytes + 1))["options"], ROWS_SPENT | INNER_SPENT);
    assert.deepEqual([told(10)["options"], told(10)["inner"]], [0, 0n]);
  });

  it("drops rows of up to 128 an expert", () => {
    const spent = { innerWidth: 64, experts: 8 };
    const ofEight = (MOST_SHARE * 8) / TOP_K;
    assert.equal(told(ofEight, { spent })["options"], ROWS_SPENT);
    assert.equal(told(ofEight + 1, { spent })["options"], 0);
  });

  it("is refused with too little of what the rows were made of, and of no experts", () => {
    const inner = device.buffer(10 * TOP_K * 64 * 2 - 1, "inner");
    const refused = (spent: CombineOperator["spent"], message: RegExp) =>
      assert.throws(() => told(10, spent && { spent }), message);
    refused({ inner, innerWidth: 64, experts: 8 }, /combine: spent\.inner/);
    refused({ innerWidth: 0, experts: 8 }, /combine: spent\.innerWidth is 0/);
    refused({ innerWidth: 64, experts: 0 }, /combine: spent\.experts is 0/);
  });
});
