/**
 * Tensors as they stand in host memory: a typed array, a shape, an element type.
 * JavaScript has no bfloat16 array and Node 20 no float16 array, so both are
 * kept as their bits in a Uint16Array.
 *
 * No arithmetic here; that is the devices' work.
 */

import { shapeText, shown } from "./errors/wording.ts";
import { InvalidArgumentError, ShapeError } from "./errors.ts";

/** Element types of tensors. */
export type DType = "float32" | "bfloat16" | "float16" | "int32";

export const BYTES_PER_ELEMENT: Readonly<Record<DType, number>> = {
  float32: 4,
  bfloat16: 2,
  float16: 2,
  int32: 4,
};

/** Typed arrays that a tensor's elements lie in; 16-bit floats are bits in a `Uint16Array`. */
export type TensorData = Float32Array | Uint16Array | Int32Array;

/** What the data of a tensor may come in. */
const DATA_TYPES = [Float32Array, Float64Array, Uint16Array, Int32Array] as const;

/** A tensor in host memory, row-major and contiguous. */
export interface Tensor<D extends TensorData = TensorData> {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: D;
}

/** What public functions accept where a tensor is wanted; `dtype` is needed only for 16-bit data. */
export interface TensorLike {
  readonly data: TensorData | Float64Array;
  readonly shape: readonly number[];
  readonly dtype?: DType;
}

/** A matrix somewhere in a typed array, with any strides (in elements). Element (r, c) is data[offset + r * rowStride + c * columnStride]. */
export interface MatrixView {
  readonly dtype: DType;
  readonly data: TensorData;
  readonly offset: number;
  readonly rows: number;
  readonly columns: number;
  readonly rowStride: number;
  readonly columnStride: number;
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

/**
 * Checks a tensor that a user passed in and gives it its element type.
 * Float64 data is rounded to float32.
 *
 * @param name how the argument is called in error messages
 * @throws ShapeError if the shape does not hold exactly the data's elements
 * @throws InvalidArgumentError if the element type cannot be told or does not fit the array
 */
export function toTensor(like: TensorLike, name: string): Tensor {
  if (like === null || typeof like !== "object" || !ArrayBuffer.isView(like.data)) {
    const data = like !== null && typeof like === "object" && "data" in like;
    const given = data ? `${name}.data is ${shown(like.data)}` : `${name} is ${shown(like)}`;
    throw new InvalidArgumentError(
      `${given}; a tensor is an object with "data", a typed array, and "shape".`,
    );
  }
  const { shape } = like;
  if (!DATA_TYPES.some((type) => like.data instanceof type)) {
    const given = (like.data as ArrayBufferView).constructor.name;
    throw new InvalidArgumentError(
      `${name} has its data in a ${given}; use one of ${DATA_TYPES.map((type) => type.name).join(", ")}.`,
    );
  }
  checkShape(shape, name, like.data.length);
  if (sizeOf(shape) !== like.data.length) {
    throw new ShapeError(
      `${name} has shape ${shapeText(shape)}, which is ${sizeOf(shape)} elements, but its data has ${like.data.length}.`,
    );
  }
  if (like.data instanceof Float64Array) {
    if (like.dtype !== undefined && like.dtype !== "float32") {
      throw new InvalidArgumentError(
        `${name} says it is ${shown(like.dtype)} but its data is a Float64Array, which is rounded to float32. Leave dtype out, or give the bits of 16-bit elements in a Uint16Array.`,
      );
    }
    return {
      dtype: "float32",
      shape: [...shape],
      data: Float32Array.from(like.data),
    };
  }
  const dtype = like.dtype ?? inferDType(like.data, name);
  if (!holds(dtype, like.data)) {
    throw new InvalidArgumentError(
      `${name} says it is ${shown(dtype)} but its data is a ${like.data.constructor.name}. Use Float32Array for float32, Uint16Array for the bits of bfloat16 or float16, Int32Array for int32.`,
    );
  }
  return { dtype, shape: [...shape], data: like.data };
}

/**
 * @param elements for the example in the message
 * @throws ShapeError unless the shape is a list of whole numbers, 0 or more
 */
export function checkShape(shape: readonly number[], name: string, elements: number): void {
  if (!Array.isArray(shape)) {
    throw new ShapeError(
      `${name} has no shape; it must be a list of its extents, such as [${elements}].`,
    );
  }
  // Spread, as some() passes over what a sparse array leaves out.
  if ([...shape].some((n) => !Number.isInteger(n) || n < 0)) {
    throw new ShapeError(
      `${name} has shape ${shapeText(shape)}; every extent must be a whole number, 0 or more.`,
    );
  }
}

function inferDType(data: TensorData, name: string): DType {
  if (data instanceof Float32Array) return "float32";
  if (data instanceof Int32Array) return "int32";
  throw new InvalidArgumentError(
    `${name} holds 16-bit data without a dtype. Set dtype to "bfloat16" or "float16".`,
  );
}

/** Whether data are of the kind that elements of this type lie in. */
export function holds(dtype: DType, data: TensorData): boolean {
  switch (dtype) {
    case "float32":
      return data instanceof Float32Array;
    case "int32":
      return data instanceof Int32Array;
    case "bfloat16":
    case "float16":
      return data instanceof Uint16Array;
    default:
      return false;
  }
}

/**
 * For tensors that are read some time after they were checked: in between their memory may have been transferred
 * to another thread, or resized, which leaves less data without a word.
 *
 * @throws ShapeError unless the data still is what the shape says
 */
export function checkDataLength({ shape, data }: Tensor): void {
  const elements = sizeOf(shape);
  if (data.length === elements) return;
  throw new ShapeError(
    `A tensor of shape ${shapeText(shape)} has ${elements} elements, but its data now has ${data.length}. Leave its memory where it is until the call is over.`,
  );
}

/** A [rows, columns] view of a contiguous matrix, or of one matrix of a [count, rows, columns] tensor. */
export function matrixView(tensor: Tensor, index = 0): MatrixView {
  const rows = tensor.shape.at(-2) ?? 1;
  const columns = tensor.shape.at(-1) ?? 1;
  return {
    dtype: tensor.dtype,
    data: tensor.data,
    offset: index * rows * columns,
    rows,
    columns,
    rowStride: columns,
    columnStride: 1,
  };
}

/** The float32 values of a tensor's elements; shares memory when they are float32 already. */
export function toFloat32(tensor: Tensor): Float32Array {
  if (tensor.data instanceof Float32Array) return tensor.data;
  const out = new Float32Array(tensor.data.length);
  if (tensor.dtype === "bfloat16") {
    const bits = new Uint32Array(out.buffer);
    for (let i = 0; i < out.length; i++) bits[i] = (tensor.data[i] as number) << 16;
  } else if (tensor.dtype === "float16") {
    for (let i = 0; i < out.length; i++) out[i] = float16ToNumber(tensor.data[i] as number);
  } else {
    out.set(tensor.data);
  }
  return out;
}

/** The value of a float16 given by its bits. */
export function float16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
