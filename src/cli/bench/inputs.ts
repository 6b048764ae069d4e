/**
 * The batches of a measurement, where calls begin on this device: in host memory for a
 * CPU, for a GPU in its own memory and in the element type that it works in.
 */

import { type Device, rowBytes } from "../../execution/device.ts";
import { DeviceTensor } from "../../execution/device-tensor.ts";
import type { DType, Tensor } from "../../tensor.ts";

export class Inputs implements Disposable {
  readonly #batches: readonly (Tensor<Float32Array> | DeviceTensor)[];

  /** @param weights element type of the weights that the batches will meet; @param batches float32 [T, H] */
  constructor(device: Device, weights: DType, batches: readonly Tensor<Float32Array>[]) {
    const isGpu = device.properties.kind === "cuda";
    this.#batches = isGpu ? batches.map((batch) => onDevice(device, weights, batch)) : batches;
  }

  /** The batch whose turn it is. */
  at(turn: number): Tensor<Float32Array> | DeviceTensor {
    return this.#batches[turn % this.#batches.length] as Tensor<Float32Array> | DeviceTensor;
  }

  [Symbol.dispose](): void {
    for (const batch of this.#batches) {
      if (batch instanceof DeviceTensor) batch[Symbol.dispose]();
    }
  }
}

function onDevice(device: Device, weights: DType, batch: Tensor<Float32Array>): DeviceTensor {
  const [tokens, width] = batch.shape as readonly [number, number];
  const layout = device.rowLayout(width, weights);
  // Rows with gaps are no tensor.
  if (layout.pitch !== width) return DeviceTensor.fromHost(device, batch);
  const buffer = device.allocate(rowBytes(layout, tokens), "batch of the benchmark");
  device.writeRows(buffer, layout, batch);
  return new DeviceTensor(device, buffer, batch.shape, layout.dtype);
}
