/**
 * From an operator's description to the words of a program: checks every
 * argument (operator-checks.ts) and writes it where the workers will read it.
 */

import type { DType } from "../../tensor.ts";
import type { DeviceBuffer, Projection } from "../device.ts";
import { ArgumentChecks } from "../operator-checks.ts";
import { CpuBuffer } from "./buffer.ts";
import { ArgumentWords } from "./program.ts";
import { CpuProjection } from "./projection.ts";

export class ArgumentWriter extends ArgumentChecks<CpuBuffer, CpuProjection> {
  readonly #device: object;
  readonly #arguments = new ArgumentWords();

  /** @param device what buffers and projections must belong to */
  constructor(device: object, operator: string) {
    super(operator);
    this.#device = device;
  }

  get words(): Int32Array {
    return this.#arguments.words;
  }

  /** As `ArgumentWords.int`. */
  int(at: number, value: number): void {
    this.#arguments.int(at, value);
  }

  /** As `ArgumentWords.float`. */
  float(at: number, value: number): void {
    this.#arguments.float(at, value);
  }

  /** Activations are float32, in and out. */
  float32(name: string, dtype: DType): void {
    if (dtype === "float32") return;
    this.fail(`${name} is ${String(dtype)}`, "The CPU device computes in float32; use that.");
  }

  /** A buffer that the operator reads, with room for that many 32-bit elements. */
  input(name: string, buffer: DeviceBuffer, elements: number): CpuBuffer {
    return this.inputBytes(name, buffer, elements * 4);
  }

  /** A buffer that the operator writes; it must not be one of the others. */
  output(name: string, buffer: DeviceBuffer, elements: number): CpuBuffer {
    return this.outputBytes(name, buffer, elements * 4);
  }

  /** The address of an input that may be absent, or 0. */
  optionalInput(name: string, buffer: DeviceBuffer | undefined, elements: number): number {
    return buffer === undefined ? 0 : this.input(name, buffer, elements).address;
  }

  optionalOutput(name: string, buffer: DeviceBuffer | undefined, elements: number): number {
    return buffer === undefined ? 0 : this.output(name, buffer, elements).address;
  }

  protected isOwnBuffer(buffer: DeviceBuffer): buffer is CpuBuffer {
    return buffer instanceof CpuBuffer && buffer.owner === this.#device;
  }

  protected isOwnProjection(projection: Projection): projection is CpuProjection {
    return projection instanceof CpuProjection && projection.owner === this.#device;
  }
}
