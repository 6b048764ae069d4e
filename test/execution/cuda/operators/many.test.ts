/** `project` of many rows as work: where the kernels made for them serve, and their tensor map of the input. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Activation } from "../../../../src/execution/operators.ts";
import { type FakeBuffer, FakeDevice } from "./harness.ts";
import { lane, projectAll } from "./operators.ts";

const SILU: Activation = { kind: "silu" };
const NONE: Activation = { kind: "none" };
/** 250 rows an expert. */
const MANY = { experts: 8, topK: 2, mostTokens: 1000 };
/** The least inputs that need 192 elements a row. */
const INPUTS = 129;

describe("a product of many rows", () => {
  for (const [element, short] of [
    ["bfloat16", "bf16"],
    ["float16", "fp16"],
  ] as const) {
    const type = { dtype: element, input: element, inputs: INPUTS };

    it(`of ${element}, gated and gathered, takes its kernel`, async () => {
      const { device, operator } = await lane(MANY, { ...type, gated: true }, {}, SILU);
      const { name, values } = device.kernel(operator);
      assert.equal(name, `project_gated_logistic_${short}_many128`);
      assert.equal(values["x"], (operator.input as FakeBuffer).address);
      // Gathered, in half the time, weights read once.
      assert.equal(values["options"], 1 | 16 | 128);
      assert.equal(device.maps.length, 1, "of the weights alone");
    });

    it(`of ${element}, plain and in order, takes its kernel`, async () => {
      const { device, operator, projection } = await lane(MANY, type, { gather: false });
      const { name, values } = device.kernel(operator);
      assert.equal(name, `project_plain_identity_${short}_many128`);
      const common = { element, swizzle: 3, l2Promotion: 2 };
      const input = operator.input as FakeBuffer;
      assert.deepEqual(device.maps, [
        { ...common, address: input.address, shape: [2000, 192], box: [128, 64] },
        // Rows of the input lie in one piece; those of the weights in three panels a matrix.
        { ...common, address: projection.address, shape: [8 * 3 * 128, 64], box: [256, 64] },
      ]);
      const first = (name: string) => (values[name] as Uint8Array)[0];
      assert.deepEqual([first("x"), first("w")], [1, 2]);
    });
  }

  it("takes its kernel for tiles of 64 rows, but gathers with another one what the L2 holds", async () => {
    const some = { ...MANY, mostTokens: 160 };
    const cached = (await FakeDevice.open()).context.facts.l2Bytes;
    for (const weightBytes of [cached, cached + 1]) {
      const second = await lane(some, { inputs: INPUTS }, { gather: false }, NONE, weightBytes);
      const { name } = second.device.kernel(second.operator);
      assert.equal(name, "project_plain_identity_bf16_many64");
      assert.deepEqual(second.device.maps[0]?.box, [64, 64]);
      const first = await lane(some, { inputs: INPUTS, gated: true }, {}, SILU, weightBytes);
      const which = weightBytes > cached ? "many64" : "rows64";
      const gathers = first.device.kernel(first.operator).name;
      assert.equal(gathers, `project_gated_logistic_bf16_${which}`);
    }
  });

  it("takes its kernels for tiles of 32 rows, where weights come from memory", async () => {
    const few = { ...MANY, mostTokens: 32 };
    const cached = (await FakeDevice.open()).context.facts.l2Bytes;
    for (const [weightBytes, inputs, height] of [
      [cached, INPUTS, "rows16"],
      [cached + 1, INPUTS, "many32"],
      // Rows that are too short for it go through a taller one, by the same list.
      [cached + 1, 128, "rows64"],
    ] as const) {
      const first = await lane(few, { inputs, gated: true }, {}, SILU, weightBytes);
      const gathers = first.device.kernel(first.operator).name;
      assert.equal(gathers, `project_gated_logistic_bf16_${height}`);
      const second = await lane(few, { inputs }, { gather: false }, NONE, weightBytes);
      const { name } = second.device.kernel(second.operator);
      assert.equal(name, `project_plain_identity_bf16_${height}`);
    }
  });

  it("takes the others where rows are short", async () => {
    const type = { inputs: 128 };
    const first = await lane(MANY, { ...type, gated: true }, {}, SILU);
    assert.equal(first.device.kernel(first.operator).name, "project_gated_logistic_bf16_rows128");
    const second = await lane(MANY, type, { gather: false });
    assert.equal(second.device.kernel(second.operator).name, "project_plain_identity_bf16_rows128");
  });

  it("gathers what is plain with the others, and takes what is gated as it lies", async () => {
    const plain = await lane(MANY, { inputs: INPUTS });
    assert.equal(plain.device.kernel(plain.operator).name, "project_plain_identity_bf16_rows128");
    const gated = await lane(MANY, { inputs: INPUTS, gated: true }, { gather: false }, SILU);
    const { name, values } = gated.device.kernel(gated.operator);
    assert.deepEqual([name, values["options"]], ["project_gated_logistic_bf16_many128", 16 | 128]);
  });

  it("takes kernels of their own for biases", async () => {
    const first = await lane(MANY, { inputs: INPUTS, gated: true, bias: true }, {}, SILU);
    assert.equal(
      first.device.kernel(first.operator).name,
      "project_gated_logistic_bias_bf16_many128",
    );
    const second = await lane(MANY, { inputs: INPUTS, bias: true }, { gather: false });
    const { name, values } = second.device.kernel(second.operator);
    assert.equal(name, "project_plain_identity_bias_bf16_many128");
    assert.equal(values["bias"], second.projection.bias(0));
  });

  it("takes the others for input scales, with biases and without", async () => {
    for (const bias of [false, true]) {
      const spec = { inputs: INPUTS, gated: true, bias };
      const { device, operator, buffers } = await lane(MANY, spec, {}, SILU);
      const rows = { ...operator.rows, inputScale: buffers.weights };
      const { name } = device.kernel({ ...operator, rows });
      assert.equal(name, "project_gated_logistic_extras_bf16_rows128");
    }
  });

  it("takes the others for coded activations and fewer rows", async () => {
    const inOrder = { gather: false };
    const few = { ...MANY, mostTokens: 8 };
    for (const [expected, sizes, spec, rows, activation] of [
      ["project_gated_logistic_extras_bf16_rows16", few, { gated: true, bias: true }, {}, SILU],
      ["project_plain_identity_extras_bf16_rows16", few, { bias: true }, inOrder, NONE],
      ["project_gated_coded_extras_bf16_rows128", MANY, { gated: true }, {}, { kind: "gelu" }],
      ["project_plain_coded_extras_bf16_rows128", MANY, {}, inOrder, SILU],
      ["project_gated_logistic_bf16_rows16", few, { gated: true }, {}, SILU],
      ["project_plain_identity_bf16_rows16", few, {}, inOrder, NONE],
    ] as const) {
      const wide = { inputs: INPUTS, ...spec };
      const { device, operator } = await lane(sizes, wide, rows, activation);
      assert.equal(device.kernel(operator).name, expected);
    }
  });

  it("serves all rows with one matrix, whose input is as long as it says", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 2, inputs: INPUTS });
    const operator = projectAll(device, { projection }, 300);
    const { name, values, grid } = device.kernel(operator);
    assert.equal(name, "project_plain_identity_bf16_many128");
    assert.deepEqual([values["options"], values["tiles"]], [8, 0n]);
    assert.deepEqual(grid, { x: 3, y: 1, z: 1 });
    assert.equal(device.maps[0]?.address, (operator.input as FakeBuffer).address);
    assert.deepEqual(device.maps[0]?.shape, [300, 192]);
    const gated = device.projection({ inputs: INPUTS, gated: true });
    const first = device.kernel(projectAll(device, { projection: gated, activation: SILU }, 300));
    assert.equal(first.name, "project_gated_logistic_bf16_many128");
  });

  it("has its own kernels only where they were made", async () => {
    const device = await FakeDevice.open({ capability: [8, 0] });
    const projection = device.projection({ inputs: INPUTS });
    const { name } = device.kernel(projectAll(device, { projection }, 300));
    assert.equal(name, "project_plain_identity_extras_bf16_rows128");
  });
});

describe("the tensor map of an input", () => {
  it("is made once for each size", async () => {
    const { device, operator } = await lane(MANY, { inputs: INPUTS }, { gather: false });
    device.kernel(operator);
    device.kernel(operator);
    assert.equal(device.maps.length, 2);
    const { input, projection } = operator;
    device.kernel(projectAll(device, { input, projection }, 300));
    assert.deepEqual(
      device.maps.map(({ shape }) => shape),
      [
        [2000, 192],
        [8 * 3 * 128, 64],
        [300, 192],
      ],
    );
  });

  it("is given back with its buffer, and not before", async () => {
    const { device, operator, projection } = await lane(
      MANY,
      { inputs: INPUTS },
      { gather: false },
    );
    const input = operator.input as FakeBuffer;
    device.kernel(operator);
    const before = device.heap.chunks.length;
    for (let i = 0; i < 2000; i++) {
      const other = device.buffer(input.byteLength, "input");
      const encoded = device.encode({ ...operator, input: other });
      encoded[Symbol.dispose]();
      other[Symbol.dispose]();
      other[Symbol.dispose]();
    }
    assert.equal(device.heap.chunks.length, before);
    assert.equal(device.maps.filter(({ address }) => address === projection.address).length, 1);
    assert.equal(device.maps.filter(({ address }) => address === input.address).length, 1);
  });
});
