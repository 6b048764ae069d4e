/**
 * The checks of an operator's arguments. All that can be wrong with an operator,
 * apart from what its buffers hold, is found here, before any work is done, and
 * reported with the operator, the argument and the value.
 */

import { DisposedError, InvalidArgumentError } from "../../../errors.ts";
import { BYTES_PER_ELEMENT, type DType } from "../../../tensor.ts";
import type { DeviceBuffer, Projection } from "../../device.ts";
import type { CudaBuffer, Resource } from "../buffer.ts";
import { CudaProjection } from "../projection.ts";
import { ROW_TYPES, type RowType } from "../rows.ts";

/** Sizes and counts are int32 in the kernels. */
const MOST_INT = 0x7fffffff;

export class OperatorArguments {
  readonly resources: Resource[] = [];
  readonly #device: object;
  readonly #operator: string;
  readonly #inputs: CudaBuffer[] = [];
  readonly #outputs: { name: string; buffer: CudaBuffer }[] = [];

  /** @param device what buffers and projections must belong to */
  constructor(device: object, operator: string) {
    this.#device = device;
    this.#operator = operator;
  }

  fail(what: string, remedy: string): never {
    throw new InvalidArgumentError(`${this.#operator}: ${what}. ${remedy}`);
  }

  /** Checks a whole number and returns it. */
  integer(name: string, value: number, least: number, most = MOST_INT): number {
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    return this.fail(
      `${name} is ${String(value)}`,
      most === MOST_INT
        ? `Use a whole number, ${least} or more.`
        : `Use a whole number from ${least} to ${most}.`,
    );
  }

  finite(name: string, value: number): number {
    if (typeof value === "number" && Number.isFinite(value)) return value;
    return this.fail(`${name} is ${String(value)}`, "Use a finite number.");
  }

  oneOf<T extends string>(name: string, value: string, known: readonly T[]): T {
    if ((known as readonly string[]).includes(value)) return value as T;
    return this.fail(`${name} is "${String(value)}"`, `Use one of ${known.join(", ")}.`);
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
    const found = this.#buffer(name, buffer, elements * BYTES_PER_ELEMENT[dtype]);
    this.#inputs.push(found);
    return found;
  }

  /** A buffer that the operator writes; it must not be one of the others. */
  output(name: string, buffer: DeviceBuffer, elements: number, dtype: DType = "int32"): CudaBuffer {
    const found = this.#buffer(name, buffer, elements * BYTES_PER_ELEMENT[dtype]);
    this.#outputs.push({ name, buffer: found });
    return found;
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

  projection(name: string, projection: Projection): CudaProjection {
    if (!(projection instanceof CudaProjection) || projection.owner !== this.#device) {
      this.fail(
        `${name} is not a projection of this device`,
        "Create it with this device's createProjection().",
      );
    }
    this.hold(name, projection);
    return projection;
  }

  /** Makes sure that something is there when the operator runs. */
  hold(name: string, resource: Resource): void {
    if (resource.closed) {
      throw new DisposedError(`${this.#operator}: ${name} ("${resource.label}")`);
    }
    this.resources.push(resource);
  }

  /** To be called last: every output is written by this operator alone. */
  checkOutputs(): void {
    for (const [index, { name, buffer }] of this.#outputs.entries()) {
      const others = [
        ...this.#inputs,
        ...this.#outputs.slice(index + 1).map((output) => output.buffer),
      ];
      if (others.includes(buffer)) {
        this.fail(
          `${name} ("${buffer.label}") is also another argument`,
          "An operator cannot work in place; give its output a buffer of its own.",
        );
      }
    }
  }

  #buffer(name: string, buffer: DeviceBuffer, bytes: number): CudaBuffer {
    const found = buffer as CudaBuffer | null | undefined;
    if (found?.owner !== this.#device) {
      this.fail(
        `${name} is not a buffer of this device`,
        "Allocate it with this device's allocate().",
      );
    }
    this.hold(name, found);
    if (found.byteLength < bytes) {
      this.fail(
        `${name} ("${found.label}") has ${found.byteLength} bytes and needs ${bytes}`,
        "Allocate it larger, or check the operator's sizes.",
      );
    }
    return found;
  }
}
