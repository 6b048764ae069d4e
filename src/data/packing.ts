/**
 * Which experts' weights can be packed (`packWeights`): what there are kernels for. It is checked before anything is done on a
 * device, by whoever is asked for packed weights; whether the weights themselves fit is found when they are written.
 */

import { shown } from "../errors/wording.ts";
import { DeviceUnavailableError, InvalidArgumentError } from "../errors.ts";
import type { DeviceProperties } from "../execution/device.ts";
import type { DType } from "../tensor.ts";
import type { AggregationSpec, ExpertsSpec } from "./spec.ts";

/** What is to be packed, and what it will be used for. */
export interface PackedExperts {
  readonly experts: ExpertsSpec;
  /** Element type of weights that rows are laid out for. */
  readonly rowWeights: DType;
  /** Absent where it is not known yet. */
  readonly aggregation?: AggregationSpec;
}

/** What `packWeights` may be. @throws InvalidArgumentError */
export function requirePacking(name: string, packing: unknown): void {
  if (typeof packing === "boolean" || packing === "beside") return;
  throw new InvalidArgumentError(`${name} is ${shown(packing)}. Use true, false or "beside".`);
}

const REMEDY = "Leave packWeights out, or set it to false.";

/**
 * @param device where the weights go, if that is known
 * @throws InvalidArgumentError if no device has kernels for such experts
 * @throws DeviceUnavailableError if this device packs no weights
 */
export function checkPackable(
  { experts, rowWeights, aggregation }: PackedExperts,
  device?: Pick<DeviceProperties, "packsWeights">,
): void {
  const { form, dtype, activation } = experts;
  if (dtype !== "bfloat16") {
    fail(`experts.dtype is "${dtype}", and only bfloat16 weights can be packed`);
  }
  if (rowWeights !== dtype) {
    fail(`the shared expert makes rows ${rowWeights}, and packed weights need rows of bfloat16`);
  }
  if (form !== "gated") fail(`experts.form is "${form}", and only gated experts can be packed`);
  requireOutputWeights(aggregation);
  if (device === undefined) return;
  const { packsWeights } = device;
  if (!packsWeights.available) {
    throw new DeviceUnavailableError(`packWeights is set. ${packsWeights.reason} ${REMEDY}`);
  }
  const { activations } = packsWeights;
  if (activations.includes(activation.kind)) return;
  fail(
    `experts.activation.kind is "${activation.kind}", and weights can be packed for ${activations.join(", ")}`,
  );
}

/** @throws InvalidArgumentError if routing weights would scale the input of packed weights */
export function requireOutputWeights(aggregation: AggregationSpec | undefined): void {
  if (aggregation?.weightsApplyTo !== "input") return;
  fail('aggregation.weightsApplyTo is "input", and packed weights take no scaled input');
}

function fail(what: string): never {
  throw new InvalidArgumentError(`packWeights is set, but ${what}. ${REMEDY}`);
}
