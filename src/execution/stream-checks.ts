/** What a stream may be charged to and how urgent it may be, on every device. */

import { shown } from "../errors/wording.ts";
import { InvalidArgumentError } from "../errors.ts";
import { requireObject } from "./checks.ts";
import { MAX_GROUPS, type StreamOptions } from "./device.ts";

/** @throws InvalidArgumentError for a group that there is not, or a priority that is no int32 */
export function checkStreamOptions(options: StreamOptions): void {
  requireObject(options, "options", "an object such as { group, priority }");
  const { group, priority } = options;
  if (!Number.isInteger(group) || group < 0 || group >= MAX_GROUPS) {
    throw new InvalidArgumentError(
      `A stream's group is ${shown(group)}. Use a whole number from 0 to ${MAX_GROUPS - 1}.`,
    );
  }
  if (!Number.isInteger(priority) || (priority | 0) !== priority) {
    throw new InvalidArgumentError(
      `A stream's priority is ${shown(priority)}. Use a whole number of at most 32 bits.`,
    );
  }
}
