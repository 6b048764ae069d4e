/** `combine`: expert rows back to tokens, summed in the order of the choices, or side by side. */

import type { CombineOperator } from "../../operators.ts";
import { padded } from "../rows.ts";
import { aggregationValues, outputTypeOf } from "./aggregation.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { persistentGrid } from "./grids.ts";
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
