/**
 * Weights on the GPU as they are: the matrices of a projection in panels (panels.ts), as the kernels read them. A gate, whose
 * output is float32, lies as [count, n, k]: kernels of its own read it row by row. Elements have
 * the type of the rows that the projection reads; a gate keeps its own type if it is
 * that of the rows, else float32.
 */

import type { MatrixView } from "../../tensor.ts";
import type { ProjectionPart, ProjectionSpec } from "../device.ts";
import { checkMatrix, checkPlace } from "../projection-checks.ts";
import type { OwnKernelWork } from "./operators/kernel-work.ts";
import { fillPanels, type Panels, panelBytes, writePanels } from "./panels.ts";
import { CudaProjection, checkNumbers, type ProjectionOwner, sizesOf } from "./projection.ts";
import { PANEL } from "./rows.ts";
import type { TensorMapMeta } from "./tensor-maps.ts";
import type { MemoryRange } from "./work.ts";

export class PlainProjection extends CudaProjection implements Panels {
  readonly panel: number;

  /**
   * Reserves the memory, all zero.
   *
   * @throws InvalidArgumentError if the spec makes no sense
   * @throws OutOfDeviceMemoryError
   */
  constructor(device: ProjectionOwner, spec: ProjectionSpec, label: string) {
    const sizes = sizesOf(spec);
    const panel = spec.output === "float32" ? sizes.k : PANEL;
    checkNumbers(spec, sizes, panel);
    super(device, spec, sizes, spec.count * panelBytes(sizes), label);
    this.panel = panel;
  }

  get weightBytes(): number {
    return this.spec.count * panelBytes(this);
  }

  get weights(): MemoryRange {
    return { address: this.address, bytes: this.weightBytes };
  }

  /** Of two dimensions all panels one below the other, of four [count, k / 64, n, 64]. */
  tensorMap(meta: Omit<TensorMapMeta, "argument">): Uint8Array {
    const { element, n, k, panel } = this;
    const { count } = this.spec;
    const panels = k / panel;
    const shape =
      meta.block_size.length === 2 ? [count * panels * n, panel] : [count, panels, n, panel];
    return this.mapped({ element, shape }, meta);
  }

  async write(index: number, part: ProjectionPart, matrix: MatrixView): Promise<void> {
    checkPlace(this, index, part);
    checkMatrix(this, matrix);
    const to = this.matrixAddress(index);
    await writePanels(this.device, this, to, part, matrix, () => this.requireOpen());
  }

  protected matrixAddress(index: number): bigint {
    return this.address + BigInt(index * panelBytes(this));
  }

  async fill(seed: number, scale: number): Promise<void> {
    await this.device.transfers.runKernel(this.fillWork(seed, scale));
  }

  /**
   * The kernel of `fill`; its launch is the caller's to dispose of.
   *
   * @throws InvalidArgumentError, DisposedError
   */
  fillWork(seed: number, scale: number): OwnKernelWork {
    this.requireOpen();
    return fillPanels(this.device, this, this.address, seed, scale);
  }
}
