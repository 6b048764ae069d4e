/** From the fault that a program ended with to the error that its launch is rejected with. */

import { InvalidArgumentError, InvalidLogitsError, type NexusError } from "../../errors.ts";
import {
  FAULT,
  FAULT_CODE,
  FAULT_INDEX,
  FAULT_OPERATOR,
  FAULT_ROW,
  FAULT_VALUE,
  KIND,
  OPERATOR_KIND,
} from "./program.ts";

/** @param words a program that is over */
export function faultOf(words: Int32Array): NexusError | undefined {
  const code = words[FAULT];
  if (code === 0) return undefined;
  if (code === FAULT_CODE.logits) return new InvalidLogitsError(words[FAULT_ROW] as number);
  const value = words[FAULT_VALUE];
  const index = words[FAULT_INDEX];
  const kind = words[(words[FAULT_OPERATOR] as number) + KIND];
  const name = Object.entries(OPERATOR_KIND).find(([, number]) => number === kind)?.[0];
  return new InvalidArgumentError(`${name}: ${describe(code, value, index)}`);
}

function describe(code: number | undefined, value: number | undefined, index: number | undefined) {
  switch (code) {
    case FAULT_CODE.tokens:
      return `tokens holds ${value}. The operator is for 0 to ${index} tokens; write a count within that, or enqueue it with a larger mostTokens.`;
    case FAULT_CODE.expert:
      return `ids[${index}] is ${value}, which is not an expert. Write ids from 0 to experts - 1.`;
    case FAULT_CODE.lane:
      return `laneOf[${index}] is ${value}, which is not a lane. Write lanes from 0 to lanes - 1.`;
    case FAULT_CODE.row:
      return `inverse[${index}] is ${value}, which is not a row. Leave what the bucket operator writes as it is.`;
    default:
      return `order[${index}] is ${value}, which is not a slot. Leave what the bucket operator writes as it is.`;
  }
}
