/**
 * The checks of an operator's arguments that every device makes. All that can be
 * wrong with an operator, apart from what its buffers hold, is found before any
 * work is done, and reported with the operator, the argument and the value.
 *
 * A device says which buffers and projections are its own; what becomes of the
 * arguments is its affair.
 */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../errors.ts";
import type { DeviceBuffer, Projection } from "./device.ts";

/** Sizes and counts are int32 in the kernels. */
export const MOST_INT = 0x7fffffff;

/** What enqueued work keeps hold of: it cannot run once one of them is closed. */
export interface Resource {
  readonly closed: boolean;
  readonly label: string;
}

/** @throws DisposedError naming the first resource that is closed */
export function requireOpen(resources: Iterable<Resource>): void {
  for (const resource of resources) {
    if (resource.closed) throw new DisposedError(`"${resource.label}", which the work uses,`);
  }
}

/** The part that needs no buffers. */
export interface OperatorChecks {
  fail(what: string, remedy: string): never;
  integer(name: string, value: number, least: number, most?: number): number;
  finite(name: string, value: number): number;
  oneOf<T extends string>(name: string, value: string, known: readonly T[]): T;
}

export abstract class ArgumentChecks<
  B extends DeviceBuffer & Resource,
  P extends Projection & Resource,
> implements OperatorChecks
{
  readonly resources: Resource[] = [];
  readonly #operator: string;
  readonly #inputs: B[] = [];
  readonly #outputs: { name: string; buffer: B }[] = [];

  constructor(operator: string) {
    this.#operator = operator;
  }

  protected abstract isOwnBuffer(buffer: DeviceBuffer): buffer is B;
  protected abstract isOwnProjection(projection: Projection): projection is P;

  fail(what: string, remedy: string): never {
    throw new InvalidArgumentError(`${this.#operator}: ${what}. ${remedy}`);
  }

  /** Checks a whole number and returns it. */
  integer(name: string, value: number, least: number, most = MOST_INT): number {
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    return this.fail(
      `${name} is ${shown(value)}`,
      most === MOST_INT
        ? `Use a whole number, ${least} or more.`
        : `Use a whole number from ${least} to ${most}.`,
    );
  }

  finite(name: string, value: number): number {
    if (typeof value === "number" && Number.isFinite(value)) return value;
    return this.fail(`${name} is ${shown(value)}`, "Use a finite number.");
  }

  oneOf<T extends string>(name: string, value: string, known: readonly T[]): T {
    if ((known as readonly string[]).includes(value)) return value as T;
    return this.fail(`${name} is ${shown(value)}`, `Use one of ${known.join(", ")}.`);
  }

  projection(name: string, projection: Projection): P {
    if (!this.isOwnProjection(projection)) {
      return this.fail(
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

  /** A buffer that the operator reads, with room for so many bytes. */
  protected inputBytes(name: string, buffer: DeviceBuffer, bytes: number): B {
    const found = this.#buffer(name, buffer, bytes);
    this.#inputs.push(found);
    return found;
  }

  /** A buffer that the operator writes; it must not be one of the others. */
  protected outputBytes(name: string, buffer: DeviceBuffer, bytes: number): B {
    const found = this.#buffer(name, buffer, bytes);
    this.#outputs.push({ name, buffer: found });
    return found;
  }

  #buffer(name: string, buffer: DeviceBuffer, bytes: number): B {
    if (!this.isOwnBuffer(buffer)) {
      return this.fail(
        `${name} is not a buffer of this device`,
        "Allocate it with this device's allocate().",
      );
    }
    this.hold(name, buffer);
    if (buffer.byteLength < bytes) {
      this.fail(
        `${name} ("${buffer.label}") has ${buffer.byteLength} bytes and needs ${bytes}`,
        "Allocate it larger, or check the operator's sizes.",
      );
    }
    return buffer;
  }
}
