/**
 * A float32 tensor in device memory. Passing one to a layer and getting one back
 * keeps activations on the device between calls.
 */

import { DisposedError, ShapeError } from "../errors.ts";
import { sizeOf, type Tensor, type TensorLike, toFloat32, toTensor } from "../tensor.ts";
import type { Device, DeviceBuffer } from "./device.ts";

export class DeviceTensor implements Disposable {
  readonly device: Device;
  readonly shape: readonly number[];
  readonly #buffer: DeviceBuffer;

  /** Takes over `buffer`, which holds at least the shape's elements in float32. */
  constructor(device: Device, buffer: DeviceBuffer, shape: readonly number[]) {
    if (sizeOf(shape) * 4 > buffer.byteLength) {
      throw new ShapeError(
        `A tensor of shape [${shape.join(", ")}] needs ${sizeOf(shape) * 4} bytes; the buffer has ${buffer.byteLength}.`,
      );
    }
    this.device = device;
    this.#buffer = buffer;
    this.shape = [...shape];
  }

  /**
   * Copies a host tensor to a device; 16-bit floats become float32.
   *
   * @throws ShapeError, InvalidArgumentError if the tensor is malformed
   * @throws OutOfDeviceMemoryError
   */
  static fromHost(device: Device, like: TensorLike): DeviceTensor {
    const tensor = toTensor(like, "tensor");
    const buffer = device.allocate(Math.max(4, sizeOf(tensor.shape) * 4), "tensor");
    device.write(buffer, toFloat32(tensor));
    return new DeviceTensor(device, buffer, tensor.shape);
  }

  /** The device memory behind the tensor. @throws DisposedError */
  get buffer(): DeviceBuffer {
    if (this.#buffer.closed) throw new DisposedError("The device tensor");
    return this.#buffer;
  }

  /** A copy in host memory. @throws DisposedError */
  async toHost(): Promise<Tensor<Float32Array>> {
    const data = new Float32Array(sizeOf(this.shape));
    await this.device.read(this.buffer, data);
    return { dtype: "float32", shape: this.shape, data };
  }

  /** Frees the device memory; harmless when repeated. */
  [Symbol.dispose](): void {
    this.#buffer[Symbol.dispose]();
  }
}
