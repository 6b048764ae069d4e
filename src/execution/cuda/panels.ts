/**
 * Matrices in panels, the layout that weights are written in: into a projection itself if it is plain, and into scratch memory
 * that a kernel packs them from if it is not.
 *
 * Layout: [count, k / 64, n, 64]. A panel is 64 columns of all rows, so that what
 * a tile of a product reads of it lies in one piece (of 16-bit weights): kilobytes,
 * where rows in one piece would make it 128 to 512 bytes here and there, which memory
 * delivers more slowly. A gate's matrix, which kernels of its own read row by row, is a single panel of k columns.
 *
 * Writing a matrix is staged: a piece of the source goes to the device as it stands
 * and a kernel puts its elements in place.
 */

import { shown } from "../../errors/wording.ts";
import { InvalidArgumentError } from "../../errors.ts";
import { BYTES_PER_ELEMENT, type MatrixView } from "../../tensor.ts";
import type { ProjectionPart, ProjectionSpec } from "../device.ts";
import { chunksOf } from "./matrix-chunks.ts";
import { persistentGrid } from "./operators/grids.ts";
import { kernelWork, type OwnKernelWork } from "./operators/kernel-work.ts";
import { packWork } from "./operators/pack.ts";
import {
  type ProjectionOwner,
  type ProjectionSizes,
  partsOf,
  placeOf,
  STAGING_BYTES,
} from "./projection.ts";
import { PANEL, type RowType } from "./rows.ts";

/** Matrices of a projection, and the columns that lie together: of a row, and below that the next row's. */
export interface Panels extends ProjectionSizes {
  readonly spec: ProjectionSpec;
  readonly panel: number;
}

/** Bytes of one matrix. */
export function panelBytes({ element, n, k }: ProjectionSizes): number {
  return n * k * BYTES_PER_ELEMENT[element];
}

/**
 * Writes a part of one matrix.
 *
 * @param to address of the matrix; its padding must be zero already
 * @param matrix checked
 * @param requireOpen throws if there is no such memory any more
 */
export async function writePanels(
  device: ProjectionOwner,
  { spec, element, n, panel }: Panels,
  to: bigint,
  part: ProjectionPart,
  matrix: MatrixView,
  requireOpen: () => void,
): Promise<void> {
  const parts = partsOf(spec);
  const place = placeOf(spec, part);
  for (const chunk of chunksOf(matrix, STAGING_BYTES)) {
    const made: OwnKernelWork[] = [];
    try {
      await device.transfers.uploadAndRun(chunk.data, (staged) => {
        // Here and not before the wait for room: what is closed meanwhile is somebody else's memory.
        requireOpen();
        const first = (chunk.row * parts + place) * panel;
        const work = packWork(device, {
          source: staged + BigInt(chunk.origin * chunk.data.BYTES_PER_ELEMENT),
          sourceType: spec.dtype as RowType,
          rows: chunk.rows,
          columns: chunk.columns,
          rowStride: matrix.rowStride,
          columnStride: matrix.columnStride,
          target: to + BigInt(first * BYTES_PER_ELEMENT[element]),
          targetType: element,
          firstColumn: chunk.column,
          rowStep: parts * panel,
          panelStep: panelStep(n, panel),
          // The padding has held zeros since the memory was reserved.
          pitch: chunk.columns,
        });
        made.push(work);
        return made;
      });
    } finally {
      for (const { launch } of made) launch[Symbol.dispose]();
    }
  }
}

/**
 * The kernel that fills all matrices with noise over [-scale, scale]; its launch is the caller's to
 * dispose of.
 *
 * @param to address of the first matrix
 * @throws InvalidArgumentError
 */
export function fillPanels(
  device: ProjectionOwner,
  { spec, element, n, k, panel }: Panels,
  to: bigint,
  seed: number,
  scale: number,
): OwnKernelWork {
  checkNoise(seed, scale);
  const { count, inputs, outputs } = spec;
  const kernel = device.kernels.find({ operator: "fill", element });
  const validRows = partsOf(spec) * outputs;
  return kernelWork(
    device,
    kernel,
    {
      destination: to,
      seed,
      matrices: count,
      n,
      k,
      valid_rows: validRows,
      valid_columns: inputs,
      scale,
      row_step: panel,
      panel_step: panelStep(n, panel),
    },
    persistentGrid(kernel.entry, count * validRows, inputs),
  );
}

/** @throws InvalidArgumentError */
export function checkNoise(seed: number, scale: number): void {
  if (!Number.isSafeInteger(seed)) {
    throw new InvalidArgumentError(`seed is ${shown(seed)}. Use a whole number.`);
  }
  if (!Number.isFinite(scale) || scale < 0) {
    throw new InvalidArgumentError(`scale is ${shown(scale)}. Use a finite number, 0 or more.`);
  }
}

/** Elements from `PANEL` columns to the next. */
function panelStep(n: number, panel: number): number {
  return panel === PANEL ? PANEL * n : PANEL;
}
