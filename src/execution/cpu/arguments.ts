/**
 * From an operator's description to the words of a program: checks every
 * argument and writes it where the workers will read it. All that can be wrong
 * with an operator, apart from what its buffers hold, is found here, before any
 * work is done, and reported with the operator, the argument and the value.
 */

import { DisposedError, InvalidArgumentError } from "../../errors.ts";
import type { DType } from "../../tensor.ts";
import type { DeviceBuffer, Projection } from "../device.ts";
import { CpuBuffer } from "./buffer.ts";
import { ArgumentWords } from "./program.ts";
import { CpuProjection } from "./projection.ts";

/** What a program keeps hold of: it cannot run once one of them is closed. */
export interface Resource {
  readonly closed: boolean;
  readonly label: string;
}

export class ArgumentWriter extends ArgumentWords {
  readonly resources: Resource[] = [];
  readonly #device: object;
  readonly #operator: string;
  readonly #inputs: CpuBuffer[] = [];
  readonly #outputs: { name: string; buffer: CpuBuffer }[] = [];

  /** @param device what buffers and projections must belong to */
  constructor(device: object, operator: string) {
    super();
    this.#device = device;
    this.#operator = operator;
  }

  fail(what: string, remedy: string): never {
    throw new InvalidArgumentError(`${this.#operator}: ${what}. ${remedy}`);
  }

  /** Checks a whole number and returns it. */
  integer(name: string, value: number, least: number, most = 0x7fffffff): number {
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    return this.fail(
      `${name} is ${String(value)}`,
      most === 0x7fffffff
        ? `Use a whole number, ${least} or more.`
        : `Use a whole number from ${least} to ${most}.`,
    );
  }

  finite(name: string, value: number): number {
    if (typeof value === "number" && Number.isFinite(value)) return value;
    return this.fail(`${name} is ${String(value)}`, "Use a finite number.");
  }

  oneOf<T extends string>(name: string, value: T, known: readonly T[]): T {
    if (known.includes(value)) return value;
    return this.fail(`${name} is "${String(value)}"`, `Use one of ${known.join(", ")}.`);
  }

  /** Activations are float32, in and out. */
  float32(name: string, dtype: DType): void {
    if (dtype === "float32") return;
    this.fail(`${name} is ${String(dtype)}`, "The CPU device computes in float32; use that.");
  }

  /** A buffer that the operator reads, with room for that many 32-bit elements. */
  input(name: string, buffer: DeviceBuffer, elements: number): CpuBuffer {
    const found = this.#buffer(name, buffer, elements);
    this.#inputs.push(found);
    return found;
  }

  /** A buffer that the operator writes; it must not be one of the others. */
  output(name: string, buffer: DeviceBuffer, elements: number): CpuBuffer {
    const found = this.#buffer(name, buffer, elements);
    this.#outputs.push({ name, buffer: found });
    return found;
  }

  /** The address of an input that may be absent, or 0. */
  optionalInput(name: string, buffer: DeviceBuffer | undefined, elements: number): number {
    return buffer === undefined ? 0 : this.input(name, buffer, elements).address;
  }

  optionalOutput(name: string, buffer: DeviceBuffer | undefined, elements: number): number {
    return buffer === undefined ? 0 : this.output(name, buffer, elements).address;
  }

  projection(name: string, projection: Projection): CpuProjection {
    if (!(projection instanceof CpuProjection) || projection.owner !== this.#device) {
      this.fail(
        `${name} is not a projection of this device`,
        "Create it with this device's createProjection().",
      );
    }
    this.#hold(name, projection);
    return projection;
  }

  /** To be called last: every output is written by this operator alone. */
  finish(): void {
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

  #buffer(name: string, buffer: DeviceBuffer, elements: number): CpuBuffer {
    if (!(buffer instanceof CpuBuffer) || buffer.owner !== this.#device) {
      this.fail(
        `${name} is not a buffer of this device`,
        "Allocate it with this device's allocate().",
      );
    }
    this.#hold(name, buffer);
    if (buffer.elements < elements) {
      this.fail(
        `${name} ("${buffer.label}") has ${buffer.byteLength} bytes and needs ${elements * 4}`,
        "Allocate it larger, or check the operator's sizes.",
      );
    }
    return buffer;
  }

  #hold(name: string, resource: Resource): void {
    if (resource.closed) {
      throw new DisposedError(`${this.#operator}: ${name} ("${resource.label}")`);
    }
    this.resources.push(resource);
  }
}
