/** `combine`: expert rows back to tokens, summed in the order of the choices, or side by side. */

import { BYTES_PER_ELEMENT } from "../../../tensor.ts";
import type { CombineOperator } from "../../operators.ts";
import type { KernelValues } from "../launch/launch.ts";
import { padded } from "../rows.ts";
import { type AggregationSizes, aggregationValues, outputTypeOf } from "./aggregation.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { persistentGrid } from "./grids.ts";
import { passThrough } from "./lasting.ts";
import { NOTHING_TO_TIDY } from "./tidy.ts";

const MODES = ["sum", "concat"] as const;

export function encodeCombine(operator: CombineOperator, to: OperatorEncoder): void {
  const { kernels } = to.context;
  const mode = to.oneOf("mode", operator.mode, MODES);
  const topK = to.integer("topK", operator.topK, 1);
  const width = to.integer("width", operator.width, 1);
  const mostTokens = to.integer("mostTokens", operator.mostTokens, 1);
  const slots = to.slots("mostTokens", mostTokens, topK);
  const rowType = to.rowType("rowType", operator.rowType);
  const outputType = outputTypeOf(operator, rowType, to);
  for (const name of ["shared", "residual"] as const) {
    if (mode === "concat" && operator[name] !== undefined) {
      to.fail(`${name} is set with concat`, "Only sum adds it.");
    }
  }
  const tokens = to.input("tokens", operator.tokens, 1);
  const inverse = to.input("inverse", operator.inverse, slots);
  const pitch = padded(width);
  const rows = to.input("rows", operator.rows, slots * pitch, rowType);
  const sizes = { mostTokens, slots, width, rowType };
  const aggregation = aggregationValues(operator, sizes, "combine", to);
  const spent = spentValues(operator, sizes, to);
  const pieces = mode === "concat" ? slots : mostTokens;
  const output = to.output("output", operator.output, pieces * width, outputType);

  const selects = { operator: "combine", mode, element: rowType, output: outputType };
  // Of the kernels that can take this width, the one compiled for multiples of most.
  const [kernel = kernels.missing(selects)] = kernels
    .all(selects)
    .map((found) => {
      const argument = found.entry.args.find(({ name }) => name === "width");
      return { found, multiple: argument?.divisible_by ?? 1 };
    })
    .filter(({ multiple }) => width % multiple === 0)
    .sort((a, b) => b.multiple - a.multiple)
    .map(({ found }) => found);
  to.kernel(
    kernel,
    {
      ...aggregation,
      ...NOTHING_TO_TIDY,
      ...spent,
      options: aggregation.options | spent.options,
      rows: rows.address,
      inverse: inverse.address,
      out: output.address,
      tokens: tokens.address,
      width,
      top_k: topK,
    },
    persistentGrid(kernel.entry, pieces, width),
    // Measured on an H100: 1.6 us less of a step of 20, and no step takes longer.
    { early: true, behindProducts: mode === "sum", tidiesUp: mode === "sum" },
  );
  to.mirror(output);
}

/** `inner` and `inner_pitch`, and the bits of `options` that say which rows are dropped (of a sum: a concatenation drops none). */
function spentValues(
  { spent }: CombineOperator,
  { slots, width, rowType }: AggregationSizes,
  to: OperatorEncoder,
): KernelValues & { readonly options: number } {
  if (spent === undefined) return { inner: null, inner_pitch: 0, options: 0 };
  const { weightBytes } = spent;
  const innerWidth = to.integer("spent.innerWidth", spent.innerWidth, 1);
  const innerPitch = padded(innerWidth);
  const inner = to.optional("spent.inner", spent.inner, slots * innerPitch, rowType);
  const bits = to.context.kernels.manifest.options["combine"] ?? {};
  const share = slots / to.integer("spent.experts", spent.experts, 1);
  const bit = (name: string, pitch: number) => {
    const bytes = slots * pitch * BYTES_PER_ELEMENT[rowType];
    return passThrough(to.context, { bytes, share, weightBytes }) ? (bits[name] ?? 0) : 0;
  };
  return {
    inner,
    inner_pitch: innerPitch,
    options:
      bit("rows_spent", padded(width)) | (inner === null ? 0 : bit("inner_spent", innerPitch)),
  };
}
