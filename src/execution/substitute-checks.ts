/** The checks of a launch's substitutes that every device makes. Which buffers are its own only the device knows. */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../errors.ts";
import { requireObject } from "./checks.ts";
import type { DeviceBuffer, Substitute } from "./device.ts";

/**
 * @param isOwn whether a buffer is one of the graph's device
 * @throws InvalidArgumentError, DisposedError unless they can stand in for buffers of the graph
 */
export function checkSubstitutes<Own extends DeviceBuffer>(
  substitutes: readonly Substitute[],
  isOwn: (buffer: DeviceBuffer) => buffer is Own,
): asserts substitutes is readonly (Substitute & { readonly buffer: Own; readonly by: Own })[] {
  if (!Array.isArray(substitutes)) {
    throw new InvalidArgumentError(
      `substitutes is ${shown(substitutes)}; it must be an array of { buffer, by, access }, or left out.`,
    );
  }
  for (const substitute of substitutes) {
    requireObject(substitute, "a substitute", "an object { buffer, by, access }");
    const { buffer, by, access } = substitute as Substitute;
    for (const each of [buffer, by]) {
      if (!isOwn(each)) {
        throw new InvalidArgumentError(
          "A substitute's buffers are not both of the graph's device.",
        );
      }
      if (each.closed) throw new DisposedError(`Buffer "${each.label}"`);
    }
    if (access !== "read" && access !== "write") {
      throw new InvalidArgumentError(
        `A substitute's access is ${shown(access)}; it must be "read" or "write".`,
      );
    }
  }
}
