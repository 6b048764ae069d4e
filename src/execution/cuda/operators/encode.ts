/** From an operator's description to work: one function for each kind, and what all of them have in common. */

import { shown } from "../../../errors/wording.ts";
import { InvalidArgumentError } from "../../../errors.ts";
import type { Operator } from "../../operators.ts";
import { encodeBucket } from "./bucket.ts";
import { encodeCombine } from "./combine.ts";
import type { OperatorContext } from "./context.ts";
import { encodeDecode } from "./decode.ts";
import { OperatorEncoder, type OwnedOperator } from "./encoder.ts";
import { encodeProject } from "./project.ts";
import { encodeRoute } from "./route.ts";

/**
 * Checks an operator and writes its work down. Nothing is issued, and nothing is left behind on failure
 * but scratch memory that belongs to one of the operator's buffers.
 *
 * @throws InvalidArgumentError, DisposedError naming operator, argument, value and remedy
 * @throws OutOfDeviceMemoryError if there is no room for scratch memory
 * @throws DeviceUnavailableError if a kernel's image is damaged
 */
export function encodeOperator(operator: Operator, context: OperatorContext): OwnedOperator {
  const to = new OperatorEncoder(context, String(operator?.kind));
  try {
    encode(operator, to);
    to.checkOutputs();
    return to;
  } catch (error) {
    to[Symbol.dispose]();
    throw error;
  }
}

function encode(operator: Operator, to: OperatorEncoder): void {
  switch (operator?.kind) {
    case "route":
      encodeRoute(operator, to);
      break;
    case "bucket":
      encodeBucket(operator, to);
      break;
    case "project":
      encodeProject(operator, to);
      break;
    case "combine":
      encodeCombine(operator, to);
      break;
    case "decode":
      encodeDecode(operator, to);
      break;
    default:
      throw new InvalidArgumentError(
        `${shown(operator)} is no operator. Its kind must be route, bucket, project, combine or decode.`,
      );
  }
}
