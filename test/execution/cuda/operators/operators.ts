/** Operators that are in order, with buffers just large enough, for tests to change one thing of. */

import type { ProjectionSpec } from "../../../../src/execution/device.ts";
import type {
  Activation,
  BucketOperator,
  BucketRows,
  CombineOperator,
  DecodeOperator,
  ProjectOperator,
  RouteOperator,
} from "../../../../src/execution/operators.ts";
import type { DType } from "../../../../src/tensor.ts";
import { type FakeBuffer, FakeDevice } from "./harness.ts";

export interface Sizes {
  readonly experts: number;
  readonly topK: number;
  readonly mostTokens: number;
}

export const SIZES: Sizes = { experts: 40, topK: 3, mostTokens: 100 };

/** Buffers that the operators of a step share. */
export function stepBuffers(device: FakeDevice, { experts, topK, mostTokens }: Sizes = SIZES) {
  const slots = mostTokens * topK;
  return {
    tokens: device.buffer(4, "tokens"),
    logits: device.buffer(mostTokens * experts * 4, "logits"),
    ids: device.buffer(slots * 4, "ids"),
    weights: device.buffer(slots * 4, "weights"),
    counts: device.buffer(experts * 4, "counts", true),
    buckets: {
      offsets: device.buffer((experts + 1) * 4, "offsets"),
      order: device.buffer(slots * 4, "order"),
      inverse: device.buffer(slots * 4, "inverse"),
      laneOf: device.buffer(experts * 4, "laneOf"),
    },
  };
}

export type StepBuffers = ReturnType<typeof stepBuffers>;

export function routeOf(
  buffers: Pick<RouteOperator, "tokens" | "logits" | "ids" | "weights" | "counts">,
  changes: Partial<RouteOperator> = {},
  sizes = SIZES,
): RouteOperator {
  const { tokens, logits, ids, weights, counts } = buffers;
  return {
    kind: "route",
    rule: { scoring: "softmax", renormalize: true, scale: 1 },
    ...sizes,
    tokens,
    logits,
    ids,
    weights,
    counts,
    bucketed: true,
    ...changes,
  };
}

export function bucketOf(
  buffers: Pick<BucketOperator, "tokens" | "ids" | "buckets">,
  changes: Partial<BucketOperator> = {},
  sizes = SIZES,
): BucketOperator {
  const { tokens, ids, buckets } = buffers;
  return {
    kind: "bucket",
    ...sizes,
    lanes: 2,
    rowType: "bfloat16",
    tokens,
    ids,
    buckets,
    routed: true,
    ...changes,
  };
}

export const bytesOf = (dtype: DType) => (dtype === "float32" || dtype === "int32" ? 4 : 2);
export const padded = (width: number) => Math.ceil(width / 64) * 64;

export function projectAll(
  device: FakeDevice,
  changes: Partial<ProjectOperator> = {},
  mostTokens = 100,
): ProjectOperator {
  const projection = changes.projection ?? device.projection({ count: 1 });
  const { inputs, outputs, input, output } = projection.spec;
  const float32 = output === "float32";
  return {
    kind: "project",
    projection,
    activation: { kind: "none" },
    input: device.buffer(mostTokens * padded(inputs) * bytesOf(input), "input"),
    output: device.buffer(
      mostTokens * (float32 ? outputs * 4 : padded(outputs) * bytesOf(input)),
      "output",
    ),
    rows: { from: "all", tokens: device.buffer(4, "tokens"), mostTokens, matrix: 0 },
    ...changes,
  };
}

/** How a product's options have programs come by pieces, and whether in half the time. */
export function walkOf(options: unknown): string[] {
  const bits = { half: 16, "in step": 32, claimed: 64 };
  return Object.entries(bits).flatMap(([name, bit]) => (Number(options) & bit ? [name] : []));
}

/** A lane's product after its route and bucket operators. */
export async function lane(
  sizes: Sizes,
  spec: Partial<ProjectionSpec> = {},
  changes: Partial<BucketRows> = {},
  activation: Activation = { kind: "none" },
  weightBytes?: number,
  facts: Parameters<typeof FakeDevice.open>[0] = {},
  packedBeside = false,
) {
  const device = await FakeDevice.open(facts);
  const made = stepBuffers(device, sizes);
  const kept = { ...(weightBytes && { weightBytes }), packedBeside };
  const buffers = { ...made, buckets: { ...made.buckets, ...kept } };
  const rowType = spec.input ?? "bfloat16";
  device.encode(routeOf(buffers, {}, sizes));
  device.encode(bucketOf(buffers, { rowType }, sizes));
  const full = { count: sizes.experts, ...spec };
  const projection = spec.packed ? device.packed(full) : device.projection(full);
  const slots = sizes.mostTokens * sizes.topK;
  const { topK, mostTokens } = sizes;
  const rows: BucketRows = {
    from: "bucket",
    buckets: buffers.buckets,
    lane: 1,
    lanes: 2,
    topK,
    mostTokens,
    gather: true,
    ...changes,
  };
  const bytes = bytesOf(rowType);
  const inputRows = rows.gather ? mostTokens : slots;
  const operator = {
    kind: "project" as const,
    projection,
    activation,
    input: device.buffer(inputRows * projection.k * bytes, "input"),
    output: device.buffer(slots * projection.outputPitch * bytes, "output"),
    rows,
  };
  const lists = device.scratches.find(({ label }) => label.startsWith("work lists")) as FakeBuffer;
  return { device, operator, buffers, projection, lists };
}

export function combineOf(
  device: FakeDevice,
  changes: Partial<CombineOperator> = {},
): CombineOperator {
  const { mode = "sum", topK = 3, width = 100, mostTokens = 10 } = changes;
  const { rowType = "bfloat16", outputType = "float32" } = changes;
  const slots = mostTokens * topK;
  return {
    kind: "combine",
    mode,
    topK,
    width,
    mostTokens,
    rowType,
    outputType,
    tokens: device.buffer(4, "tokens"),
    rows: device.buffer(slots * padded(width) * bytesOf(rowType), "rows"),
    inverse: device.buffer(slots * 4, "inverse"),
    output: device.buffer(
      mostTokens * (mode === "concat" ? topK : 1) * width * bytesOf(outputType),
      "output",
    ),
    ...changes,
  };
}

export function decodeOf(
  device: FakeDevice,
  changes: Partial<DecodeOperator> = {},
): DecodeOperator {
  const first =
    changes.first ?? device.projection({ count: 8, inputs: 100, outputs: 72, gated: true });
  const second = changes.second ?? device.projection({ count: 8, inputs: 72, outputs: 100 });
  const { topK = 3, mostTokens = 4, outputType = "float32" } = changes;
  const { input } = first.spec;
  const slots = topK * mostTokens;
  return {
    kind: "decode",
    first,
    second,
    topK,
    mostTokens,
    outputType,
    activation: { kind: "silu" },
    tokens: device.buffer(4, "tokens"),
    input: device.buffer(mostTokens * padded(first.spec.inputs) * bytesOf(input), "input"),
    ids: device.buffer(slots * 4, "ids"),
    inner: device.buffer(slots * padded(first.spec.outputs) * bytesOf(input), "inner"),
    output: device.buffer(mostTokens * second.spec.outputs * bytesOf(outputType), "output"),
    ...changes,
  };
}

/** What a kernel is told that could tidy up, until it is to. */
export const NOTHING_TO_TIDY = {
  tidy_counts: 0n,
  tidy_out: 0n,
  tidy_counts_host: 0n,
  tidy_fault: 0n,
  tidy_fault_host: 0n,
  tidy_experts: 0,
  tidy_options: 0,
};
