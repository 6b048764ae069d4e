/**
 * The layer in plain float64, to check everything else against. Written from the
 * definitions in data/spec.ts and execution/operators.ts, without the kernels.
 */

export { activate, joinGate, referenceExpert } from "./expert.ts";
export {
  type ReferenceDrop,
  type ReferenceResult,
  referenceLayer,
  referenceLogits,
} from "./layer.ts";
export { decodeMatrix, erfc, relativeError } from "./numbers.ts";
export { type ReferenceRouting, referenceRoute } from "./route.ts";
