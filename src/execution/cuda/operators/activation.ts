/** An activation as arguments of a kernel: the manifest's numbers, with the activation's own put in. */

import type { Activation } from "../../operators.ts";
import type { KernelValues } from "../launch/launch.ts";
import type { OperatorEncoder } from "./encoder.ts";

/** Checks the activation and returns `code`, `linear`, `cubic`, `limit`, `shift`. */
export function activationValues(
  activation: Activation,
  gated: boolean,
  to: OperatorEncoder,
): KernelValues {
  const { activations } = to.context.kernels.manifest;
  const kind = to.oneOf("activation.kind", activation.kind, Object.keys(activations));
  const own: Record<string, number> = {};
  if (activation.kind === "swiglu-clamped") {
    if (!gated) to.fail("swiglu-clamped joins a gate and a value", "Use a gated projection.");
    own["alpha"] = to.finite("activation.alpha", activation.alpha);
    own["limit"] = to.finite("activation.limit", activation.limit);
  }
  const values = Object.entries(activations[kind] ?? {}).map(([name, value]) => [
    name,
    typeof value === "string" ? own[value] : (value ?? Number.POSITIVE_INFINITY),
  ]);
  return Object.fromEntries(values);
}
