/** `bucket` on the device against plain code: a stable sort by expert, with and without a capacity. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { InvalidArgumentError } from "../../../src/errors.ts";
import { type CpuDevice, openCpuDevice } from "../../../src/execution/cpu/device.ts";
import type { Stream } from "../../../src/execution/device.ts";
import { between, chance, randomFor } from "../../support/seed.ts";
import { bucketBuffers, integers, ints, room, upload } from "./harness.ts";

let device: CpuDevice;
let stream: Stream;
before(async () => {
  device = await openCpuDevice({ threads: 2 });
  stream = device.createStream({ group: 0, priority: 0 });
});
after(() => device.close());

interface Case {
  readonly experts: number;
  readonly topK: number;
  readonly tokens: number;
  readonly ids: Int32Array;
  readonly capacityFactor?: number;
  readonly laneOf?: ArrayLike<number>;
  readonly lanes?: number;
}

async function bucket({ experts, topK, tokens, ids, laneOf, lanes = 1, ...rest }: Case) {
  const buckets = bucketBuffers(device, experts, Math.max(topK, ids.length), laneOf);
  stream.enqueue({
    kind: "bucket",
    experts,
    topK,
    lanes,
    rowType: "float32",
    mostTokens: Math.max(1, ids.length / topK),
    routed: false,
    tokens: ints(device, tokens),
    ids: upload(device, ids.length > 0 ? ids : new Int32Array(topK)),
    buckets,
    ...rest,
  });
  await device.synchronize();
  return {
    offsets: await integers(device, buckets.offsets),
    order: await integers(device, buckets.order),
    inverse: await integers(device, buckets.inverse),
  };
}

/** The definition, said plainly. */
function expected({ experts, topK, tokens, ids, capacityFactor }: Case) {
  const limit =
    capacityFactor === undefined
      ? Number.POSITIVE_INFINITY
      : Math.ceil((capacityFactor * tokens * topK) / experts);
  const inverse = new Int32Array(tokens * topK).fill(-1);
  const order: number[] = [];
  const offsets = [0];
  for (let e = 0; e < experts; e++) {
    const slots = [...ids.keys()].filter((slot) => ids[slot] === e).slice(0, limit);
    for (const slot of slots) inverse[slot] = order.push(slot) - 1;
    offsets.push(order.length);
  }
  return { offsets: Int32Array.from(offsets), order: Int32Array.from(order), inverse };
}

async function check(c: Case): Promise<void> {
  const got = await bucket(c);
  const want = expected(c);
  const name = `${c.tokens} tokens, ${c.experts} experts, top ${c.topK}, ${c.capacityFactor}`;
  assert.deepEqual(got.offsets, want.offsets, name);
  assert.deepEqual(got.order.subarray(0, want.order.length), want.order, name);
  assert.deepEqual(got.inverse.subarray(0, want.inverse.length), want.inverse, name);
}

describe("bucket", () => {
  it("sorts slots by expert, stably", async () => {
    const random = randomFor("buckets");
    for (let round = 0; round < 120; round++) {
      const experts = chance(random, 0.1) ? 1 : between(random, 1, 60);
      const topK = between(random, 1, Math.min(experts, 8));
      const tokens = between(random, 0, 120);
      // Few experts in use leaves many empty.
      const inUse = between(random, 1, experts);
      const ids = Int32Array.from({ length: tokens * topK }, () => random.integer(inUse));
      const lanes = between(random, 1, 8);
      const laneOf = Int32Array.from({ length: experts }, () => random.integer(lanes));
      const capacityFactor = chance(random, 0.5) ? 2 * random.uniform() : undefined;
      await check({
        experts,
        topK,
        tokens,
        ids,
        lanes,
        laneOf,
        ...(capacityFactor === undefined ? {} : { capacityFactor }),
      });
    }
  });

  it("drops the later slots of an expert beyond its capacity", async () => {
    const { inverse, offsets } = await bucket({
      experts: 2,
      topK: 1,
      tokens: 6,
      ids: Int32Array.of(0, 0, 1, 0, 0, 0),
      capacityFactor: 1,
    });
    assert.deepEqual([...inverse], [0, 1, 3, 2, -1, -1]);
    assert.deepEqual([...offsets], [0, 3, 4]);
  });

  it("rejects ids, lanes and token counts out of range, and goes on working", async () => {
    const good = { experts: 3, topK: 2, tokens: 2, ids: Int32Array.of(0, 1, 2, 1) };
    const attempt = (change: Partial<Case>, pattern: RegExp) =>
      assert.rejects(
        bucket({ ...good, ...change }),
        (error) => error instanceof InvalidArgumentError && pattern.test(error.message),
      );
    await attempt({ ids: Int32Array.of(0, 1, 3, 1) }, /bucket: ids\[2\] is 3/);
    await attempt({ ids: Int32Array.of(0, -5, 2, 1) }, /bucket: ids\[1\] is -5/);
    await attempt({ laneOf: [0, 1, 0] }, /bucket: laneOf\[1\] is 1/);
    await attempt({ laneOf: [0, 0, -1] }, /bucket: laneOf\[2\] is -1/);
    await attempt({ tokens: 3 }, /bucket: tokens holds 3.*0 to 2 tokens/);
    await attempt({ tokens: -1 }, /bucket: tokens holds -1/);
    await attempt({ capacityFactor: 0 }, /capacityFactor is 0/);
    await attempt({ capacityFactor: Number.NaN }, /capacityFactor is NaN/);
    await attempt({ lanes: 0 }, /lanes is 0/);
    await attempt({ topK: 4 }, /topK is 4/);
    await attempt({ ids: Int32Array.of(0, 1, 2) }, /mostTokens is 1\.5/);
    await check(good);
  });

  it("refuses rows of another type, and buffers too small for the most tokens", () => {
    const good = {
      ...({ kind: "bucket", experts: 4, topK: 2, lanes: 1, routed: false } as const),
      ...({ rowType: "float32", mostTokens: 2, tokens: ints(device, 2) } as const),
      ids: room(device, 4),
      buckets: bucketBuffers(device, 4, 4),
    };
    const refused = (change: object, pattern: RegExp) =>
      assert.throws(
        () => stream.enqueue({ ...good, ...change }),
        (error) => error instanceof InvalidArgumentError && pattern.test(error.message),
        String(pattern),
      );
    refused({ rowType: "bfloat16" }, /bucket: rowType is bfloat16/);
    refused({ mostTokens: 0 }, /mostTokens is 0/);
    refused({ ids: room(device, 3) }, /ids .* has 12 bytes and needs 16/);
    refused({ buckets: bucketBuffers(device, 4, 3) }, /order .* has 12 bytes and needs 16/);
  });

  it("keeps its work lists with the offsets buffer", async () => {
    const before = device.memory().allocations;
    const buckets = bucketBuffers(device, 4, 8);
    const tokens = ints(device, 1);
    const ids = room(device, 8);
    const operator = {
      ...({ kind: "bucket", experts: 4, topK: 2, rowType: "float32", routed: false } as const),
      tokens,
      ids,
      buckets,
    };
    const enqueue = (lanes: number, mostTokens: number) =>
      stream.enqueue({ ...operator, lanes, mostTokens });
    for (const lanes of [2, 5]) enqueue(lanes, 4);
    const used = device.memory().usedBytes;
    for (const lanes of [5, 2, 2, 5, 2]) enqueue(lanes, 4);
    // Fewer tokens than there is room for: the same lists.
    for (const mostTokens of [1, 3, 4]) enqueue(5, mostTokens);
    assert.equal(device.memory().usedBytes, used);
    await device.synchronize();
    for (const buffer of [...Object.values(buckets), tokens, ids]) buffer[Symbol.dispose]();
    assert.equal(device.memory().allocations, before);
  });
});
