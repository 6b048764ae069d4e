/** The checks of a launch's substitutes that every device makes. Which buffers are its own only the device knows. */

import { shown } from "../errors/wording.ts";
import { DisposedError, InvalidArgumentError } from "../errors.ts";
import { requireObject } from "./checks.ts";
import type { DeviceBuffer, Substitute } from "./device.ts";
import { checkRange } from "./memory-checks.ts";
import type { Resource } from "./operator-checks.ts";

/** A substitute whose buffers are known to be a device's own. */
export type OwnSubstitute<Own extends DeviceBuffer> = Substitute & {
  readonly buffer: Own;
  readonly by: Own;
};

/**
 * @param used what the graph was captured with
 * @param isOwn whether a buffer is one of the graph's device
 * @returns copies: the caller may change its own before the launch's turn comes
 * @throws InvalidArgumentError, DisposedError unless they can stand in for buffers of the graph
 */
export function checkedSubstitutes<Own extends DeviceBuffer>(
  substitutes: readonly Substitute[],
  used: readonly Resource[],
  isOwn: (buffer: DeviceBuffer) => buffer is Own,
): readonly OwnSubstitute<Own>[] {
  if (!Array.isArray(substitutes)) {
    throw new InvalidArgumentError(
      `substitutes is ${shown(substitutes)}; it must be an array of { buffer, by, byteLength, access }, or left out.`,
    );
  }
  const checked = substitutes.map((each) => checkedSubstitute(each, used, isOwn));
  for (const [at, { buffer, by, access }] of checked.entries()) {
    const others = checked.filter((_, other) => other !== at);
    if (others.some((other) => other.buffer === buffer)) {
      throw new InvalidArgumentError(`Buffer "${buffer.label}" has two substitutes. Give it one.`);
    }
    if (access === "write" && others.some((other) => other.by === by)) {
      throw new InvalidArgumentError(
        `Buffer "${by.label}" would be written in the place of one and be used in that of another. Take two buffers.`,
      );
    }
  }
  return checked;
}

function checkedSubstitute<Own extends DeviceBuffer>(
  substitute: Substitute,
  used: readonly Resource[],
  isOwn: (buffer: DeviceBuffer) => buffer is Own,
): OwnSubstitute<Own> {
  requireObject(substitute, "a substitute", "an object { buffer, by, byteLength, access }");
  const { buffer, by, byteLength, access } = substitute;
  if (!isOwn(buffer) || !isOwn(by)) {
    throw new InvalidArgumentError("A substitute's buffers are not both of the graph's device.");
  }
  for (const each of [buffer, by]) {
    if (each.closed) throw new DisposedError(`Buffer "${each.label}"`);
    checkRange(each, 0, byteLength);
  }
  if (!used.includes(buffer)) {
    throw new InvalidArgumentError(`Buffer "${buffer.label}" is not one that the graph uses.`);
  }
  if (access !== "read" && access !== "write") {
    throw new InvalidArgumentError(
      `A substitute's access is ${shown(access)}; it must be "read" or "write".`,
    );
  }
  return { buffer, by, byteLength, access };
}
