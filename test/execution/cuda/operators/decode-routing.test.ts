/** `decode` with the routing in front of it: along with the first product, or by a kernel of its own. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { KernelWork } from "../../../../src/execution/cuda/work.ts";
import type { DeviceBuffer, ProjectionSpec } from "../../../../src/execution/device.ts";
import type { DecodeOperator, RouteOperator } from "../../../../src/execution/operators.ts";
import { addressOf, type FakeBuffer, FakeDevice } from "./harness.ts";
import { decodeOf, routeOf, stepBuffers } from "./operators.ts";

/** Routing and what follows it, as one operator. */
function routedDecodeOf(
  device: FakeDevice,
  changes: Partial<DecodeOperator> = {},
  routing: Partial<RouteOperator> = {},
  experts = 8,
): DecodeOperator {
  const sizes = { experts, topK: 3, mostTokens: 4 };
  const buffers = stepBuffers(device, sizes);
  const { tokens, ids, weights } = buffers;
  return decodeOf(device, {
    tokens,
    ids,
    weights,
    first: device.projection({ count: experts, inputs: 100, outputs: 72, gated: true }),
    second: device.projection({ count: experts, inputs: 72, outputs: 100 }),
    routing: routeOf(buffers, { bucketed: false, ...routing }, sizes),
    ...changes,
  });
}

/** Where the launch of `route` is written down, which is given back at once. */
function placeOfFirst(device: FakeDevice, selectionBias: DeviceBuffer): bigint {
  using encoded = device.encode(routedDecodeOf(device, {}, { selectionBias }));
  return (encoded.work[0] as KernelWork).launch.config;
}

describe("decode that routes", () => {
  for (const [experts, logitsType, most, kind] of [
    [8, undefined, 32, 0],
    [32, "float32", 32, 0],
    [33, "bfloat16", 64, 1],
    [100, "float16", 128, 2],
    [256, "float32", 256, 0],
  ] as const) {
    it(`routes ${experts} experts along by ${logitsType ?? "untyped"} logits`, async () => {
      const device = await FakeDevice.open();
      const operator = routedDecodeOf(device, {}, { ...(logitsType && { logitsType }) }, experts);
      const { work, beside, afterBeside } = device.encode(operator);
      const [first, second, ...rest] = device.kernels(work);
      assert.equal(first?.name, `decode_routing${most}_gated_logistic_bf16_16x256`);
      assert.deepEqual(first?.grid, { x: 12, y: 17, z: 1 });
      const { routing } = operator as { routing: RouteOperator };
      const { values } = first as NonNullable<typeof first>;
      const { options, scorings } = device.context.kernels.manifest;
      const wanted = {
        logits: addressOf(routing.logits),
        logits_kind: kind,
        ids: addressOf(routing.ids),
        weights: addressOf(routing.weights),
        counts: addressOf(routing.counts),
        counts_host: (routing.counts as FakeBuffer).mirror?.address,
        fault: device.context.fault.device,
        fault_host: device.context.fault.host,
        scoring: scorings["softmax"],
        route_options: options["route"]?.["renormalize"],
        scale: 1,
        experts,
        most_tokens: 4,
        tokens: addressOf(routing.tokens),
      };
      const found = Object.keys(wanted).map((name) => [name, values[name]]);
      assert.deepEqual(Object.fromEntries(found), wanted);
      assert.deepEqual(first?.work.mirrors, [(routing.counts as FakeBuffer).mirror?.address]);
      assert.match(second?.name ?? "", /^decode_second_/);
      assert.deepEqual([rest, beside, afterBeside], [[], [], true]);
    });
  }

  it("routes by a kernel in front where none does it along", async () => {
    const namesOf = async (
      spec: Partial<ProjectionSpec>,
      changes: Partial<DecodeOperator> = {},
      routing: Partial<RouteOperator> = {},
      capability: [number, number] = [9, 0],
    ) => {
      const device = await FakeDevice.open({ capability });
      const { count = 8, input = "bfloat16" } = spec;
      const rows = { count, dtype: input, input } as const;
      const first = device.projection({ ...rows, inputs: 100, outputs: 72, gated: true, ...spec });
      const second = device.projection({ ...rows, inputs: 72, outputs: 100 });
      const scale = changes.inputScale && { inputScale: device.buffer(12 * 4) };
      const bias = routing.selectionBias && { selectionBias: device.buffer(count * 4) };
      const operator = routedDecodeOf(
        device,
        { first, second, ...changes, ...scale },
        { ...routing, ...bias },
        count,
      );
      return device.kernels(device.encode(operator).work).map(({ name }) => name);
    };
    const plain = ["route_plain_fp32_experts32", "decode_first_gated_logistic_bf16_16x256"];
    const firstTwo = async (...of: Parameters<typeof namesOf>) =>
      (await namesOf(...of)).slice(0, 2);
    const some = {} as DeviceBuffer;
    assert.deepEqual(await firstTwo({ count: 257 }), ["route_plain_fp32_experts512", plain[1]]);
    assert.deepEqual(await firstTwo({}, {}, {}, [8, 0]), plain);
    assert.deepEqual(await firstTwo({}, { inputScale: some }), plain);
    const grouped = { scoring: "softmax", renormalize: true, scale: 1 } as const;
    const groupLimit = { groups: 4, keep: 2, score: "max" } as const;
    for (const routing of [
      { selectionBias: some },
      { rule: { ...grouped, groupLimit } },
      { rule: { ...grouped, scoring: "sparsemixer", renormalize: false, jitter: 0.1 } },
    ] as const) {
      assert.deepEqual(await firstTwo({}, {}, routing), ["route_fp32_experts32", plain[1]]);
    }
    assert.match(
      (await namesOf({}, { activation: { kind: "relu" } }))[1] ?? "",
      /^decode_first_gated_coded_/,
    );
    assert.match((await namesOf({ gated: false }))[1] ?? "", /^decode_first_plain_/);
    assert.match((await namesOf({ input: "float32" }))[1] ?? "", /^decode_first_\w+_fp32_/);
  });

  it("refuses routing that is not its own, or has faults of its own", async () => {
    const device = await FakeDevice.open();
    const other = stepBuffers(device, { experts: 8, topK: 3, mostTokens: 4 });
    const refused = (routing: Partial<RouteOperator>, message: RegExp) =>
      assert.throws(() => device.encode(routedDecodeOf(device, {}, routing)), message);
    for (const routing of [
      { ids: other.ids },
      { tokens: other.tokens },
      { mostTokens: 3 },
      { topK: 2 },
      { experts: 9 },
      { bucketed: true },
    ]) {
      refused(routing, /^InvalidArgumentError: decode: routing is for another operator/);
    }
    refused(
      { logits: device.buffer(4 * 8 * 4 - 1, "few") },
      /decode: routing: logits \("few"\) has 127 bytes/,
    );
    const both = device.buffer(4096, "both");
    for (const name of ["logits", "counts"]) {
      assert.throws(
        () => device.encode(routedDecodeOf(device, { inner: both }, { [name]: both })),
        /decode: \S+ \("both"\) is also another argument/,
      );
    }
    for (const [name, argument] of [
      ["input", "ids"],
      ["input", "weights"],
      ["inner", "weights"],
    ] as const) {
      const shared = { [argument]: both };
      const more = argument === "ids" ? { ids: both } : {};
      assert.throws(
        () => device.encode(routedDecodeOf(device, { [name]: both, ...more }, shared)),
        new RegExp(`decode: routing\\.${argument} is also ${name}\\.`),
      );
    }
  });

  it("gives everything back if routing by a kernel in front is refused", async () => {
    const device = await FakeDevice.open();
    const both = device.buffer(4096, "both");
    const selectionBias = device.buffer(8 * 4);
    const place = placeOfFirst(device, selectionBias);
    assert.throws(
      () =>
        device.encode(routedDecodeOf(device, {}, { selectionBias, logits: both, counts: both })),
      /decode: routing: counts \("both"\) is also another argument/,
    );
    assert.equal(placeOfFirst(device, selectionBias), place, "its launch is used again");
  });
});
