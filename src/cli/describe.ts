/** Devices, layers and energy readings in words, the same in every report. */

import type { EnergyReading } from "../control/energy-monitor.ts";
import type { LayerSpec } from "../data/spec.ts";
import type { DeviceKind, Packing } from "../execution/device.ts";
import type { DeviceSummary } from "./device.ts";
import { formatBytes, formatNumber, LINE_WIDTH, plural, wrap } from "./terminal/format.ts";
import type { Style } from "./terminal/style.ts";

/** What a compute unit is called: streaming multiprocessors of a GPU, worker threads of the CPU device. */
export const UNIT_NAMES: Readonly<Record<DeviceKind, string>> = { cpu: "thread", cuda: "SM" };

/** Said behind the element type of weights: how they are kept, unless it is as they are. */
export function packedWords(packed: Packing): string {
  if (packed === "beside") return " as it is and packed in 12 bits (bytes count as packed)";
  return packed ? " packed in 12 bits" : "";
}

/** Columns that the name of a fact takes. */
const NAME_COLUMNS = 10;

export function describeDevice(device: DeviceSummary): string {
  const { kind, name, computeUnits, memoryBytes, features, driver } = device;
  const facts = [name, plural(computeUnits, UNIT_NAMES[kind])];
  if (kind === "cuda") facts.push(formatBytes(memoryBytes));
  if (driver !== undefined) facts.push(`driver ${driver}`);
  return [...facts, ...features].join(", ");
}

/** @param packed how the routed experts' weights are kept */
export function describeSpec(
  spec: LayerSpec,
  weightBytes: number,
  packed: Packing = false,
): string {
  const { router, experts } = spec;
  const { rule } = router;
  const form = experts.form === "gated" ? "gated" : `${experts.depth}-layer`;
  const shared = spec.shared ? ", 1 shared expert" : "";
  const renormalized = rule.renormalize ? ", renormalised" : "";
  return (
    `${plural(router.experts, "expert")}, top-${router.topK} (${rule.scoring}${renormalized})${shared}, ` +
    `hidden ${spec.hiddenSize}, intermediate ${experts.intermediateSize} (${form} ${experts.activation.kind}), ` +
    `${experts.dtype} weights${packedWords(packed)}, ${formatBytes(weightBytes)}`
  );
}

export function describeEnergy(energy: EnergyReading): string {
  if (!energy.available) return `not measured: ${energy.reason}`;
  const { joules, watts, tokensPerJoule, domain } = energy;
  return `${formatNumber(joules)} J at ${formatNumber(watts)} W, ${formatNumber(tokensPerJoule)} tokens/J (${domain})`;
}

/** `Name      what there is to say about it`, wrapped, continuation lines indented. */
export function fact(style: Style, name: string, text: string): string[] {
  const [first = "", ...rest] = wrap(text, { width: LINE_WIDTH - NAME_COLUMNS });
  const indent = " ".repeat(NAME_COLUMNS);
  return [
    `${style("dim", name.padEnd(NAME_COLUMNS))}${first}`,
    ...rest.map((line) => indent + line),
  ];
}
