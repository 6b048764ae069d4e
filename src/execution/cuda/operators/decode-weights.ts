/** The weights of both products of `decode`: plain ones, or packed ones where there are no others or where they take less time. */

import type { DecodeOperator } from "../../operators.ts";
import { BesideProjection } from "../beside-projection.ts";
import type { KernelValues } from "../launch/launch.ts";
import { PackedProjection } from "../packed-projection.ts";
import type { PlainProjection } from "../plain-projection.ts";
import type { CudaProjection } from "../projection.ts";
import { activationSets } from "./choice.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { inCache } from "./lasting.ts";
import { PLAIN_REMEDY } from "./packed.ts";

export interface DecodeWeights {
  readonly first: CudaProjection;
  readonly second: CudaProjection;
  readonly packed: boolean;
  /** What the kernels that read them are called in `selects`. */
  readonly operators: Readonly<Record<"first" | "second", string>>;
  /** Where a product's weights are, as its kernel is told. */
  readonly values: Readonly<Record<"first" | "second", KernelValues>>;
}

type Pair<T> = Readonly<Record<"first" | "second", T>>;

/** @throws InvalidArgumentError if the two do not fit each other, or the operator is not for them */
export function decodeWeights(operator: DecodeOperator, to: OperatorEncoder): DecodeWeights {
  const pair = {
    first: to.projection("first", operator.first),
    second: to.projection("second", operator.second),
  };
  checkPair(pair, to);
  const { first, second } = pair;
  const [packedFirst, packedSecond] = [packedOf(first), packedOf(second)];
  const packed = packedFirst && packedSecond && { first: packedFirst, second: packedSecond };
  if (!(first instanceof PackedProjection || second instanceof PackedProjection)) {
    return packed && paysPacked(operator, { first, second }, to)
      ? packedWeights(packed)
      : plainWeights({ first, second });
  }
  if (operator.inputScale !== undefined) {
    to.fail("inputScale is given, and the weights are packed", PLAIN_REMEDY);
  }
  if (packed) return packedWeights(packed);
  const names = packedFirst ? ["second", "first"] : ["first", "second"];
  return to.fail(`${names[0]} is not packed, and ${names[1]} is`, "Pack both, or neither.");
}

function plainWeights({ first, second }: Pair<PlainProjection>): DecodeWeights {
  return {
    first,
    second,
    packed: false,
    operators: { first: "decode_first", second: "decode_second" },
    values: { first: { w: first.address }, second: { w: second.address } },
  };
}

function packedWeights({ first, second }: Pair<PackedProjection>): DecodeWeights {
  const values = ({ address, tables }: PackedProjection) => ({ words: address, ...tables });
  return {
    first,
    second,
    packed: true,
    operators: { first: "decode_packed_first", second: "decode_packed_second" },
    values: { first: values(first), second: values(second) },
  };
}

/** Packed weights that are as the plain ones, if there are any. */
function packedOf(projection: PlainProjection | PackedProjection): PackedProjection | undefined {
  if (projection instanceof PackedProjection) return projection;
  return projection instanceof BesideProjection && projection.current
    ? projection.packed
    : undefined;
}

/** Where there are kernels for it, packed weights take less time unless the L2 holds the plain ones. */
function paysPacked(
  { activation, inputScale }: DecodeOperator,
  { first, second }: Pair<PlainProjection>,
  { context }: OperatorEncoder,
): boolean {
  if (inputScale !== undefined || inCache(context, first.weightBytes + second.weightBytes)) {
    return false;
  }
  const { kernels } = context;
  const { element, spec } = first;
  const [activations = ""] = activationSets(kernels.manifest, activation, spec.gated);
  const needs = { operator: "decode_packed_first", element, gated: spec.gated, activations };
  return kernels.all(needs).length > 0;
}

function checkPair({ first, second }: Pair<CudaProjection>, to: OperatorEncoder): void {
  if (second.spec.gated) to.fail("second is gated", "Only the first product can be.");
  for (const [name, { spec }] of [["first", first] as const, ["second", second] as const]) {
    if (spec.output === "float32") {
      to.fail(`${name} puts out float32`, 'Use projections whose output is "rows".');
    }
  }
  if (
    first.spec.count !== second.spec.count ||
    first.spec.outputs !== second.spec.inputs ||
    first.element !== second.element
  ) {
    to.fail(
      `first is ${described(first)} and second is ${described(second)}`,
      "The second must take what the first puts out, with as many matrices and the same rows.",
    );
  }
}

function described({ spec, element }: CudaProjection): string {
  return `${spec.count} matrices of ${spec.inputs} inputs and ${spec.outputs} outputs on ${element} rows`;
}
