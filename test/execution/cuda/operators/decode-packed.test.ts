/** `decode` with packed weights as work: which kernels, which values, when they are read, and what there are no kernels for. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { DecodeOperator } from "../../../../src/execution/operators.ts";
import { addressOf, FakeDevice } from "./harness.ts";
import { decodeOf, NOTHING_TO_TIDY } from "./operators.ts";

const FIRST = { count: 8, inputs: 100, outputs: 72, gated: true, bias: true };
const SECOND = { count: 8, inputs: 72, outputs: 100 };
const PACKED = ["decode_packed_first_joint_bf16", "decode_packed_second_bf16_fp32_16x2"];
const PLAIN = ["decode_first_gated_logistic_bf16_16x256", "decode_second_bf16_fp32_4x1024"];
/** Of an L2 that holds no experts here. */
const SMALL_L2 = { l2Bytes: 1024 };

const namesOf = (device: FakeDevice, operator: DecodeOperator) =>
  device.kernels(device.encode(operator).work).map(({ name }) => name);

describe("decode of packed weights", () => {
  it("takes kernels of its own, with words, scales and patches by address", async () => {
    const device = await FakeDevice.open();
    const [first, second] = [device.packed(FIRST), device.packed(SECOND)];
    const weights = device.buffer(12 * 4);
    const operator = decodeOf(device, { first, second, weights });
    const [one, two, ...rest] = device.kernels(device.encode(operator).work);
    assert.deepEqual([one?.name, two?.name], PACKED);
    assert.deepEqual(rest, []);
    // 2 x 128 rows in groups of 16, and 128 of them.
    assert.deepEqual(
      [one?.grid, two?.grid],
      [
        { x: 12, y: 16, z: 1 },
        { x: 4, y: 8, z: 1 },
      ],
    );
    const { flags: _, ...tables } = first.tables;
    assert.deepEqual(one?.values, {
      ...tables,
      words: first.address,
      x: addressOf(operator.input),
      bias: first.bias(0),
      out: addressOf(operator.inner),
      ids: addressOf(operator.ids),
      tokens: addressOf(operator.tokens),
      n: 256,
      k: 128,
      x_pitch: 128,
      out_pitch: 128,
      top_k: 3,
      options: 2,
      code: 4,
      linear: 1,
      cubic: 0,
      limit: Number.POSITIVE_INFINITY,
      shift: 0,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    const { flags: __, ...others } = second.tables;
    assert.deepEqual(two?.values, {
      ...others,
      words: second.address,
      x: addressOf(operator.inner),
      bias: 0n,
      ids: addressOf(operator.ids),
      weights: weights.address,
      shared: 0n,
      shared_scale: 0n,
      residual: 0n,
      out: addressOf(operator.output),
      tokens: addressOf(operator.tokens),
      width: 100,
      n: 128,
      k: 128,
      x_pitch: 128,
      row_pitch: 128,
      top_k: 3,
      options: 1,
      ...NOTHING_TO_TIDY,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
  });

  it("takes tokens together, by other kernels, that read every expert once", async () => {
    const device = await FakeDevice.open(SMALL_L2);
    const first = device.packed(FIRST);
    const second = device.packed({ ...SECOND, outputs: 4096 });
    const [one, two] = device.kernels(device.encode(decodeOf(device, { first, second })).work);
    assert.deepEqual(
      [one?.name, two?.name],
      ["decode_packed_first_joint_bf16", "decode_packed_second_joint_bf16_fp32_16x1"],
    );
    assert.deepEqual(two?.grid, { x: 256, y: 1, z: 1 });
    assert.equal((two?.values["options"] as number) & 32, 32);
    const single = decodeOf(device, { first, second, mostTokens: 1 });
    assert.deepEqual(namesOf(device, single), [
      "decode_packed_first_bf16",
      "decode_packed_second_bf16_fp32_8x2",
    ]);
  });

  it("reads weights that are there both ways packed, unless the L2 holds them or there is no kernel", async () => {
    const taken = async (
      facts: Partial<Parameters<typeof FakeDevice.open>[0]>,
      changes: (device: FakeDevice) => Partial<DecodeOperator> = () => ({}),
    ) => {
      const device = await FakeDevice.open(facts);
      const [first, second] = [await device.beside(FIRST), await device.beside(SECOND)];
      return namesOf(device, decodeOf(device, { first, second, ...changes(device) }));
    };
    assert.deepEqual(await taken(SMALL_L2), PACKED);
    assert.deepEqual(await taken({}), PLAIN, "the L2 holds them");
    const inputScale = (device: FakeDevice) => ({ inputScale: device.buffer(48) });
    assert.deepEqual(await taken(SMALL_L2, inputScale), PLAIN);
    const relu = () => ({ activation: { kind: "relu" } as const });
    assert.match((await taken(SMALL_L2, relu))[0] ?? "", /^decode_first_gated_coded_bf16/);
  });

  it("reads plain ones while one product's packed ones are not current", async () => {
    const device = await FakeDevice.open(SMALL_L2);
    const [first, second] = [await device.beside(FIRST), await device.beside(SECOND)];
    const operator = decodeOf(device, { first, second });
    device.word = 1;
    await assert.rejects(second.fill(2, 0.1), { name: "UnpackableWeightsError" });
    assert.deepEqual(namesOf(device, operator), PLAIN);
    device.word = 0;
    await second.fill(2, 0.1);
    assert.deepEqual(namesOf(device, operator), PACKED);
  });

  it("is refused where weights are packed alone and there is no kernel", async () => {
    const device = await FakeDevice.open();
    const refused = (changes: Partial<DecodeOperator>, name: string, message: RegExp) => {
      const pair = { first: device.packed(FIRST), second: device.packed(SECOND) };
      const operator = decodeOf(device, { ...pair, ...changes });
      assert.throws(() => device.encode(operator), { name, message });
    };
    const argument = "InvalidArgumentError";
    refused(
      { inputScale: device.buffer(48) },
      argument,
      /decode: inputScale is given, and the weights are packed\. Use a projection/,
    );
    refused(
      { first: device.projection(FIRST) },
      argument,
      /decode: first is not packed, and second is\. Pack both, or neither\./,
    );
    refused(
      { second: device.projection(SECOND) },
      argument,
      /decode: second is not packed, and first is\./,
    );
    refused({ activation: { kind: "relu" } }, "DeviceUnavailableError", /decode_packed_first/);
  });
});
