/**
 * Checks that every public entry point makes before it looks inside its arguments,
 * so that callers without a type checker get a typed error and not a TypeError.
 * Here because the planes may all import from execution, and from nothing else
 * in common. What the fields of an argument may be is checked by whoever uses them.
 */

import { inspect } from "node:util";
import { InvalidArgumentError } from "../errors.ts";
import type { Device } from "./device.ts";

/** A value as messages show it: one short line, whatever it is. */
export function shown(value: unknown): string {
  return inspect(value, {
    depth: 0,
    maxArrayLength: 4,
    maxStringLength: 80,
    breakLength: Number.POSITIVE_INFINITY,
  });
}

/**
 * @param rule the end of a sentence: what the argument must be
 * @throws InvalidArgumentError unless the value is an object
 */
export function requireObject(value: unknown, name: string, rule: string): void {
  if (typeof value === "object" && value !== null) return;
  throw new InvalidArgumentError(`${name} is ${shown(value)}; it must be ${rule}.`);
}

/** @throws InvalidArgumentError unless the options are an object, with a device if they have one at all */
export function requireOptions(options: { readonly device?: Device | undefined }): void {
  requireObject(options, "options", "an object, or left out");
  const { device } = options;
  if (device === undefined || typeof device?.allocate === "function") return;
  throw new InvalidArgumentError(
    `options.device is ${shown(device)}; it must be a device from openDevice(), or left out for the default one.`,
  );
}
