/**
 * Weights on the GPU: what a projection sends there, piece by piece, is put in place
 * here by a pack kernel written in JavaScript, and every element is looked up.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { chunksOf } from "../../../src/execution/cuda/matrix-chunks.ts";
import { rowsWork } from "../../../src/execution/cuda/operators/pack.ts";
import { type CudaProjection, STAGING_BYTES } from "../../../src/execution/cuda/projection.ts";
import type { ProjectionSpec } from "../../../src/execution/device.ts";
import { type DType, float16ToNumber, type MatrixView } from "../../../src/tensor.ts";
import type { Random } from "../../../src/workload/random.ts";
import { between, chance, pick, randomFor } from "../../support/seed.ts";
import { FakeDevice, type SeenKernel } from "./operators/harness.ts";

const SHORT: Readonly<Record<string, DType>> = {
  bf16: "bfloat16",
  fp16: "float16",
  fp32: "float32",
};

type Bits = Uint16Array | Uint32Array;

/** Memory as the bits of its elements. */
function bitsOf(buffer: ArrayBuffer, dtype: DType): Bits {
  return dtype === "float32" ? new Uint32Array(buffer) : new Uint16Array(buffer);
}

/** The bits that an element of one type has in another; only what projections convert. */
function converted(bits: number, from: DType, to: DType): number {
  if (from === to) return bits;
  assert.equal(to, "float32");
  if (from === "bfloat16") return bits * 2 ** 16;
  return new Uint32Array(Float32Array.of(float16ToNumber(bits)).buffer)[0] as number;
}

/** Does what pack_rows does. */
function pack({ name, values }: SeenKernel, staged: Bits, at: bigint, memory: Bits, base: bigint) {
  const [, from = "", to = ""] = name.split("_");
  const [source, target] = [SHORT[from], SHORT[to]] as [DType, DType];
  const number = (field: string) => values[field] as number;
  const [rows, columns, pitch] = [number("rows"), number("columns"), number("pitch")];
  const [rowStride, columnStride] = [number("row_stride"), number("column_stride")];
  const first = Number((values["source"] as bigint) - at) / staged.BYTES_PER_ELEMENT;
  const destination = Number((values["destination"] as bigint) - base) / memory.BYTES_PER_ELEMENT;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < pitch; column++) {
      const bits = column < columns ? staged[first + row * rowStride + column * columnStride] : 0;
      const to = number("first_column") + column;
      const panel = Math.floor(to / 64) * number("panel_step");
      const index = destination + row * number("row_step") + panel + (to % 64);
      memory[index] = converted(bits as number, source, target);
    }
  }
}

interface Strides {
  /** What may lie between neighbours. */
  readonly steps?: readonly number[];
  /** Whether those are of a column, and not of a row. */
  readonly turned?: boolean;
}

/** A random matrix view: contiguous or strided, transposed or not, forwards or backwards. */
function matrixOf(
  random: Random,
  rows: number,
  columns: number,
  dtype: DType,
  { steps = [1, 1, 2, 3], turned = chance(random, 0.5) }: Strides = {},
): MatrixView {
  const [inner, outer] = turned ? [rows, columns] : [columns, rows];
  const step = pick(random, steps);
  const pitch = inner * step + between(random, 0, 9);
  let offset = between(random, 0, 20);
  let [innerStride, outerStride] = [step, pitch];
  if (chance(random, 0.2)) {
    offset += (inner - 1) * step;
    innerStride = -step;
  }
  if (chance(random, 0.2)) {
    offset += (outer - 1) * pitch;
    outerStride = -pitch;
  }
  const length = 20 + outer * pitch + 20;
  const data = dtype === "float32" ? new Float32Array(length) : new Uint16Array(length);
  // Finite in every type, and different from all that lie near.
  const start = random.integer(0x7b00);
  for (let i = 0; i < length; i++) data[i] = (start + i * 7919) % 0x7b00;
  return {
    dtype,
    data,
    offset,
    rows,
    columns,
    rowStride: turned ? innerStride : outerStride,
    columnStride: turned ? outerStride : innerStride,
  };
}

function elementBits(matrix: MatrixView, row: number, column: number): number {
  const { data, offset, rowStride, columnStride } = matrix;
  const bits = bitsOf(data.buffer as ArrayBuffer, matrix.dtype);
  const first = data.byteOffset / data.BYTES_PER_ELEMENT + offset;
  return bits[first + row * rowStride + column * columnStride] as number;
}

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

describe("a projection", () => {
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
        ...{ dtype, input, output },
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
  function placeOf({ spec, n, k }: CudaProjection, index: number, row: number, column: number) {
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
      ...{ row_step: 2 * 64, panel_step: 64 * 256 },
    });
    const gate = device.projection({ count: 1, output: "float32" });
    await gate.write(0, "value", matrix);
    assert.deepEqual(packed(), {
      ...common,
      destination: gate.address,
      ...{ row_step: 128, panel_step: 64 },
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

  it("keeps weights in the type of its rows, gates in their own or float32", async () => {
    const device = await FakeDevice.open();
    const element = (dtype: DType, input: DType, output: "rows" | "float32" = "rows") =>
      device.projection({ count: 1, dtype, input, output }).element;
    assert.equal(element("bfloat16", "bfloat16"), "bfloat16");
    assert.equal(element("bfloat16", "float32"), "float32");
    assert.equal(element("float16", "float32"), "float32");
    assert.equal(element("bfloat16", "bfloat16", "float32"), "bfloat16");
    assert.equal(element("float32", "bfloat16", "float32"), "float32");
    assert.equal(element("float16", "bfloat16", "float32"), "float32");
  });

  it("interleaves biases, in float32, and uploads a matrix's at once", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 2, outputs: 3, gated: true, bias: true });
    assert.equal(projection.n, 128);
    assert.equal(projection.byteLength, 2 * 128 * 128 * 2 + 2 * 128 * 4);
    projection.writeBias(1, "gate", Float32Array.of(1, 2, 3));
    projection.writeBias(1, "value", Float32Array.of(10, 20, 30));
    assert.equal(device.uploads.length, 2);
    const address = projection.address + BigInt(2 * 128 * 128 * 2 + 128 * 4);
    const last = device.uploads.at(-1);
    assert.equal(last?.address, address);
    const row = new Float32Array(128);
    row.set([1, 10, 2, 20, 3, 30]);
    assert.deepEqual(last?.data, row);
    assert.equal(projection.bias(1), address);
    assert.equal(device.projection().bias(0), null);
  });

  it("fills its weights with noise by a kernel that leaves the padding alone", async () => {
    const device = await FakeDevice.open();
    const projection = device.projection({ count: 4, outputs: 72, inputs: 100, gated: true });
    const work = projection.fillWork(-5, 0.02);
    const [kernel] = device.kernels([work]);
    assert.equal(kernel?.name, "fill_uniform_bf16");
    const { destination, ...values } = kernel?.values ?? {};
    assert.equal(destination, projection.address);
    assert.deepEqual(values, {
      seed: -5,
      matrices: 4,
      n: 256,
      k: 128,
      valid_rows: 144,
      valid_columns: 100,
      scale: Math.fround(0.02),
      row_step: 64,
      panel_step: 64 * 256,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.equal(work.blocks(132), 4 * 144);
    const gate = device.projection({ count: 1, outputs: 72, inputs: 100, output: "float32" });
    const [other] = device.kernels([gate.fillWork(-5, 0.02)]);
    assert.deepEqual(
      ["k", "row_step", "panel_step"].map((field) => other?.values[field]),
      [128, 128, 64],
    );
    assert.throws(() => projection.fillWork(0.5, 1), /seed is 0\.5\. Use a whole number/);
    assert.throws(() => projection.fillWork(1, -1), /scale is -1\. Use a finite number, 0 or more/);
    projection[Symbol.dispose]();
    assert.throws(() => projection.fillWork(1, 1), { name: "DisposedError" });
  });

  it("gives launches and tensor maps back", async () => {
    const device = await FakeDevice.open();
    const random = randomFor("slots");
    const projection = device.projection();
    for (let i = 0; i < 200; i++) {
      await projection.write(0, "value", matrixOf(random, 72, 100, "bfloat16"));
      const other = device.projection();
      for (const block_size of [
        [128, 64],
        [1, 2, 64, 64],
      ]) {
        other.tensorMap({ block_size, swizzle: 3, l2_promotion: 2 });
      }
      other[Symbol.dispose]();
      other[Symbol.dispose]();
    }
    assert.equal(device.heap.chunks.length, 1);
  });

  it("stops in the middle when it is closed", async () => {
    const device = await FakeDevice.open();
    const spec = {
      count: 1,
      inputs: 3000,
      outputs: 3000,
      dtype: "float32",
      input: "float32",
    } as const;
    const projection = device.projection(spec);
    const data = new Float32Array(9_000_000);
    const matrix = { dtype: "float32", data, offset: 0, rows: 3000, columns: 3000 } as const;
    const written = projection.write(0, "value", { ...matrix, rowStride: 3000, columnStride: 1 });
    projection[Symbol.dispose]();
    await assert.rejects(written, {
      name: "DisposedError",
      message: /Projection "weights" is closed/,
    });
    assert.equal(device.staged.length, 1);
  });

  it("refuses specs that make no sense", async () => {
    const device = await FakeDevice.open();
    const refused = (spec: Partial<ProjectionSpec>, message: RegExp) => {
      assert.throws(() => device.projection(spec), { name: "InvalidArgumentError", message });
    };
    for (const name of ["count", "inputs", "outputs"] as const) {
      refused({ [name]: 0 }, new RegExp(`projection's ${name} is 0\\. Use a whole number`));
    }
    refused({ dtype: "int32" }, /Weights of int32 are not supported/);
    refused({ input: "int32" }, /Input rows of int32 are not supported/);
    refused({ dtype: "float32" }, /float32 weights would have to be rounded for rows of bfloat16/);
    refused({ dtype: "float16" }, /float16 weights would have to be rounded/);
    refused({ output: "columns" as "rows" }, /output is "columns"/);
    refused({ output: "float32", count: 2 }, /to float32 is of 2 matrices/);
    refused({ output: "float32", count: 1, gated: true }, /to float32 is gated/);
    refused({ count: 2 ** 24, outputs: 128 }, /has 4294967296 rows of 64 inputs/);
    assert.deepEqual(device.scratches, []);
  });

  it("refuses matrices and biases that are not its own", async () => {
    const device = await FakeDevice.open();
    const plain: CudaProjection = device.projection({ bias: true });
    const random = randomFor("bad matrices");
    const good = matrixOf(random, 72, 100, "bfloat16");
    const refused = (name: string, message: RegExp, changes: Partial<MatrixView>, index = 0) =>
      assert.rejects(plain.write(index, "value", { ...good, ...changes }), { name, message });
    await refused("InvalidArgumentError", /has 4 matrices; there is no number 4/, {}, 4);
    await refused("InvalidArgumentError", /there is no number 0\.5/, {}, 0.5);
    await refused("ShapeError", /takes \[72, 100\] matrices/, { rows: 71 });
    await refused("ShapeError", /holds bfloat16 weights, got float16/, { dtype: "float16" });
    await refused("ShapeError", /whole numbers of elements/, { rowStride: 0.5 });
    await refused("ShapeError", /reaches from element -\d+ to/, { offset: -100_000 });
    await refused("ShapeError", /but its data has \d+ elements/, { rowStride: 1000 });
    await refused("ShapeError", /elements of 2 bytes, but its data is a Float32Array/, {
      data: new Float32Array(100_000),
      offset: 50_000,
    });
    await assert.rejects(plain.write(0, "gate", good), /has no part "gate"\. Use "value"\./);
    assert.throws(() => plain.writeBias(0, "value", new Float32Array(71)), {
      name: "ShapeError",
      message: /Float32Array of 72 elements, got 71 elements/,
    });
    assert.throws(() => plain.writeBias(0, "value", [1] as unknown as Float32Array), /got object/);
    assert.throws(
      () => device.projection().writeBias(0, "value", new Float32Array(72)),
      /has no bias/,
    );
    plain[Symbol.dispose]();
    await refused("DisposedError", /Projection "weights" is closed/, {});
    assert.throws(() => plain.writeBias(0, "value", new Float32Array(72)), {
      name: "DisposedError",
    });
    assert.deepEqual(device.staged, []);
  });
});

describe("rows into a layout", () => {
  const layout = { dtype: "bfloat16", width: 100, pitch: 128 } as const;

  it("are packed, or copied where they lie that way already", async () => {
    const device = await FakeDevice.open();
    const target = device.buffer(7 * 128 * 2);
    const [kernel] = device.kernels(rowsWork(device.context, target, layout, 0x99n, "float32", 7));
    assert.equal(kernel?.name, "pack_fp32_bf16");
    const { source, destination, ...values } = kernel?.values ?? {};
    assert.deepEqual([source, destination], [0x99n, target.address]);
    assert.deepEqual(values, {
      rows: 7,
      columns: 100,
      row_stride: 100,
      column_stride: 1,
      row_step: 128,
      panel_step: 64,
      first_column: 0,
      pitch: 128,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.equal(kernel?.work.blocks(132), 7);
    const narrow = { dtype: "float16", width: 64, pitch: 64 } as const;
    assert.deepEqual(rowsWork(device.context, target, narrow, 0x80n, "float16", 5), [
      { kind: "copy", target: target.address, source: 0x80n, bytes: 5 * 64 * 2 },
    ]);
    assert.deepEqual(rowsWork(device.context, target, layout, 0n, "float16", 0), []);
  });

  it("are refused where they do not fit", async () => {
    const device = await FakeDevice.open();
    const target = device.buffer(7 * 128 * 2, "rows");
    const refused = (message: RegExp, changes: object, dtype: DType = "float32", rows = 7) =>
      assert.throws(
        () => rowsWork(device.context, target, { ...layout, ...changes }, 0n, dtype, rows),
        { name: "InvalidArgumentError", message },
      );
    refused(/Buffer "rows" has 1792 bytes; 8 rows of 128 bfloat16 need 2048/, {}, "float32", 8);
    refused(/100 values at a pitch of 100 are not this device's layout/, { pitch: 100 });
    refused(/Source rows of int32 are not supported/, {}, "int32");
    refused(/Rows of int32 are not supported/, { dtype: "int32" });
    refused(/-1 rows cannot be written/, {}, "float32", -1);
  });
});
