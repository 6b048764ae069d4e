/** Rows rounded by the host, against roundings written another way. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { roundedRows } from "../../../src/execution/cuda/rounding.ts";
import { randomFor } from "../../support/seed.ts";
import { brainBits, halfBits } from "./emulator/numbers.ts";

const ROUND = { bfloat16: brainBits, float16: halfBits } as const;
const NAN = { bfloat16: 0x7f80, float16: 0x7c00 } as const;

function agree(dtype: keyof typeof ROUND, values: Float32Array): void {
  const layout = { dtype, width: values.length, pitch: values.length };
  const found = roundedRows(values, layout, 1);
  for (const [i, value] of values.entries()) {
    const bits = found[i] as number;
    if (Number.isNaN(value)) assert.ok((bits & 0x7fff) > NAN[dtype], `${bits} for NaN`);
    else assert.equal(bits, ROUND[dtype](value), `${dtype} of ${value}`);
  }
}

describe("rows rounded by the host", () => {
  for (const dtype of ["bfloat16", "float16"] as const) {
    it(`of random bits, to ${dtype}`, () => {
      const random = randomFor(`rounding to ${dtype}`);
      const bits = Uint32Array.from({ length: 200_000 }, () => random.integer(2 ** 32));
      agree(dtype, new Float32Array(bits.buffer));
    });

    it(`about the ends of ${dtype} and halfway between its numbers`, () => {
      const ends = [0, 2 ** -149, 2 ** -126, 2 ** -25, 2 ** -24, 2 ** -14, 1, 65504, 65520, 3e38];
      const halfway = Array.from({ length: 4096 }, (_, i) => (i + 0.5) * 2 ** -24);
      const words = new Uint32Array(1);
      const float = new Float32Array(words.buffer);
      const beside = [...ends, ...halfway, Number.POSITIVE_INFINITY].flatMap((value) =>
        [-2, -1, 0, 1, 2].map((step) => {
          float[0] = value;
          words[0] = Math.max(0, (words[0] as number) + step);
          return float[0] as number;
        }),
      );
      agree(dtype, Float32Array.from([...beside, ...beside.map((value) => -value)]));
    });
  }

  it("row by row, with zeros between them", () => {
    const values = Float32Array.of(1, 2, 3, 4, 5, 6);
    const found = roundedRows(values, { dtype: "bfloat16", width: 3, pitch: 5 }, 2);
    const [a, b, c, d, e, f] = Array.from(values, brainBits);
    assert.deepEqual([...found], [a, b, c, 0, 0, d, e, f, 0, 0]);
  });
});
