/**
 * A tensor of floats in device memory, without gaps. Passing one to a layer and
 * getting one back keeps activations on the device between calls, in float32 or in
 * the 16-bit type that the device itself works in.
 */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError, ShapeError } from "../errors.ts";
import {
  BYTES_PER_ELEMENT,
  checkShape,
  type DType,
  sizeOf,
  type Tensor,
  type TensorLike,
  toFloat32,
  toTensor,
} from "../tensor.ts";
import { requireDevice, requireObject } from "./checks.ts";
import type { Device, DeviceBuffer } from "./device.ts";

/** A tensor that stays on a device: dispose of it when it is no longer needed. */
export class DeviceTensor implements Disposable {
  readonly device: Device;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly #buffer: DeviceBuffer;

  /**
   * Takes over `buffer`, which holds at least the shape's elements.
   *
   * @param dtype float32, or a 16-bit type that the device's own rows have
   * @throws InvalidArgumentError if the device works in no such type, or is none
   * @throws ShapeError if the shape is none, or the buffer is too small
   */
  constructor(
    device: Device,
    buffer: DeviceBuffer,
    shape: readonly number[],
    dtype: DType = "float32",
  ) {
    requireDevice(device, "device");
    requireObject(buffer, "buffer", "device memory, such as device.allocate() gives");
    checkShape(shape, "The device tensor", Math.floor(buffer.byteLength / 4));
    if (!worksIn(device, dtype)) {
      throw new InvalidArgumentError(
        `${device.properties.name} has no tensors of ${shown(dtype)}. Use float32, which every device has.`,
      );
    }
    const bytes = sizeOf(shape) * BYTES_PER_ELEMENT[dtype];
    if (bytes > buffer.byteLength) {
      throw new ShapeError(
        `A ${dtype} tensor of shape [${shape.join(", ")}] needs ${bytes} bytes; the buffer has ${buffer.byteLength}.`,
      );
    }
    this.device = device;
    this.#buffer = buffer;
    this.shape = [...shape];
    this.dtype = dtype;
  }

  /**
   * Copies a host tensor to a device. 16-bit floats stay what they are on a device that
   * works in them and become float32 elsewhere, as integers do everywhere.
   *
   * @throws ShapeError, InvalidArgumentError if the tensor is malformed
   * @throws OutOfDeviceMemoryError
   */
  static fromHost(device: Device, like: TensorLike): DeviceTensor {
    requireDevice(device, "device");
    const tensor = toTensor(like, "tensor");
    const dtype = worksIn(device, tensor.dtype) ? tensor.dtype : "float32";
    const data = dtype === "float32" ? toFloat32(tensor) : tensor.data;
    const buffer = device.allocate(Math.max(4, data.byteLength), "tensor");
    try {
      device.write(buffer, data);
      return new DeviceTensor(device, buffer, tensor.shape, dtype);
    } catch (error) {
      buffer[Symbol.dispose]();
      throw error;
    }
  }

  /** The device memory behind the tensor. @throws DisposedError */
  get buffer(): DeviceBuffer {
    if (this.#buffer.closed) throw new DisposedError("The device tensor");
    return this.#buffer;
  }

  /** A copy in host memory, of the same element type. @throws DisposedError */
  async toHost(): Promise<Tensor<Float32Array | Uint16Array>> {
    const { dtype, shape } = this;
    const elements = sizeOf(shape);
    const data = dtype === "float32" ? new Float32Array(elements) : new Uint16Array(elements);
    await this.device.read(this.buffer, data);
    return { dtype, shape, data };
  }

  /** Frees the device memory; harmless when repeated. */
  [Symbol.dispose](): void {
    this.#buffer[Symbol.dispose]();
  }
}

/** Whether tensors of that type can go through the device's operators as they are. */
function worksIn(device: Device, dtype: DType): boolean {
  if (dtype === "float32") return true;
  const narrow = dtype === "bfloat16" || dtype === "float16";
  return narrow && device.rowLayout(1, dtype).dtype === dtype;
}
