/**
 * Checks that every public entry point makes before it looks inside its arguments,
 * so that callers without a type checker get a typed error and not a TypeError.
 * Here because the planes may all import from execution, and from nothing else
 * in common. What the fields of an argument may be is checked by whoever uses them.
 */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import type { Device } from "./device.ts";

/**
 * @param rule the end of a sentence: what the argument must be
 * @throws InvalidArgumentError unless the value is an object
 */
export function requireObject(value: unknown, name: string, rule: string): void {
  if (typeof value === "object" && value !== null) return;
  throw new InvalidArgumentError(`${name} is ${shown(value)}; it must be ${rule}.`);
}

/** Whether a value is a number, finite and 0 or more. Text, lists and BigInts compare as numbers do, but are reckoned with in other ways. */
export function isAmount(value: unknown): value is number {
  return typeof value === "number" && value >= 0 && value < Number.POSITIVE_INFINITY;
}

/** The names of an object's fields; the compiler sees to it that none is left out. */
export type Fields<T> = Readonly<Record<T extends unknown ? keyof T & string : never, true>>;

/**
 * A misspelt option that is ignored would change results or speed without a word. So would one that is inherited, or a class's accessor:
 * checks read it, and copies of an object's fields lack it.
 *
 * @throws InvalidArgumentError if the object has a field that nobody would look at, or one that is not its own
 */
export function refuseUnknown(
  value: object,
  name: string,
  fields: Readonly<Record<string, true>>,
): void {
  for (const key in value) {
    if (Object.hasOwn(fields, key)) continue;
    throw new InvalidArgumentError(
      `${name}.${key} is unknown; use ${Object.keys(fields).join(", ")}.`,
    );
  }
  for (const field of Object.keys(fields)) {
    if (!(field in value) || Object.hasOwn(value, field)) continue;
    throw new InvalidArgumentError(
      `${name}.${field} is inherited, ${shown((value as Record<string, unknown>)[field])}; make it a field of the object itself.`,
    );
  }
}

/** @throws InvalidArgumentError unless the value is an object of known fields */
export function requireFields(
  value: object,
  name: string,
  rule: string,
  fields: Readonly<Record<string, true>>,
): void {
  requireObject(value, name, rule);
  refuseUnknown(value, name, fields);
}

/** @throws InvalidArgumentError unless there is a function whose work is to be captured */
export function requireRecord(record: () => void): void {
  if (typeof record === "function") return;
  throw new InvalidArgumentError(
    `What is to be captured is ${shown(record)}; it must be a function that enqueues work.`,
  );
}

/**
 * @param returned by the function whose work is captured
 * @throws InvalidArgumentError if it is a promise
 */
export function refusePromise(returned: unknown): void {
  if (!(returned instanceof Promise)) return;
  // It fails for want of a capture, most likely, and nobody else would see to that.
  returned.catch(() => undefined);
  throw new InvalidArgumentError(
    "The function to capture returned a promise. Enqueue everything before it returns; what comes later is not captured.",
  );
}

/** @throws InvalidArgumentError unless the value is a device */
export function requireDevice(device: Device, name: string): void {
  if (typeof device?.allocate === "function") return;
  throw new InvalidArgumentError(
    `${name} is ${shown(device)}; it must be a device from openDevice().`,
  );
}

/**
 * @param fields all that the options may have
 * @throws InvalidArgumentError unless they are an object of known fields, with a device if they have one at all
 */
export function requireOptions(
  options: { readonly device?: Device | undefined },
  fields: Readonly<Record<string, true>>,
): void {
  requireFields(options, "options", "an object, or left out", fields);
  if (options.device !== undefined) requireDevice(options.device, "options.device");
}
