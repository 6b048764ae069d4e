/**
 * Where a projection's weights lie: what it sends, piece by piece, is put in place here by a
 * pack kernel written in JavaScript, and every element is looked up.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { chunksOf } from "../../../src/execution/cuda/matrix-chunks.ts";
import type { PlainProjection } from "../../../src/execution/cuda/plain-projection.ts";
import { STAGING_BYTES } from "../../../src/execution/cuda/projection.ts";
import type { ProjectionSpec } from "../../../src/execution/device.ts";
import type { MatrixView } from "../../../src/tensor.ts";
import type { Random } from "../../../src/workload/random.ts";
import { between, chance, pick, randomFor } from "../../support/seed.ts";
import { FakeDevice } from "./operators/harness.ts";
import { bitsOf, converted, elementBits, matrixOf, pack, type Strides } from "./packing.ts";

describe("a matrix in pieces", () => {
  it("covers every element once, within the limit, whatever the strides", () => {
    const random = randomFor("chunks");
    for (let round = 0; round < 300; round++) {
      const [rows, columns] = [between(random, 1, 30), between(random, 1, 30)];
      const matrix = matrixOf(random, rows, columns, pick(random, ["float32", "float16"]));
      const bytes = matrix.data.BYTES_PER_ELEMENT;
      const most = bytes * between(random, 1, 400);
      const seen = new Int32Array(rows * columns);
      for (const chunk of chunksOf(matrix, most)) {
        assert.ok(chunk.data.byteLength <= Math.max(most, bytes));
        for (let row = 0; row < chunk.rows; row++) {
          for (let column = 0; column < chunk.columns; column++) {
            const at = chunk.origin + row * matrix.rowStride + column * matrix.columnStride;
            const [r, c] = [chunk.row + row, chunk.column + column];
            const there = { ...matrix, data: chunk.data, offset: at };
            assert.equal(elementBits(there, 0, 0), elementBits(matrix, r, c));
            seen[r * columns + c] = (seen[r * columns + c] as number) + 1;
          }
        }
      }
      assert.ok(seen.every((times) => times === 1));
    }
  });

  it("is one piece where it fits, and few where it does not", () => {
    const data = new Uint16Array(1000 * 1000);
    const square = { dtype: "float16", data, offset: 0, rows: 1000, columns: 1000 } as const;
    const count = (matrix: MatrixView, most: number) => [...chunksOf(matrix, most)].length;
    assert.equal(count({ ...square, rowStride: 1000, columnStride: 1 }, 2_000_000), 1);
    assert.equal(count({ ...square, rowStride: 1000, columnStride: 1 }, 1_000_000), 2);
    assert.equal(count({ ...square, rowStride: 1, columnStride: 1000 }, 1_000_000), 2);
  });
});

describe("a projection's layout", () => {
  it("has every weight in its place", async () => {
    const random = randomFor("projections");
    for (let round = 0; round < 40; round++) {
      const device = await FakeDevice.open();
      const output = chance(random, 0.2) ? "float32" : "rows";
      const gate = output === "float32";
      const dtype = pick(random, ["bfloat16", "float16", "float32"] as const);
      const input = gate
        ? pick(random, ["bfloat16", "float16", "float32"] as const)
        : pick(random, [dtype, "float32" as const]);
      const spec: ProjectionSpec = {
        count: gate ? 1 : between(random, 1, 4),
        inputs: between(random, 1, 150),
        outputs: between(random, 1, 150),
        dtype,
        input,
        output,
        gated: !gate && chance(random, 0.5),
        bias: false,
      };
      await check(device, spec, random);
    }
  });

  for (const turned of [false, true]) {
    for (const [what, output, gated] of [
      ["plain", "rows", false],
      ["gated", "rows", true],
      ["a gate", "float32", false],
    ] as const) {
      it(`has them also where a matrix is staged in several pieces of ${turned ? "columns" : "rows"}, ${what}`, async () => {
        const random = randomFor(`large projections ${turned} ${what}`);
        const device = await FakeDevice.open();
        const spec = { count: 1, dtype: "float32", input: "float32", bias: false } as const;
        // Four elements apart: 1.1 million of them lie in more than 16 MiB.
        const sizes = { inputs: 1100, outputs: 1000 };
        const strides = { steps: [4], turned };
        await check(device, { ...spec, ...sizes, output, gated }, random, strides);
        assert.equal(device.staged.length, gated ? 4 : 2);
        assert.ok(device.staged.every(({ bytes }) => bytes.length <= STAGING_BYTES));
        const columns = device.staged.flatMap(({ kernels }) =>
          kernels.map(({ values }) => values["first_column"] as number),
        );
        const cut = columns.some((column) => column % 64 !== 0);
        assert.equal(cut, turned, "whether pieces begin within a panel");
      });
    }
  }

  /** Where a weight lies: a gate's as [n, k], all others as [count, k / 64, n, 64]. */
  function placeOf({ spec, n, k }: PlainProjection, index: number, row: number, column: number) {
    if (spec.output === "float32") return row * k + column;
    const panel = index * (k / 64) + Math.floor(column / 64);
    return (panel * n + row) * 64 + (column % 64);
  }

  async function check(
    device: FakeDevice,
    spec: ProjectionSpec,
    random: Random,
    strides?: Strides,
  ): Promise<void> {
    const projection = device.projection(spec);
    const { count, inputs, outputs, gated, dtype } = spec;
    const { n, k, element } = projection;
    const memory = bitsOf(new ArrayBuffer(projection.byteLength), element);
    const wanted = bitsOf(new ArrayBuffer(projection.byteLength), element);
    const parts = gated ? 2 : 1;
    for (let index = 0; index < count; index++) {
      for (const part of gated ? (["gate", "value"] as const) : (["value"] as const)) {
        const matrix = matrixOf(random, outputs, inputs, dtype, strides);
        const before = device.staged.length;
        await projection.write(index, part, matrix);
        for (const { bytes, address, kernels } of device.staged.slice(before)) {
          const staged = bitsOf(bytes.buffer as ArrayBuffer, dtype);
          for (const kernel of kernels) pack(kernel, staged, address, memory, projection.address);
        }
        for (let row = 0; row < outputs; row++) {
          for (let column = 0; column < inputs; column++) {
            const at = row * parts + (part === "value" ? parts - 1 : 0);
            const bits = converted(elementBits(matrix, row, column), dtype, element);
            wanted[placeOf(projection, index, at, column)] = bits;
          }
        }
      }
    }
    const wrong = memory.findIndex((bits, i) => bits !== wanted[i]);
    assert.equal(wrong, -1, `element ${wrong} of ${JSON.stringify(spec)}`);
    assert.equal(projection.weightBytes, count * n * k * memory.BYTES_PER_ELEMENT);
  }

  it("packs a matrix by its rows and its panels", async () => {
    const device = await FakeDevice.open();
    const data = new Uint16Array(72 * 100);
    const view = { dtype: "bfloat16", data, offset: 0, rows: 72, columns: 100 } as const;
    const matrix = { ...view, rowStride: 100, columnStride: 1 };
    const packed = () => {
      const { source, ...values } = device.staged.at(-1)?.kernels[0]?.values ?? {};
      assert.equal(source, device.staged.at(-1)?.address);
      return values;
    };
    const sizes = { rows: 72, columns: 100, row_stride: 100, column_stride: 1, pitch: 100 };
    const common = { ...sizes, first_column: 0, global_scratch: 0n, profile_scratch: 0n };
    // Matrices of 256 x 128; a value's rows come after its gate's.
    const gated = device.projection({ count: 4, gated: true });
    await gated.write(3, "value", matrix);
    assert.deepEqual(packed(), {
      ...common,
      destination: gated.address + 2n * (3n * 256n * 128n + 64n),
      row_step: 2 * 64,
      panel_step: 64 * 256,
    });
    const gate = device.projection({ count: 1, output: "float32" });
    await gate.write(0, "value", matrix);
    assert.deepEqual(packed(), {
      ...common,
      destination: gate.address,
      row_step: 128,
      panel_step: 64,
    });
  });

  it("is mapped as rows of all panels, or as panels of every matrix, by its kernel's box", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 3, inputs: 130, gated: true });
    const meta = { swizzle: 3, l2_promotion: 2 };
    projection.tensorMap({ ...meta, block_size: [128, 64] });
    projection.tensorMap({ ...meta, block_size: [1, 2, 32, 64] });
    projection.tensorMap({ ...meta, block_size: [256, 64] });
    projection.tensorMap({ ...meta, block_size: [128, 64] });
    const common = { address: projection.address, element: "bfloat16", swizzle: 3, l2Promotion: 2 };
    assert.deepEqual(device.maps, [
      { ...common, shape: [3 * 3 * 256, 64], box: [128, 64] },
      { ...common, shape: [3, 3, 256, 64], box: [1, 2, 32, 64] },
      { ...common, shape: [3 * 3 * 256, 64], box: [256, 64] },
    ]);
  });

  it("has fewer than 2^31 rows in all panels, and elements in a matrix", async () => {
    const device = await FakeDevice.open();
    const refused = (spec: Partial<ProjectionSpec>, message: RegExp) => {
      assert.throws(() => device.projection(spec), { name: "InvalidArgumentError", message });
    };
    // Two panels of 128 rows a matrix.
    const { n, k } = device.projection({ count: 2 ** 23 - 1, inputs: 100, outputs: 128 });
    assert.deepEqual([n, k], [128, 128]);
    refused(
      { count: 2 ** 23, inputs: 100, outputs: 128 },
      /of 8388608 matrices has 2147483648 rows of 64 inputs, padding included\. Use fewer than 2\^31\./,
    );
    device.projection({ count: 2 ** 23, inputs: 64, outputs: 128 });
    for (const output of ["rows", "float32"] as const) {
      const narrow = { count: 1, inputs: 64, output };
      device.projection({ ...narrow, outputs: 2 ** 25 - 64 });
      refused(
        { ...narrow, outputs: 2 ** 25 - 63 },
        /matrices have 33554432 x 64 elements, padding included\. Use fewer than 2\^31\./,
      );
    }
    // A gate's rows are in one piece.
    refused(
      { count: 1, inputs: 100, outputs: 2 ** 31 - 63, output: "float32" },
      /of 1 matrices has 2147483648 rows of 128 inputs/,
    );
  });
});
