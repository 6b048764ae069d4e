/** Tensors of any element type out of float32 numbers, and back. */

import {
  type DType,
  type TensorData,
  type TensorLike,
  toFloat32,
  toTensor,
} from "../../src/tensor.ts";

/** Numbers rounded to nearest as a tensor of the element type. */
export function tensorOf(
  values: Float32Array,
  shape: readonly number[],
  dtype: DType = "float32",
): TensorLike & { readonly dtype: DType; readonly data: TensorData } {
  return { dtype, shape, data: encode(values, dtype) };
}

/** The float32 numbers that a tensor's elements stand for. */
export function valuesOf(tensor: TensorLike): Float32Array {
  return toFloat32(toTensor(tensor, "tensor"));
}

function encode(values: Float32Array, dtype: DType): TensorData {
  switch (dtype) {
    case "float32":
      return values;
    case "bfloat16": {
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      const halves = new Uint16Array(values.length);
      // Round half to even; the inputs are finite or infinite. A loop, as from() with a function walks an iterator.
      for (let i = 0; i < halves.length; i++) {
        const b = bits[i] as number;
        halves[i] = (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
      }
      return halves;
    }
    case "float16":
      return Uint16Array.from(values, float16Bits);
    case "int32":
      return Int32Array.from(values);
  }
}

/** The bits of the float16 nearest to a number. */
export function float16Bits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < 2 ** -14) return sign | roundToEven(size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  const fraction = roundToEven((size / 2 ** exponent - 1) * 1024);
  // A fraction that rounds up to 1024 carries into the exponent, as it should.
  return sign | (((exponent + 15) << 10) + fraction);
}

function roundToEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}
