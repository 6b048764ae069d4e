/**
 * `project`: one product of every expert on a lane's work lists, or of all rows with
 * one matrix. Gates, whose output is float32, have kernels of their own, and so have packed weights (packed.ts). Of weights that are
 * there both ways, those are read that take less time, list by list.
 */

import type { AllRows, BucketRows, ProjectOperator } from "../../operators.ts";
import { BesideProjection } from "../beside-projection.ts";
import type { Kernel } from "../bundle/kernel-set.ts";
import type { KernelValues } from "../launch/launch.ts";
import { PackedProjection } from "../packed-projection.ts";
import type { PlainProjection } from "../plain-projection.ts";
import { activationValues } from "./activation.ts";
import { denseKernel, projectKernel } from "./choice.ts";
import type { OperatorEncoder } from "./encoder.ts";
import { coverGrid, persistentGrid } from "./grids.ts";
import { LATE_ROWS, type LaneList, laneOf, projectBits } from "./lane.ts";
import { encodePacked, encodePackedList, paysPacked } from "./packed.ts";
import { mapOf, mappedRows, type RowBuffers, rowBuffers, rowValues } from "./product.ts";

/**
 * Row tiles of a dense product that go through the columns of the matrix together, so that its weights are found in
 * the L2. Those of experts do so in the groups of their list.
 */
const TILE_GROUP = 8;

const ROWS_FROM = ["all", "bucket"] as const;

export function encodeProject(operator: ProjectOperator, to: OperatorEncoder): void {
  const projection = to.projection("projection", operator.projection);
  const { rows } = operator;
  to.oneOf("rows.from", rows.from, ROWS_FROM);
  if (projection instanceof PackedProjection) encodePacked(operator, projection, to);
  else if (projection.spec.output === "float32") encodeGate(operator, projection, to);
  else if (rows.from === "all") encodeDense(operator, rows, projection, to);
  else encodeLane(operator, rows, projection, to);
}

function encodeDense(
  operator: ProjectOperator,
  rows: AllRows,
  projection: PlainProjection,
  to: OperatorEncoder,
): void {
  const { spec, element } = projection;
  const activation = activationValues(operator.activation, spec.gated, to);
  const mostTokens = to.integer("rows.mostTokens", rows.mostTokens, 1);
  const matrix = to.integer("rows.matrix", rows.matrix, 0, spec.count - 1);
  const tokens = to.input("rows.tokens", rows.tokens, 1);
  const buffers = rowBuffers(operator, projection, mostTokens, mostTokens, to);
  const needs = {
    element,
    gated: spec.gated,
    activation: operator.activation,
    bias: spec.bias,
    inputScale: false,
    k: projection.k,
  };
  const { kernel, rows: tile } = denseKernel(to.context, needs, mostTokens);
  to.kernel(
    kernel,
    {
      ...commonValues(kernel, projection, buffers, to),
      ...activation,
      tiles: null,
      tile_count: tokens.address,
      order: null,
      input_scale: null,
      top_k: 1,
      dense_matrix: matrix,
      options: projectBits(to, { dense: true, bias: spec.bias }),
    },
    persistentGrid(
      kernel.entry,
      Math.ceil(mostTokens / tile),
      projection.n,
      to.context.facts.multiprocessors,
    ),
    { budgeted: true, weights: projection.weights, ...mappedRows(kernel, buffers) },
  );
  to.mirror(buffers.output);
}

function encodeLane(
  operator: ProjectOperator,
  rows: BucketRows,
  projection: PlainProjection,
  to: OperatorEncoder,
): void {
  const both = projection instanceof BesideProjection && projection.current ? projection : null;
  const { output, lists, bitsOf } = laneOf(operator, rows, projection, to);
  for (const list of lists) {
    if (both !== null && paysPacked(operator, rows, both, list, to)) {
      encodePackedList(operator, both.packed, list, bitsOf, to);
    } else encodeList(operator, rows, projection, list, to);
  }
  to.mirror(output);
}

function encodeList(
  operator: ProjectOperator,
  rows: BucketRows,
  projection: PlainProjection,
  { buffers, height, most, inputScale, values, options, work, ...list }: LaneList,
  to: OperatorEncoder,
): void {
  const { spec, element, k } = projection;
  const { context } = to;
  const walk = list.walk(projection.weightBytes);
  const activation = activationValues(operator.activation, spec.gated, to);
  const kernel = projectKernel(context, {
    element,
    gated: spec.gated,
    activation: operator.activation,
    bias: spec.bias,
    inputScale: inputScale !== null,
    gather: rows.gather,
    inStep: walk.inStep,
    k,
    rows: height,
  });
  to.kernel(
    kernel,
    {
      ...commonValues(kernel, projection, buffers, to),
      ...activation,
      ...values,
      input_scale: inputScale,
      dense_matrix: 0,
      options:
        options |
        projectBits(to, {
          in_step: walk.inStep,
          claim: walk.claim,
          half_time: walk.halfTime,
          input_scale: inputScale !== null,
        }),
    },
    persistentGrid(kernel.entry, most, projection.n, context.facts.multiprocessors),
    { ...work, ...mappedRows(kernel, buffers), ...(height <= LATE_ROWS && { early: true }) },
  );
}

function commonValues(
  kernel: Kernel,
  projection: PlainProjection,
  buffers: RowBuffers,
  to: OperatorEncoder,
): KernelValues {
  const w = mapOf(kernel.entry, "w");
  return {
    ...rowValues(kernel, projection, buffers, to),
    w: w === undefined ? projection.address : projection.tensorMap(w),
    group: TILE_GROUP,
  };
}

function encodeGate(
  operator: ProjectOperator,
  projection: PlainProjection,
  to: OperatorEncoder,
): void {
  const { spec, element } = projection;
  const { rows, activation } = operator;
  if (rows.from !== "all") {
    to.fail('rows.from is "bucket"', 'A projection to float32 takes rows from "all".');
  }
  const kind = to.oneOf("activation.kind", activation.kind, ["none", "sigmoid"]);
  const mostTokens = to.integer("rows.mostTokens", rows.mostTokens, 1);
  to.integer("rows.matrix", rows.matrix, 0, 0);
  const tokens = to.input("rows.tokens", rows.tokens, 1);
  const { input, output } = rowBuffers(operator, projection, mostTokens, mostTokens, to);
  const { kernels } = to.context;
  const kernel = kernels.find({
    operator: "gate",
    element: spec.input,
    weights: element,
    outputs: mostTokens * spec.outputs,
  });
  const { bias = 0, sigmoid = 0 } = kernels.manifest.options["gate"] ?? {};
  to.kernel(
    kernel,
    {
      x: input.address,
      w: projection.address,
      bias: projection.bias(0),
      out: output.address,
      tokens: tokens.address,
      n: spec.outputs,
      k: projection.k,
      x_pitch: projection.k,
      options: (spec.bias ? bias : 0) | (kind === "sigmoid" ? sigmoid : 0),
    },
    coverGrid(kernel.entry, { n: spec.outputs, most_tokens: mostTokens }),
  );
  to.mirror(output);
}
