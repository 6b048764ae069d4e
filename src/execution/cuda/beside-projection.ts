/**
 * bfloat16 weights on the GPU twice: as they are, and packed beside that (packed-projection.ts). Operators read the one or the other,
 * whichever takes less time (operators/project.ts), and outputs have the same bits. That takes 28 bits a weight instead of 16, and
 * nothing has to be given up: decode, dense products and products of many rows an expert read weights as they are.
 *
 * A matrix is packed anew, from its own panels, whenever a part of it has been written and all parts are there.
 */

import type { MatrixView } from "../../tensor.ts";
import type { ProjectionPart, ProjectionSpec } from "../device.ts";
import { PackedProjection } from "./packed-projection.ts";
import { panelBytes } from "./panels.ts";
import { PlainProjection } from "./plain-projection.ts";
import { type ProjectionOwner, partsOf } from "./projection.ts";

export class BesideProjection extends PlainProjection {
  readonly packed: PackedProjection;
  /** By matrix, the parts that are there. */
  readonly #written = new Map<number, Set<ProjectionPart>>();

  /**
   * Reserves the memory, all zero.
   *
   * @param spec checked to be of weights that can be packed
   * @throws InvalidArgumentError if the spec makes no sense
   * @throws OutOfDeviceMemoryError
   */
  constructor(device: ProjectionOwner, spec: ProjectionSpec, label: string) {
    super(device, spec, label);
    try {
      this.packed = new PackedProjection(device, spec, `${label}, packed`);
    } catch (error) {
      super[Symbol.dispose]();
      throw error;
    }
  }

  override get byteLength(): number {
    return super.byteLength + this.packed.byteLength;
  }

  /** @throws UnpackableWeightsError, OutOfDeviceMemoryError, and as CudaProjection says */
  override async write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void> {
    await super.write(index, part, matrix);
    const written = this.#written.get(index) ?? new Set();
    this.#written.set(index, written.add(part));
    if (written.size < partsOf(this.spec)) return;
    await this.packed.packFrom(this.address + BigInt(index * panelBytes(this)), index, 1);
  }

  override writeBias(index: number, part: ProjectionPart, bias: Float32Array): void {
    super.writeBias(index, part, bias);
    this.packed.writeBias(index, part, bias);
  }

  /** @throws UnpackableWeightsError, OutOfDeviceMemoryError, and as CudaProjection says */
  override async fill(seed: number, scale: number): Promise<void> {
    await super.fill(seed, scale);
    await this.packed.packFrom(this.address, 0, this.spec.count);
  }

  override [Symbol.dispose](): void {
    this.packed[Symbol.dispose]();
    super[Symbol.dispose]();
  }
}
