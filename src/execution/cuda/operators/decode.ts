/** `decode`: a handful of tokens' routing, both products of their experts and the sum, in two kernels, or three if none routes along. */

import type { DecodeOperator, RouteOperator } from "../../operators.ts";
import { byLogits } from "../../routing-rule.ts";
import type { Kernel, Selects } from "../bundle/kernel-set.ts";
import { activationValues } from "./activation.ts";
import { aggregationValues, outputTypeOf } from "./aggregation.ts";
import { activationSets, fillingKernel } from "./choice.ts";
import { jointly } from "./decode-joint.ts";
import { decodeWeights } from "./decode-weights.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid } from "./grids.ts";
import { inCache } from "./lasting.ts";
import { encodeRoute, type RoutedAlong, routedAlong } from "./route.ts";
import { MOST_CHOICES } from "./sets.ts";
import { NOTHING_TO_TIDY } from "./tidy.ts";

/**
 * Most tokens of a `decode` operator. Of plain weights each slot reads its expert's for itself, which costs
 * nothing while hardly two tokens share an expert; with more the grouped products read less. Of packed ones tokens that share
 * an expert can read it once (decode-joint.ts), and there are columns for as many.
 */
export const DECODE_TOKENS = 4;

export function encodeDecode(operator: DecodeOperator, to: OperatorEncoder): void {
  const { kernels, facts } = to.context;
  const { first, second, packed, operators, values } = decodeWeights(operator, to);
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
  const bitsOfSecond = options["decode_second"] ?? {};
  const cached = inCache(to.context, first.weightBytes + second.weightBytes);
  const { gated } = first.spec;
  const experts = first.spec.count;
  const { multiprocessors } = facts;
  const joint = packed
    ? jointly({ mostTokens, topK, experts, n: second.n, multiprocessors })
    : undefined;
  const selects = {
    operator: operators.first,
    element,
    gated,
    ...(joint && { joint: joint.first }),
  };
  const sets = activationSets(kernels.manifest, operator.activation, gated);
  const of = (some: Selects) =>
    sets.flatMap((activations) => kernels.all({ ...selects, activations, ...some }));
  const routing = routedBy(operator, experts, of({ routes: true, experts }), to);
  const [kernel = kernels.missing({ ...selects, activations: sets.join(" or ") })] = routing
    ? [routing.kernel]
    : of({ routes: false });
  to.kernel(
    kernel,
    {
      ...activation,
      ...(routing?.values ?? { ids, input_scale: scale }),
      ...values.first,
      x: input.address,
      bias: first.bias(0),
      out: inner.address,
      tokens,
      n: first.n,
      k: first.k,
      x_pitch: first.k,
      out_pitch: first.outputPitch,
      top_k: topK,
      options:
        (first.spec.bias ? (bitsOfFirst["bias"] ?? 0) : 0) |
        (scale !== null ? (bitsOfFirst["input_scale"] ?? 0) : 0) |
        (cached ? 0 : (bitsOfFirst["read_once"] ?? 0)),
    },
    coverGrid(kernel.entry, { ...extents, n: first.n }),
    routing && { mirrors: routing.mirrors, tidies: true },
  );
  const needs = {
    operator: operators.second,
    element,
    output: outputType,
    k: second.k,
    ...(joint && { joint: joint.second }),
  };
  const sum =
    fillingKernel(kernels.all(needs), { ...extents, n: second.n }, multiprocessors) ??
    kernels.missing(needs);
  // A single token's experts are distinct.
  const once = !cached && (mostTokens === 1 || joint?.second === true);
  to.kernel(
    sum.kernel,
    {
      ...aggregation,
      ...NOTHING_TO_TIDY,
      ...values.second,
      x: inner.address,
      bias: second.bias(0),
      ids,
      out: output.address,
      tokens,
      width,
      n: second.n,
      k: second.k,
      x_pitch: second.k,
      top_k: topK,
      options:
        aggregation.options |
        (second.spec.bias ? (bitsOfSecond["bias"] ?? 0) : 0) |
        (once ? (bitsOfSecond["read_once"] ?? 0) : 0),
    },
    sum.grid,
    // Measured on an H100: 1.1 us less of 35.7 for a token, and no step takes longer.
    { early: true, tidiesUp: true, tidiesOwn: true },
  );
  to.mirror(inner, output);
}

/**
 * Does the operator's routing, if it has any, along with the first product where one of these kernels can, or else by a kernel in
 * front of it.
 *
 * @returns in the first case that kernel and what it wants to know of it
 */
function routedBy(
  operator: DecodeOperator,
  experts: number,
  [kernel]: readonly Kernel[],
  to: OperatorEncoder,
): (RoutedAlong & { readonly kernel: Kernel }) | undefined {
  const { routing } = operator;
  if (routing === undefined) return undefined;
  checkRouting(operator, routing, experts, to);
  const { rule, selectionBias } = routing;
  // Before its end a kernel that routes has no weights to scale by.
  const could = byLogits(rule, selectionBias !== undefined) && operator.inputScale === undefined;
  if (kernel === undefined || !could) {
    to.along("routing", (part) => encodeRoute(routing, part));
    return undefined;
  }
  const along = to.along("routing", (part) => routedAlong(routing, part));
  // While the product runs one is read and the others are written.
  to.input("routing.logits", routing.logits, 0);
  to.output("routing.counts", routing.counts, 0);
  checkApart(operator, routing, to);
  return { kernel, ...along };
}

function checkRouting(
  { ids, tokens, mostTokens, topK }: DecodeOperator,
  routing: RouteOperator,
  experts: number,
  to: OperatorEncoder,
): void {
  const same =
    routing.ids === ids &&
    routing.tokens === tokens &&
    routing.mostTokens === mostTokens &&
    routing.topK === topK &&
    routing.experts === experts;
  if (same && !routing.bucketed) return;
  to.fail(
    "routing is for another operator",
    "Give it the same ids, tokens, mostTokens and topK, as many experts, and no buckets.",
  );
}

/** Routing along writes ids and weights while the product reads its input and writes what the second takes. */
function checkApart(
  { input, inner }: DecodeOperator,
  routing: RouteOperator,
  to: OperatorEncoder,
): void {
  for (const name of ["ids", "weights"] as const) {
    const buffer = routing[name];
    if (buffer !== input && buffer !== inner) continue;
    to.fail(
      `routing.${name} is also ${buffer === input ? "input" : "inner"}`,
      "Give every argument a buffer of its own.",
    );
  }
}
