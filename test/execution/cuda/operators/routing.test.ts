/** `route` and `bucket` as work: kernels, values, what happens beside, and the memory they share. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { NO_FAULT } from "../../../../src/execution/cuda/operators/route.ts";
import type { EncodedOperator } from "../../../../src/execution/cuda/work.ts";
import type { RoutingRule } from "../../../../src/execution/operators.ts";
import { type FakeBuffer, FakeDevice } from "./harness.ts";
import { bucketOf, NOTHING_TO_TIDY, routeOf, SIZES, stepBuffers } from "./operators.ts";

function mirrorOf(buffer: FakeBuffer) {
  return {
    kind: "mirror",
    target: buffer.mirror?.address,
    source: buffer.address,
    bytes: buffer.byteLength,
  };
}

/** The only work beside an operator's own, which must be the tidying up. */
function tidyOf(
  device: FakeDevice,
  { beside }: EncodedOperator,
): { [name: string]: unknown; mirrors: readonly bigint[] | undefined } {
  const [tidy, ...others] = device.kernels(beside);
  assert.deepEqual([tidy?.name, others.length, beside.length], ["tidy", 0, 1]);
  const { tidying = {}, mirrors } = tidy?.work ?? {};
  // What another kernel would be told.
  for (const [name, value] of Object.entries(tidying)) {
    assert.equal(value ?? 0n, tidy?.values[name.replace(/^tidy_/, "")], name);
  }
  assert.equal(Object.keys(tidying).length, 7);
  return { ...tidy?.values, grid: tidy?.grid.x, mirrors };
}

const SCRATCH = { global_scratch: 0n, profile_scratch: 0n };

describe("route", () => {
  it("fills sets for the bucket operator, and leaves counts and the fault word to it", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    const encoded = device.encode(routeOf(buffers));
    const [kernel] = device.kernels(encoded.work);
    const [sets] = device.scratches;
    // 100 tokens: 4 words of 32 for each of 64 experts, 40 padded.
    assert.equal(sets?.byteLength, 4 * 64 * 4);
    assert.equal(kernel?.name, "route_plain_fp32_experts64");
    assert.deepEqual(kernel?.values, {
      logits: buffers.logits.address,
      bias: 0n,
      tokens: buffers.tokens.address,
      ids: buffers.ids.address,
      weights: buffers.weights.address,
      sets: sets?.address,
      counts: 0n,
      fault: 0xfa00n,
      experts: 40,
      top_k: 3,
      most_tokens: 100,
      scoring: 0,
      options: 2 | 8,
      groups: 0,
      keep: 0,
      scale: 1,
      jitter: 0,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.deepEqual(kernel?.grid, { x: 13, y: 1, z: 1 });
    assert.deepEqual([kernel?.work.persistent, kernel?.work.budgeted], [false, false]);
    assert.deepEqual(encoded.beside, []);
    assert.equal(encoded.afterBeside, true);
    assert.ok(buffers.ids.attached.includes(sets as FakeBuffer));
  });

  it("counts for itself where no bucket operator follows", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    const encoded = device.encode(routeOf(buffers, { bucketed: false }));
    const [kernel] = device.kernels(encoded.work);
    const [own] = device.scratches as [FakeBuffer];
    assert.deepEqual(
      [kernel?.values["options"], kernel?.values["sets"], kernel?.values["counts"]],
      [2 | 16, 0n, own.address],
    );
    const host = buffers.counts.mirror?.address as bigint;
    assert.deepEqual(tidyOf(device, encoded), {
      counts: own.address,
      out: buffers.counts.address,
      counts_host: host,
      fault: 0xfa00n,
      fault_host: 0xfb00n,
      experts: 40,
      options: 1 | 2 | 4 | 8,
      grid: 1,
      mirrors: [host],
      ...SCRATCH,
    });
    device.encode(routeOf(buffers, { bucketed: false }));
    assert.equal(device.scratches.length, 1, "the counts are used again");
  });

  it("takes the kernel that has the rule, for the experts there are", async () => {
    const device = await FakeDevice.open();
    const soft: RoutingRule = { scoring: "softmax", renormalize: false, scale: 2.5 };
    const groupLimit = { groups: 8, keep: 4, score: "top2-sum" } as const;
    const name = (rule: RoutingRule, experts = 40, biased = false) => {
      const sizes = { ...SIZES, experts };
      const buffers = stepBuffers(device, sizes);
      const selectionBias = device.buffer(experts * 4);
      const operator = routeOf(buffers, { rule, ...(biased && { selectionBias }) }, sizes);
      return device.kernel(operator);
    };
    assert.equal(name(soft).name, "route_plain_fp32_experts64");
    assert.equal(name(soft, 3).name, "route_plain_fp32_experts32");
    assert.equal(name(soft, 32).name, "route_plain_fp32_experts32");
    assert.equal(name(soft, 1024).name, "route_plain_fp32_experts1024");
    assert.equal(name({ ...soft, groupLimit }).name, "route_fp32_experts64");
    assert.equal(name(soft, 40, true).name, "route_fp32_experts64");
    const mixer = name({ scoring: "sparsemixer", renormalize: false, scale: 1, jitter: 0.01 });
    assert.equal(mixer.name, "route_fp32_experts64");
    assert.deepEqual(
      [mixer.values["scoring"], mixer.values["jitter"], mixer.values["options"]],
      [4, Math.fround(0.01), 8],
    );
    const { values } = name({ ...soft, scoring: "sigmoid", groupLimit }, 40, true);
    assert.deepEqual(
      ["scoring", "options", "groups", "keep", "scale"].map((field) => values[field]),
      [1, 1 | 4 | 8, 8, 4, 2.5],
    );
    const elsewhere = await FakeDevice.open({ capability: [12, 1] });
    assert.equal(
      elsewhere.kernel(routeOf(stepBuffers(elsewhere))).name,
      "route_fp32_experts64",
      "PTX has no plain kernels",
    );
  });

  it("brings mirrored ids and weights to the host", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    const ids = device.buffer(1200, "ids", true);
    const weights = device.buffer(1200, "weights", true);
    const { beside } = device.encode(routeOf(buffers, { ids, weights }));
    assert.deepEqual(beside, [mirrorOf(ids), mirrorOf(weights)]);
  });
});

describe("bucket", () => {
  it("reads what route left, fills lists, and has counts brought to the host beside, or does it", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    device.encode(routeOf(buffers));
    const encoded = device.encode(bucketOf(buffers, { capacityFactor: 1.25 }));
    const [sets, lists] = device.scratches as [FakeBuffer, FakeBuffer];
    const [kernel] = device.kernels(encoded.work);
    assert.equal(encoded.work.length, 1);
    assert.equal(kernel?.name, "bucket_experts64");
    const { buckets } = buffers;
    assert.deepEqual(kernel?.values, {
      ids: buffers.ids.address,
      sets: sets.address,
      tokens: buffers.tokens.address,
      lane_of: buckets.laneOf.address,
      lists: lists.address,
      counts: buffers.counts.address,
      offsets: buckets.offsets.address,
      order: buckets.order.address,
      inverse: buckets.inverse.address,
      tiles: lists.address + 512n,
      tile_counts: lists.address + 256n,
      capacity_factor: 1.25,
      experts: 40,
      top_k: 3,
      most_tokens: 100,
      lanes: 2,
      classes: 1,
      fill_programs: 4,
      ...NOTHING_TO_TIDY,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    // Four programs fill, four share each of the two lists.
    assert.deepEqual(kernel?.grid, { x: 12, y: 1, z: 1 });
    const host = buffers.counts.mirror?.address as bigint;
    assert.deepEqual(tidyOf(device, encoded), {
      counts: buffers.counts.address,
      out: 0n,
      counts_host: host,
      fault: 0xfa00n,
      fault_host: 0xfb00n,
      experts: 40,
      options: 2 | 4,
      grid: 1,
      mirrors: [host],
      ...SCRATCH,
    });
    assert.equal(kernel?.work.tidiesOwn, true);
    assert.equal(encoded.afterBeside, false);
    // 7.5 rows an expert: tiles of 32; 9 full ones and one more for every expert.
    const most = 9 + 40;
    assert.equal(lists.byteLength, 512 + 2 * most * 16);
    const told = Int32Array.of(...[32, NO_FAULT, 0, 16], ...[32, NO_FAULT, most, 16]);
    assert.deepEqual(device.uploads, [{ address: lists.address, data: told }]);
    assert.ok(buckets.order.attached.includes(lists));
  });

  it("has no limit without a capacity factor, and fills with every multiprocessor at most", async () => {
    const device = await FakeDevice.open({ multiprocessors: 10 });
    const sizes = { experts: 8, topK: 2, mostTokens: 10000 };
    const buffers = stepBuffers(device, sizes);
    device.encode(routeOf(buffers, {}, sizes));
    const { values, grid } = device.kernel(bucketOf(buffers, { lanes: 1 }, sizes));
    assert.equal(values["capacity_factor"], Number.POSITIVE_INFINITY);
    assert.equal(values["fill_programs"], 10);
    assert.equal(grid.x, 14);
  });

  it("marks ids that the host wrote in empty sets, and leaves counts and fault alone", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    const encoded = device.encode(bucketOf(buffers, { routed: false }));
    const [cleared, ...kernels] = encoded.work;
    const [mark, bucket] = device.kernels(kernels);
    const [sets, , unread] = ["choices", "work lists", "unread"].map((label) =>
      device.scratches.find((buffer) => buffer.label.startsWith(label)),
    ) as [FakeBuffer, FakeBuffer, FakeBuffer];
    assert.equal(mark?.name, "mark");
    assert.deepEqual(mark?.values, {
      ids: buffers.ids.address,
      tokens: buffers.tokens.address,
      sets: sets.address,
      experts: 40,
      padded_experts: 64,
      top_k: 3,
      global_scratch: 0n,
      profile_scratch: 0n,
    });
    assert.deepEqual(mark?.grid, { x: 2, y: 1, z: 1 });
    assert.equal(bucket?.values["counts"], unread.address);
    assert.equal(bucket?.values["sets"], sets.address);
    assert.deepEqual(cleared, { kind: "fill", address: sets.address, value: 0, words: 256 });
    assert.deepEqual(encoded.beside, []);
  });

  it("keeps scratch memory by its sizes, and closes it with its buffer", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    const step = (changes: Parameters<typeof bucketOf>[1] = {}, sizes = SIZES) => {
      device.encode(routeOf(buffers, {}, sizes));
      device.encode(bucketOf(buffers, changes, sizes));
    };
    step();
    const first = device.scratches.length;
    step();
    assert.equal(device.scratches.length, first);
    step({ lanes: 5 });
    assert.equal(device.scratches.length, first + 1, "lists for five lanes");
    step({ rowType: "float16" });
    assert.equal(device.scratches.length, first + 1, "as tall tiles as before");
    step({}, { ...SIZES, mostTokens: 50 });
    assert.equal(device.scratches.length, first + 3, "sets and lists for fewer tokens");
    step();
    step({ lanes: 5 });
    assert.equal(device.scratches.length, first + 3);
    assert.equal(device.uploads.length, 3, "lists are described once");
    buffers.ids[Symbol.dispose]();
    buffers.buckets.order[Symbol.dispose]();
    assert.ok(device.scratches.every(({ closed }) => closed));
  });

  it("is refused without the route operator it says it follows", async () => {
    const device = await FakeDevice.open();
    const buffers = stepBuffers(device);
    const message =
      /bucket: routed is set, but no route operator writes ids \("ids"\) for 40 experts/;
    assert.throws(() => device.encode(bucketOf(buffers)), {
      name: "InvalidArgumentError",
      message,
    });
    device.encode(routeOf(buffers, { bucketed: false }));
    assert.throws(() => device.encode(bucketOf(buffers)), message);
    device.encode(routeOf(buffers, {}, { ...SIZES, mostTokens: 99 }));
    assert.throws(() => device.encode(bucketOf(buffers)), message);
    device.encode(routeOf(buffers));
    device.encode(bucketOf(buffers));
    buffers.counts[Symbol.dispose]();
    assert.throws(() => device.encode(bucketOf(buffers)), {
      name: "DisposedError",
      message: /bucket: counts of the route operator \("counts"\) is closed/,
    });
  });
});
