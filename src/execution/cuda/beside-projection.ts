/**
 * bfloat16 weights on the GPU twice: as they are, and packed beside that (packed-projection.ts). Operators read the one or the other,
 * whichever takes less time (operators/project.ts, decode-weights.ts). That takes 28 bits a weight instead of 16, and nothing has to be
 * given up: dense products and products of many rows an expert read weights as they are. Outputs have the bits of plain weights, but
 * for those of decode, whose kernels sum up in another order.
 *
 * A matrix is packed anew, from its own panels, whenever a part of it has been written and all parts are there. Until then, and where that
 * failed, packed weights are not current, and what is encoded meanwhile reads plain ones. A graph that was captured before reads what it
 * was captured with: of a matrix that could not be packed it computes nonsense until that is written again.
 */

import type { MatrixView } from "../../tensor.ts";
import type { ProjectionPart, ProjectionSpec } from "../device.ts";
import { checkMatrix, checkPlace } from "../projection-checks.ts";
import { MatrixParts, partNames } from "./matrix-parts.ts";
import { PackedProjection } from "./packed-projection.ts";
import { checkNoise } from "./panels.ts";
import { PlainProjection } from "./plain-projection.ts";
import type { ProjectionOwner } from "./projection.ts";

export class BesideProjection extends PlainProjection {
  readonly packed: PackedProjection;
  readonly #parts: MatrixParts;
  /** Matrices that are packed as they are. */
  readonly #current = new Set<number>();

  /**
   * Reserves the memory, all zero.
   *
   * @param spec checked to be of weights that can be packed
   * @throws InvalidArgumentError if the spec makes no sense
   * @throws OutOfDeviceMemoryError
   */
  constructor(device: ProjectionOwner, spec: ProjectionSpec, label: string) {
    super(device, spec, label);
    this.#parts = new MatrixParts(spec);
    try {
      this.packed = new PackedProjection(device, spec, label);
    } catch (error) {
      super[Symbol.dispose]();
      throw error;
    }
  }

  override get byteLength(): number {
    return super.byteLength + this.packed.byteLength;
  }

  /** Whether all matrices are packed as they are. */
  get current(): boolean {
    return this.#current.size === this.spec.count;
  }

  /** @throws UnpackableWeightsError, OutOfDeviceMemoryError, and as CudaProjection says */
  override async write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void> {
    checkPlace(this, index, part);
    checkMatrix(this, matrix);
    this.#current.delete(index);
    const whole = await this.#parts.write(index, part, () => super.write(index, part, matrix));
    if (!whole) return;
    const version = this.#parts.version(index);
    try {
      await this.packed.packFrom(this.matrixAddress(index), index, 1);
    } catch (error) {
      // What is being written again is packed after that.
      if (this.#parts.version(index) !== version) return;
      throw error;
    }
    if (this.#parts.version(index) === version) this.#current.add(index);
  }

  override writeBias(index: number, part: ProjectionPart, bias: Float32Array): void {
    super.writeBias(index, part, bias);
    this.packed.writeBias(index, part, bias);
  }

  /** @throws UnpackableWeightsError, OutOfDeviceMemoryError, and as CudaProjection says */
  override async fill(seed: number, scale: number): Promise<void> {
    this.requireOpen();
    checkNoise(seed, scale);
    this.#current.clear();
    await super.fill(seed, scale);
    await this.packed.packFrom(this.address, 0, this.spec.count);
    for (let index = 0; index < this.spec.count; index++) {
      this.#parts.set(index, partNames(this.spec));
      this.#current.add(index);
    }
  }

  override [Symbol.dispose](): void {
    this.packed[Symbol.dispose]();
    super[Symbol.dispose]();
  }
}
