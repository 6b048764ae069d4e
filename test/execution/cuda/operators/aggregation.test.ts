/** `combine` and `decode` as work. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ProjectionSpec } from "../../../../src/execution/device.ts";
import { addressOf, FakeDevice } from "./harness.ts";
import { combineOf, decodeOf, NOTHING_TO_TIDY } from "./operators.ts";

describe("combine", () => {
  for (const [mode, rowType, outputType, width, name] of [
    ["sum", "bfloat16", "bfloat16", 96, "combine_bf16_bf16"],
    ["sum", "bfloat16", "float32", 100, "combine_bf16_fp32_any"],
    ["sum", "float16", "float32", 64, "combine_fp16_fp32"],
    ["sum", "float32", "float32", 7, "combine_fp32_fp32_any"],
    ["concat", "bfloat16", "float32", 2048, "concat_bf16_fp32"],
    ["concat", "float16", "float16", 100, "concat_fp16_fp16_any"],
  ] as const) {
    it(`(${mode}) of ${rowType} to ${outputType}, width ${width}, takes ${name}`, async () => {
      const device = await FakeDevice.open();
      const operator = combineOf(device, { mode, rowType, outputType, width });
      const kernel = device.kernel(operator);
      assert.equal(kernel.name, name);
      const { values, work } = kernel;
      assert.deepEqual(
        ["width", "row_pitch", "top_k", "options", "rows", "inverse", "out", "tokens"].map(
          (field) => values[field],
        ),
        [
          width,
          Math.ceil(width / 64) * 64,
          3,
          0,
          ...[operator.rows, operator.inverse, operator.output, operator.tokens].map(addressOf),
        ],
      );
      assert.deepEqual([work.persistent, work.budgeted], [true, false]);
      assert.equal(work.tidiesUp, mode === "sum");
      const tidying = Object.entries(values).filter(([field]) => field.startsWith("tidy_"));
      assert.deepEqual(Object.fromEntries(tidying), mode === "sum" ? NOTHING_TO_TIDY : {});
      const pieces = mode === "sum" ? 10 * Math.ceil(width / 256) : 30 * Math.ceil(width / 1024);
      assert.equal(work.blocks(132), Math.min(pieces, 132 * 32));
      assert.equal(work.blocks(0.25), 8);
    });
  }

  it("adds what it is given, and mirrors its output", async () => {
    const device = await FakeDevice.open();
    const weights = device.buffer(30 * 4);
    const shared = device.buffer(10 * 128 * 2);
    const sharedScale = device.buffer(10 * 4);
    const residual = device.buffer(10 * 128 * 2);
    const output = device.buffer(10 * 100 * 4, "output", true);
    const operator = combineOf(device, { weights, shared, sharedScale, residual, output });
    const { values } = device.kernel(operator);
    assert.deepEqual(
      ["options", "weights", "shared", "shared_scale", "residual"].map((field) => values[field]),
      [15, ...[weights, shared, sharedScale, residual].map(addressOf)],
    );
    const { beside, afterBeside } = device.encode(operator);
    assert.deepEqual(beside, [
      {
        kind: "mirror",
        target: output.mirror?.address,
        source: output.address,
        bytes: output.byteLength,
      },
    ]);
    assert.equal(afterBeside, false);
    assert.equal(
      device.kernel(combineOf(device, { residual })).values["options"],
      8,
      "each has its bit",
    );
  });
});

describe("decode", () => {
  it("is two kernels, from ids to output", async () => {
    const device = await FakeDevice.open();
    const first = device.projection({
      count: 8,
      inputs: 100,
      outputs: 72,
      gated: true,
      bias: true,
    });
    const second = device.projection({ count: 8, inputs: 72, outputs: 100, bias: true });
    const inputScale = device.buffer(12 * 4);
    const weights = device.buffer(12 * 4);
    const residual = device.buffer(4 * 128 * 2);
    const operator = decodeOf(device, { first, second, inputScale, weights, residual });
    const [one, two] = device.kernels(device.encode(operator).work);
    assert.equal(one?.name, "decode_first_gated_logistic_bf16_16x256");
    assert.deepEqual(one?.grid, { x: 12, y: 16, z: 1 });
    assert.deepEqual(one?.values, {
      x: addressOf(operator.input),
      w: first.address,
      bias: first.bias(0),
      out: addressOf(operator.inner),
      ids: addressOf(operator.ids),
      input_scale: inputScale.address,
      tokens: addressOf(operator.tokens),
      n: 256,
      k: 128,
      x_pitch: 128,
      out_pitch: 128,
      top_k: 3,
      options: 2 | 4,
      code: 4,
      linear: 1,
      cubic: 0,
      limit: Number.POSITIVE_INFINITY,
      shift: 0,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.equal(two?.name, "decode_second_bf16_fp32_4x1024");
    assert.deepEqual([one?.work.tidiesUp, two?.work.tidiesUp], [undefined, true]);
    assert.deepEqual(two?.grid, { x: 4, y: 32, z: 1 });
    assert.deepEqual(two?.values, {
      x: addressOf(operator.inner),
      w: second.address,
      bias: second.bias(0),
      ids: addressOf(operator.ids),
      weights: weights.address,
      shared: 0n,
      shared_scale: 0n,
      residual: residual.address,
      out: addressOf(operator.output),
      tokens: addressOf(operator.tokens),
      width: 100,
      n: 128,
      k: 128,
      x_pitch: 128,
      row_pitch: 128,
      top_k: 3,
      options: 1 | 8 | 16,
      ...NOTHING_TO_TIDY,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
  });

  for (const [element, gated, kind, inner, outputType, names] of [
    ["bfloat16", true, "gelu-tanh", 1024, "bfloat16", ["gated_logistic_bf16", "bf16_bf16"]],
    ["bfloat16", true, "relu", 1025, "bfloat16", ["gated_coded_bf16", "bf16_bf16"]],
    ["float16", false, "relu", 4096, "float32", ["plain_coded_fp16", "fp16_fp32"]],
    ["float16", false, "none", 64, "float16", ["plain_coded_fp16", "fp16_fp16"]],
    ["float32", true, "silu", 64, "float32", ["gated_logistic_fp32", "fp32_fp32"]],
  ] as const) {
    it(`of ${element}, ${gated ? "gated" : "plain"} ${kind}, ${inner} wide, takes ${names.join(" and ")}`, async () => {
      const device = await FakeDevice.open();
      const type = { count: 4, dtype: element, input: element };
      const operator = decodeOf(device, {
        first: device.projection({ ...type, inputs: 64, outputs: inner, gated }),
        second: device.projection({ ...type, inputs: inner, outputs: 64 }),
        activation: { kind },
        outputType,
        topK: 2,
      });
      assert.deepEqual(
        device.kernels(device.encode(operator).work).map(({ name }) => name),
        [`decode_first_${names[0]}_16x256`, `decode_second_${names[1]}_4x1024`],
      );
    });
  }

  it("takes a tile for the second product by the length of its rows and by how many programs it makes", async () => {
    const device = await FakeDevice.open();
    /** Rows and columns of the first product's tile and of the second's. */
    const taken = (hidden: number, inner: number, mostTokens: number) => {
      const operator = decodeOf(device, {
        first: device.projection({ inputs: hidden, outputs: inner, gated: true }),
        second: device.projection({ inputs: inner, outputs: hidden }),
        mostTokens,
        outputType: "bfloat16",
      });
      const names = device.kernels(device.encode(operator).work).map(({ name }) => name);
      return names.map((name) => name.split("_").at(-1));
    };
    assert.deepEqual(taken(1024, 1024, 1), ["16x256", "4x1024"]);
    // 2048 programs of four rows are 1.6 waves of the first tile, and less than one of the last.
    assert.deepEqual(taken(2048, 1024, 4), ["16x256", "4x256"]);
    // Longer rows have one of two rows as well: 2.8 waves.
    assert.deepEqual(taken(2048, 1025, 4), ["16x256", "2x1024"]);
    // Very long ones have the last alone.
    assert.deepEqual(taken(2048, 8192, 1), ["16x256", "4x1024"]);
    assert.deepEqual(taken(2048, 8193, 1), ["16x256", "4x256"]);
  });

  it("refuses projections that do not follow each other, and too many tokens", async () => {
    const device = await FakeDevice.open();
    const refused = (
      first: Partial<ProjectionSpec>,
      second: Partial<ProjectionSpec>,
      message: RegExp,
    ) =>
      assert.throws(
        () =>
          device.encode(
            decodeOf(device, {
              first: device.projection({ count: 8, inputs: 100, outputs: 72, ...first }),
              second: device.projection({ count: 8, inputs: 72, outputs: 100, ...second }),
              topK: 1,
            }),
          ),
        { name: "InvalidArgumentError", message },
      );
    const wrong = /decode: first is \d matrices of 100 inputs .* and second is/;
    refused({ count: 7 }, {}, wrong);
    refused({ outputs: 73 }, {}, wrong);
    refused({ dtype: "float16", input: "float16" }, {}, wrong);
    refused({}, { gated: true }, /decode: second is gated/);
    refused({}, { output: "float32", count: 1 }, /decode: second puts out float32/);
    const operator = decodeOf(device);
    assert.throws(
      () => device.encode({ ...operator, mostTokens: 5 }),
      /decode: mostTokens is 5\. Use a whole number from 1 to 4\./,
    );
    assert.throws(
      () => device.encode({ ...operator, topK: 9 }),
      /decode: topK is 9\. Use a whole number from 1 to 8\./,
    );
    const count = 40;
    const many = { first: device.projection({ count, outputs: 72 }), topK: 33 };
    const second = device.projection({ count, inputs: 72, outputs: 100 });
    assert.throws(
      () => device.encode(decodeOf(device, { ...many, second })),
      /decode: topK is 33\. Use a whole number from 1 to 32\./,
    );
    device.encode(decodeOf(device, { ...many, second, topK: 32 }));
  });
});
