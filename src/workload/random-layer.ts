/**
 * Made-up weights for a layer shape, one matrix at a time, so that a layer of
 * several gigabytes needs no second copy of itself in host memory.
 *
 * Expert matrices are windows into one block of random numbers, each beginning
 * at a random offset: drawing every number anew would take a minute for the
 * larger shapes. So the matrices differ but share numbers, which matters to
 * nobody who looks at speed or at the agreement of two ways to compute the same
 * layer. It makes the layer no model of a trained one.
 *
 * The gate is drawn anew and has rows of length 1, which hidden-states.ts relies on.
 */

import type { LayerWeights, ProductWeights } from "../data/weights.ts";
import { InvalidArgumentError } from "../errors.ts";
import type { Device, Projection } from "../execution/device.ts";
import type { DType, MatrixView, TensorData } from "../tensor.ts";
import type { LayerShape } from "./presets.ts";
import { Random } from "./random.ts";

/** Room for offsets beyond the largest matrix, in elements. */
const OFFSET_RANGE = 1 << 16;

export class RandomLayer implements LayerWeights {
  readonly shape: LayerShape;
  readonly dtype: DType;
  /** float32 [experts, hidden], rows of length 1. */
  readonly gateRows: Float32Array;
  readonly #random: Random;
  #block: TensorData | undefined;

  /** @param dtype element type of the expert weights; the gate is float32 */
  constructor(shape: LayerShape, dtype: DType, seed: number) {
    if (dtype === "int32") throw noIntegers();
    this.shape = shape;
    this.dtype = dtype;
    this.#random = new Random(seed);
    this.gateRows = unitRows(shape.experts, shape.hiddenSize, this.#random.fork("gate"));
  }

  /** The experts' numbers lie between this and its negative: variance 1 / hidden keeps a product's outputs as large as its inputs. */
  get bound(): number {
    return Math.sqrt(3 / this.shape.hiddenSize);
  }

  async gate(): Promise<MatrixView> {
    const { experts, hiddenSize } = this.shape;
    return contiguous("float32", this.gateRows, 0, experts, hiddenSize);
  }

  async expert(index: number): Promise<readonly ProductWeights[]> {
    const { hiddenSize, intermediateSize } = this.shape;
    const length = hiddenSize * intermediateSize + OFFSET_RANGE;
    this.#block ??= uniformBlock(this.dtype, length, this.bound, this.#random.fork("experts"));
    const block = this.#block;
    const offsets = this.#random.fork(`expert ${index}`);
    const window = (rows: number, columns: number) =>
      contiguous(this.dtype, block, offsets.integer(OFFSET_RANGE), rows, columns);
    return [
      {
        gate: window(intermediateSize, hiddenSize),
        value: window(intermediateSize, hiddenSize),
      },
      { value: window(hiddenSize, intermediateSize) },
    ];
  }
}

/**
 * The same layer with its experts' weights made on the device: gigabytes in seconds. They are
 * as large as the ones above but not the same, and the host never sees them.
 */
export class FilledLayer extends RandomLayer {
  readonly #seed: number;

  constructor(shape: LayerShape, dtype: DType, seed: number) {
    super(shape, dtype, seed);
    this.#seed = seed;
  }

  async fillExperts(device: Device, products: readonly Projection[]): Promise<void> {
    for (const [i, product] of products.entries()) {
      await device.fillUniform(product, this.#seed + i, this.bound);
    }
  }
}

function contiguous(
  dtype: DType,
  data: TensorData,
  offset: number,
  rows: number,
  columns: number,
): MatrixView {
  return { dtype, data, offset, rows, columns, rowStride: columns, columnStride: 1 };
}

function unitRows(rows: number, columns: number, random: Random): Float32Array {
  const matrix = random.fillNormal(new Float32Array(rows * columns));
  for (let row = 0; row < rows; row++) {
    const values = matrix.subarray(row * columns, (row + 1) * columns);
    const length = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
    for (let i = 0; i < columns; i++) values[i] = (values[i] as number) / length;
  }
  return matrix;
}

/**
 * `length` random numbers between -bound and bound, as the bits of `dtype`.
 *
 * @throws InvalidArgumentError for int32
 */
export function uniformBlock(
  dtype: DType,
  length: number,
  bound: number,
  random: Random,
): TensorData {
  switch (dtype) {
    case "float32": {
      const out = new Float32Array(length);
      for (let i = 0; i < length; i++) out[i] = bound * (2 * random.uniform() - 1);
      return out;
    }
    case "bfloat16": {
      // bfloat16 is the upper half of float32.
      const bits = new Uint32Array(uniformBlock("float32", length, bound, random).buffer);
      const out = new Uint16Array(length);
      for (let i = 0; i < length; i++) out[i] = (bits[i] as number) >>> 16;
      return out;
    }
    case "float16": {
      // Random sign and fraction below one exponent: magnitudes between a quarter and all of the bound.
      const exponent = Math.max(1, 14 + Math.floor(Math.log2(bound)));
      const out = new Uint16Array(length);
      for (let i = 0; i < length; i++) out[i] = (random.bits() & 0x83ff) | (exponent << 10);
      return out;
    }
    case "int32":
      throw noIntegers();
  }
}

function noIntegers(): InvalidArgumentError {
  return new InvalidArgumentError("Weights cannot be int32. Use float32, bfloat16 or float16.");
}
