/** Packed weights as they are written: through panels of one matrix in scratch memory to a kernel that packs them. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { UnpackableWeightsError } from "../../../src/errors.ts";
import { matrixView, toTensor } from "../../../src/tensor.ts";
import { randomFor } from "../../support/seed.ts";
import { tensorOf } from "../../support/tensors.ts";
import { FakeDevice } from "./operators/harness.ts";
import { matrixOf } from "./packing.ts";

const SPEC = { count: 4, inputs: 100, outputs: 72 } as const;
/** Of SPEC, padded; twice the rows if gated. */
const [N, K] = [128, 128];

/** Bytes of the parts of one matrix of so many rows. */
function partsOf(n: number, k = K) {
  const panels = k / 64;
  return {
    words: (n * k * 12) / 8,
    scales: n * 4,
    flags: (n / 16) * Math.ceil(panels / 32) * 4,
    patches: panels * (n / 16) * 16,
  };
}

const aligned = (bytes: number) => Math.ceil(bytes / 256) * 256;

describe("packed weights", () => {
  it("take 12 bits each, a scale for every row, flags and patches; then come biases", async () => {
    const device = await FakeDevice.open();
    for (const [gated, bias, inputs] of [
      [false, false, 100],
      [true, true, 100],
      // 33 panels have flags in two words.
      [true, false, 33 * 64],
    ] as const) {
      const projection = device.packed({ ...SPEC, inputs, gated, bias });
      const n = gated ? 2 * N : N;
      assert.deepEqual([projection.n, projection.k], [n, inputs === 100 ? K : inputs]);
      const { words, scales, flags, patches } = partsOf(n, projection.k);
      const read = 4 * (words + scales + flags);
      assert.equal(projection.weightBytes, read);
      const sizes = [words, scales, flags, patches].map((bytes) => aligned(4 * bytes));
      const before = (parts: number) => sizes.slice(0, parts).reduce((a, b) => a + b, 0);
      assert.deepEqual(projection.weights, { address: projection.address, bytes: before(3) });
      assert.deepEqual(projection.tables, {
        scales: projection.address + BigInt(before(1)),
        flags: projection.address + BigInt(before(2)),
        patches: projection.address + BigInt(before(3)),
      });
      assert.equal(projection.byteLength, before(4) + (bias ? 4 * n * 4 : 0));
      const biasAt = projection.address + BigInt(before(4) + n * 4);
      assert.equal(projection.bias(1), bias ? biasAt : null);
    }
  });

  it("are mapped as blocks of three planes of words", async () => {
    const device = await FakeDevice.open();
    const projection = device.packed({ ...SPEC, gated: true });
    projection.tensorMap({ block_size: [2, 1, 16, 32], swizzle: 3, l2_promotion: 2 });
    assert.deepEqual(device.maps, [
      {
        address: projection.address,
        element: "int32",
        // Four matrices of two panels of four blocks.
        shape: [4 * 2 * 4, 3, 16, 32],
        box: [2, 1, 16, 32],
        swizzle: 3,
        l2Promotion: 2,
      },
    ]);
  });

  it("are packed once all parts of a matrix have been written, from scratch memory that is freed then", async () => {
    const device = await FakeDevice.open();
    const random = randomFor("packed writes");
    const projection = device.packed({ ...SPEC, gated: true });
    await projection.write(2, "value", matrixOf(random, 72, 100, "bfloat16"));
    assert.equal(device.ran.length, 0);
    const [own, scratch, ...others] = device.scratches;
    assert.ok(own !== undefined && scratch !== undefined && others.length === 0);
    const panels = 2 * N * K * 2;
    assert.equal(scratch.byteLength, panels);
    assert.match(scratch.label, /^weights, matrix 2 to be packed$/);
    assert.ok(!scratch.closed);
    // A value's rows come after its gate's.
    const [staged] = device.staged;
    assert.equal(staged?.kernels[0]?.name, "pack_bf16_bf16");
    assert.equal(staged?.kernels[0]?.values["destination"], scratch.address + 2n * 64n);

    await projection.write(2, "gate", matrixOf(random, 72, 100, "bfloat16"));
    const [kernel, ...more] = device.ran;
    assert.deepEqual([kernel?.name, more.length], ["pack_weights_bf16", 0]);
    const counted = device.scratches[2];
    assert.deepEqual([counted?.byteLength, counted?.closed], [4, true]);
    const { words, scales, flags, patches } = partsOf(2 * N);
    const at = (first: bigint, bytes: number) => first + BigInt(2 * bytes);
    assert.deepEqual(kernel?.values, {
      source: scratch.address,
      words: at(projection.address, words),
      scales: at(projection.tables.scales, scales),
      flags: at(projection.tables.flags, flags),
      patches: at(projection.tables.patches, patches),
      failures: counted?.address,
      matrices: 1,
      n: 2 * N,
      k: K,
      valid_columns: 100,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    // A block for every 16 rows.
    assert.equal(kernel?.grid.x, (2 * N) / 16);
    assert.ok(scratch.closed && !own.closed);
    assert.equal(device.scratches.length, 3);
  });

  it("of a plain product are packed at once, and again", async () => {
    const device = await FakeDevice.open();
    const random = randomFor("packed again");
    const projection = device.packed(SPEC);
    for (let i = 0; i < 3; i++) {
      await projection.write(1, "value", matrixOf(random, 72, 100, "bfloat16"));
    }
    assert.equal(device.ran.length, 3);
    assert.ok(device.scratches.slice(1).every(({ closed }) => closed));
  });

  it("wait for a part that is still being written a second time", async () => {
    const device = await FakeDevice.open();
    const random = randomFor("packed at once");
    const projection = device.packed({ ...SPEC, gated: true });
    const write = (part: "gate" | "value") =>
      projection.write(0, part, matrixOf(random, 72, 100, "bfloat16"));
    await Promise.all([write("gate"), write("value"), write("gate")]);
    assert.equal(device.ran.length, 1);
    assert.ok(device.scratches.slice(1).every(({ closed }) => closed));
    // One part anew takes effect with the other one.
    await write("gate");
    assert.equal(device.ran.length, 1);
    await write("value");
    assert.equal(device.ran.length, 2);
  });

  it("that do not fit are refused with the matrix and in how many places", async () => {
    const device = await FakeDevice.open();
    const projection = device.packed(SPEC);
    const matrix = matrixOf(randomFor("does not fit"), 72, 100, "bfloat16");
    device.word = 7;
    await assert.rejects(projection.write(3, "value", matrix), (error) => {
      assert.ok(error instanceof UnpackableWeightsError);
      assert.deepEqual(
        [error.code, error.matrix, error.failures],
        ["ERR_UNPACKABLE_WEIGHTS", 3, 7],
      );
      assert.match(
        error.message,
        /^Matrix 3 of "weights" cannot be packed without loss, in 7 places:/,
      );
      assert.match(error.message, /Leave packWeights out\.$/);
      return true;
    });
    await assert.rejects(projection.fill(1, 1), { matrix: undefined, failures: 7 });
    assert.ok(device.scratches.slice(1).every(({ closed }) => closed));
    device.word = 0;
    await projection.write(3, "value", matrix);
  });

  it("are filled with the noise of plain ones, all matrices in one launch", async () => {
    const device = await FakeDevice.open();
    const projection = device.packed({ ...SPEC, gated: true });
    await projection.fill(-5, 0.02);
    const [filled, packed] = device.ran;
    const [plain] = device.kernels([
      device.projection({ ...SPEC, gated: true }).fillWork(-5, 0.02),
    ]);
    const scratch = device.scratches[1];
    assert.deepEqual(filled?.values, { ...plain?.values, destination: scratch?.address });
    assert.equal(packed?.values["source"], scratch?.address);
    assert.equal(packed?.values["matrices"], 4);
    assert.equal(packed?.values["words"], projection.address);
    assert.equal(packed?.values["failures"], device.scratches[2]?.address);
    assert.equal(packed?.grid.x, (4 * 2 * N) / 16);
    assert.ok(scratch?.closed);
    await assert.rejects(projection.fill(0.5, 1), /seed is 0\.5/);
    await assert.rejects(projection.fill(1, -1), /scale is -1/);
    assert.equal(device.scratches.length, 4);
  });

  it("free what is waiting when they are closed or a write fails", async () => {
    const device = await FakeDevice.open();
    const random = randomFor("packed and closed");
    const projection = device.packed({ ...SPEC, gated: true });
    const matrix = () => matrixOf(random, 72, 100, "bfloat16");
    await projection.write(0, "gate", matrix());
    const late = projection.write(1, "gate", matrix());
    projection[Symbol.dispose]();
    assert.ok(device.scratches.every(({ closed }) => closed));
    await late;
    await assert.rejects(projection.write(0, "value", matrix()), { name: "DisposedError" });
    await assert.rejects(projection.fill(1, 1), { name: "DisposedError" });
    assert.deepEqual(device.ran, []);

    const other = device.packed(SPEC);
    device.projectionOwner.transfers.uploadAndRun = async () => {
      throw new RangeError("no room");
    };
    await assert.rejects(other.write(0, "value", matrix()), /no room/);
    assert.ok(device.scratches.at(-1)?.closed && !other.closed);
  });

  it("take matrices and biases as plain ones do", async () => {
    const device = await FakeDevice.open();
    const projection = device.packed({ count: 2, inputs: 3, outputs: 3, gated: true, bias: true });
    const square = matrixView(toTensor(tensorOf(new Float32Array(9), [3, 3]), "matrix"));
    await assert.rejects(projection.write(0, "value", square), /holds bfloat16 weights/);
    await assert.rejects(projection.write(2, "value", square), /there is no number 2/);
    projection.writeBias(1, "gate", Float32Array.of(1, 2, 3));
    projection.writeBias(1, "value", Float32Array.of(10, 20, 30));
    const last = device.uploads.at(-1);
    assert.equal(last?.address, projection.bias(1));
    const row = new Float32Array(128);
    row.set([1, 10, 2, 20, 3, 30]);
    assert.deepEqual(last?.data, row);
    assert.deepEqual(device.staged, []);
    assert.equal(device.scratches.length, 1);
  });
});
