/** The checks of an operator's arguments (operator-checks.ts), with what only kernels on the GPU have: element types of rows, slots. */

import { BYTES_PER_ELEMENT, type DType } from "../../../tensor.ts";
import type { DeviceBuffer, Projection } from "../../device.ts";
import { ArgumentChecks, MOST_INT } from "../../operator-checks.ts";
import type { CudaBuffer } from "../buffer.ts";
import type { PackedProjection } from "../packed-projection.ts";
import type { PlainProjection } from "../plain-projection.ts";
import { CudaProjection } from "../projection.ts";
import { ROW_TYPES, type RowType } from "../rows.ts";

type OwnProjection = PlainProjection | PackedProjection;

export class OperatorArguments extends ArgumentChecks<CudaBuffer, OwnProjection> {
  readonly #device: object;

  /** @param device what buffers and projections must belong to */
  constructor(device: object, operator: string) {
    super(operator);
    this.#device = device;
  }

  /** The element type of rows. */
  rowType(name: string, value: DType): RowType {
    return this.oneOf(name, value, ROW_TYPES);
  }

  /** Tokens, and slots for them: token * topK + choice is an int32 in the kernels. */
  slots(name: string, mostTokens: number, topK: number): number {
    const most = this.integer(name, mostTokens, 1);
    if (most * topK <= MOST_INT) return most * topK;
    return this.fail(
      `${name} is ${most}, which at topK ${topK} is ${most * topK} slots`,
      `Use fewer tokens at a time: at most ${Math.floor(MOST_INT / topK)}.`,
    );
  }

  /** A buffer that the operator reads, with room for that many elements. */
  input(name: string, buffer: DeviceBuffer, elements: number, dtype: DType = "int32"): CudaBuffer {
    return this.inputBytes(name, buffer, elements * BYTES_PER_ELEMENT[dtype]);
  }

  /** A buffer that the operator writes; it must not be one of the others. */
  output(name: string, buffer: DeviceBuffer, elements: number, dtype: DType = "int32"): CudaBuffer {
    return this.outputBytes(name, buffer, elements * BYTES_PER_ELEMENT[dtype]);
  }

  /** The address of an input that may be absent, or null. */
  optional(
    name: string,
    buffer: DeviceBuffer | undefined,
    elements: number,
    dtype: DType = "float32",
  ): bigint | null {
    return buffer === undefined ? null : this.input(name, buffer, elements, dtype).address;
  }

  protected isOwnBuffer(buffer: DeviceBuffer): buffer is CudaBuffer {
    return (buffer as CudaBuffer | null | undefined)?.owner === this.#device;
  }

  protected isOwnProjection(projection: Projection): projection is OwnProjection {
    return projection instanceof CudaProjection && projection.owner === this.#device;
  }
}
