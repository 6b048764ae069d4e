/** `decode`: both products of a handful of tokens' experts and their sum, in two kernels. */

import type { DecodeOperator } from "../../operators.ts";
import type { Selects } from "../bundle/kernel-set.ts";
import type { KernelValues } from "../launch/launch.ts";
import type { CudaProjection } from "../projection.ts";
import { activationValues } from "./activation.ts";
import { aggregationValues, outputTypeOf } from "./aggregation.ts";
import { activationSets, fillingKernel } from "./choice.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid, residentBlocks } from "./grids.ts";
import { MOST_CHOICES } from "./sets.ts";
import { NOTHING_TO_TIDY } from "./tidy.ts";

/**
 * Most tokens of a `decode` operator. Each slot reads its expert's weights for itself, which costs
 * nothing while hardly two tokens share an expert; with more the grouped products read less.
 */
export const DECODE_TOKENS = 4;

export function encodeDecode(operator: DecodeOperator, to: OperatorEncoder): void {
  const { kernels, facts } = to.context;
  const first = to.projection("first", operator.first);
  const second = to.projection("second", operator.second);
  checkPair(first, second, to);
  const { element } = first;
  const topK = to.integer("topK", operator.topK, 1, Math.min(first.spec.count, MOST_CHOICES));
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1, DECODE_TOKENS);
  const slots = mostTokens * topK;
  const width = second.spec.outputs;
  const outputType = outputTypeOf(operator, element, to);
  const activation = activationValues(operator.activation, first.spec.gated, to);
  const tokens = to.input("tokens", operator.tokens, 1).address;
  const input = to.input("input", operator.input, mostTokens * first.k, element);
  const ids = to.input("ids", operator.ids, slots).address;
  const scale = to.optional("inputScale", operator.inputScale, slots);
  const sizes = { mostTokens, slots, width, rowType: element };
  const aggregation = aggregationValues(operator, sizes, "decode_second", to);
  const inner = to.output("inner", operator.inner, slots * first.outputPitch, element);
  const output = to.output("output", operator.output, mostTokens * width, outputType);

  const extents = { slots, tokens: mostTokens, most_tokens: mostTokens };
  const { options } = kernels.manifest;
  const bitsOfFirst = options["decode_first"] ?? {};
  const { gated } = first.spec;
  const selects = { operator: "decode_first", element, gated, k: first.k };
  const sets = activationSets(kernels.manifest, operator.activation, gated);
  const of = (some: Selects) =>
    sets.flatMap((activations) => kernels.all({ ...selects, activations, ...some }));
  const experts = first.spec.count;
  const chosenBy = chosenByValues(operator, mostTokens, experts, to);
  const [picks] = operator.chosenBy ? of({ picks: true, experts }) : [];
  const [kernel = kernels.missing({ ...selects, activations: sets.join(" or ") })] =
    picks === undefined ? of({ picks: false }) : [picks];
  to.kernel(
    kernel,
    {
      ...activation,
      x: input.address,
      w: first.address,
      bias: first.bias(0),
      out: inner.address,
      ids,
      input_scale: scale,
      ...chosenBy,
      experts,
      picking: residentBlocks(kernel.entry, facts.multiprocessors),
      tokens,
      n: first.n,
      k: first.k,
      x_pitch: first.k,
      out_pitch: first.outputPitch,
      top_k: topK,
      options:
        (first.spec.bias ? (bitsOfFirst["bias"] ?? 0) : 0) |
        (scale !== null ? (bitsOfFirst["input_scale"] ?? 0) : 0),
    },
    coverGrid(kernel.entry, { ...extents, n: first.n }),
    picks && { early: true, behindRouting: true },
  );
  const needs = { operator: "decode_second", element, output: outputType, k: second.k };
  const sum =
    fillingKernel(kernels.all(needs), { ...extents, n: second.n }, facts.multiprocessors) ??
    kernels.missing(needs);
  const bias = second.spec.bias ? (options["decode_second"]?.["bias"] ?? 0) : 0;
  to.kernel(
    sum.kernel,
    {
      ...aggregation,
      ...NOTHING_TO_TIDY,
      x: inner.address,
      w: second.address,
      bias: second.bias(0),
      ids,
      out: output.address,
      tokens,
      width,
      n: second.n,
      k: second.k,
      x_pitch: second.k,
      top_k: topK,
      options: aggregation.options | bias,
    },
    sum.grid,
    // Measured on an H100: 1.1 us less of 35.7 for a token, and no step takes longer.
    { early: true, behindProducts: true, tidiesUp: true },
  );
  to.mirror(inner, output);
}

/** `logits` and `logits_kind`. */
function chosenByValues(
  { chosenBy }: DecodeOperator,
  mostTokens: number,
  experts: number,
  to: OperatorEncoder,
): KernelValues {
  if (chosenBy === undefined) return { logits: null, logits_kind: 0 };
  const element = to.rowType("chosenBy.logitsType", chosenBy.logitsType ?? "float32");
  const logits = to.input("chosenBy.logits", chosenBy.logits, mostTokens * experts, element);
  return {
    logits: logits.address,
    logits_kind: to.context.kernels.manifest.logits[element] as number,
  };
}

function checkPair(first: CudaProjection, second: CudaProjection, to: OperatorEncoder): void {
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
