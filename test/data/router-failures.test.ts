/**
 * What a router refuses and what it survives: bad logits, arguments that do not fit,
 * no memory, being closed, calls side by side. Nothing stays behind on the device.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Router, type RouterOptions } from "../../src/data/router.ts";
import {
  DisposedError,
  InvalidArgumentError,
  InvalidLogitsError,
  OutOfDeviceMemoryError,
  ShapeError,
} from "../../src/errors.ts";
import { defaultDevice } from "../../src/execution/open.ts";
import type { RoutingRule } from "../../src/execution/operators.ts";
import type { TensorLike } from "../../src/tensor.ts";
import { leavesNothing, openCpu, withCpu } from "../support/device.ts";
import { withoutMemoryFor } from "../support/failing-streams.ts";
import { RULES } from "../support/rules.ts";
import { between, normal, randomFor } from "../support/seed.ts";
import { tensorOf } from "../support/tensors.ts";

const device = await openCpu(2);
after(() => device.close());

/** Hidden states that only say how many tokens there are. */
const tokensOnly = (tokens: number): TensorLike => ({
  data: new Float32Array(tokens),
  shape: [tokens, 1],
});

for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
  test(`a logit of ${bad} names the first such row, and the router stays usable`, async () => {
    const random = randomFor(`router ${bad}`);
    const [experts, tokens] = [40, 200];
    const shape = [tokens, experts];
    using router = new Router({ topK: 3, device });
    for (const { rule } of RULES) {
      using each = new Router({ topK: 3, rule, device });
      const logits = normal(random, tokens * experts);
      const first = between(random, 0, tokens - 1);
      logits[first * experts + random.integer(experts)] = bad;
      logits[between(random, first, tokens - 1) * experts + random.integer(experts)] = bad;
      for (const one of [each, router]) {
        await assert.rejects(one.route(tokensOnly(tokens), { data: logits, shape }), (error) => {
          assert.ok(error instanceof InvalidLogitsError, String(error));
          assert.equal(error.row, first);
          assert.match(error.message, new RegExp(`row ${first} `));
          return true;
        });
      }
    }
    // Expert e is the e-th best of every token.
    const sound = Float32Array.from({ length: tokens * experts }, (_, i) => -(i % experts));
    const { ids, counts } = await router.route(tokensOnly(tokens), { data: sound, shape });
    assert.ok(ids.every((id, slot) => id === slot % 3));
    assert.deepEqual(Array.from(counts.slice(0, 4)), [tokens, tokens, tokens, 0]);
  });
}

test("a row at -Infinity throughout is an error, and NaN hidden states are", async () => {
  const logits = new Float32Array(6).fill(Number.NEGATIVE_INFINITY, 3);
  for (const { rule } of RULES) {
    using router = new Router({ topK: 1, rule, device });
    await assert.rejects(router.route(tokensOnly(2), { data: logits, shape: [2, 3] }), {
      name: "InvalidLogitsError",
      row: 1,
    });
  }
  using router = new Router({ topK: 1, gate: tensorOf(new Float32Array(4), [2, 2]), device });
  const hidden = { data: Float32Array.of(0, 0, 0, Number.NaN), shape: [2, 2] };
  await assert.rejects(router.route(hidden), { name: "InvalidLogitsError", row: 1 });
});

test("an empty batch gives empty buckets", async () => {
  const gate = tensorOf(new Float32Array(6), [3, 2]);
  using router = new Router({ topK: 2, gate, device });
  for (const logits of [undefined, { data: new Float32Array(0), shape: [0, 3] }]) {
    const buckets = await router.route({ data: new Float32Array(0), shape: [0, 2] }, logits);
    assert.equal(buckets.tokens, 0);
    assert.equal(buckets.rows, 0);
    assert.deepEqual(buckets.counts, new Int32Array(3));
    assert.deepEqual(buckets.offsets, new Int32Array(4));
    assert.deepEqual(buckets.dropped, []);
  }
});

test("options that do not fit are refused when the router is made", () => {
  const gate = tensorOf(new Float32Array(6), [3, 2]);
  const refuses = (options: RouterOptions, kind: typeof ShapeError, message: RegExp) =>
    assert.throws(
      () => new Router({ device, ...options }),
      (error) => error instanceof kind && message.test(error.message),
    );
  const argument = InvalidArgumentError as unknown as typeof ShapeError;
  refuses({ topK: 4, gate }, argument, /router\.topK is 4.*1 to 3/);
  refuses({ topK: 0, gate }, argument, /router\.topK is 0/);
  refuses(
    { topK: 1, gate: { data: gate.data, shape: [6] } },
    ShapeError,
    /gate has shape \[6\]; it must have two axes/,
  );
  refuses(
    { topK: 1, gateBias: tensorOf(new Float32Array(3), [3]) },
    argument,
    /gateBias .*without a gate/,
  );
  refuses(
    { topK: 1, gate, gateBias: tensorOf(new Float32Array(2), [2]) },
    ShapeError,
    /gateBias has 2 values for 3/,
  );
  refuses(
    { topK: 1, gate, selectionBias: tensorOf(new Float32Array(4), [4]) },
    ShapeError,
    /selectionBias has 4/,
  );
  refuses({ topK: 1, gate, capacityFactor: 0 }, argument, /capacityFactor is 0/);
  // Without a gate there is no number of experts to hold them against, but for that of a bias.
  refuses({ topK: 0 }, argument, /router\.topK is 0; .*1 to 32/);
  refuses({ topK: "2" as never }, argument, /router\.topK is "2"/);
  refuses({ topK: 2, capacityFactor: -1 }, argument, /router\.capacityFactor is -1/);
  const rule: RoutingRule = { scoring: "softmax", renormalize: true, scale: 1 };
  refuses(
    { topK: 2, rule: { ...rule, scoring: "sofmax" as never } },
    argument,
    /rule\.scoring is "sofmax"/,
  );
  const groupLimit = { groups: 4, keep: 5, score: "max" } as const;
  refuses(
    { topK: 2, rule: { ...rule, groupLimit } },
    argument,
    /rule\.groupLimit\.keep is 5; .*1 to 4/,
  );
  const selectionBias = tensorOf(new Float32Array(3), [3]);
  refuses({ topK: 4, selectionBias }, argument, /router\.topK is 4.*1 to 3/);
  new Router({ topK: 32, rule: { ...rule, groupLimit: { ...groupLimit, keep: 1 } }, device });
  const int32 = { data: new Int32Array(6), shape: [3, 2] };
  refuses({ topK: 1, gate: int32 }, ShapeError, /gate is int32/);
});

test("arguments that do not fit are refused before any work", async () => {
  using bare = new Router({ topK: 2, device });
  using gated = new Router({ topK: 1, gate: tensorOf(new Float32Array(6), [3, 2]), device });
  const used = device.memory().usedBytes;
  const logits = (rows: number, columns: number) => ({
    data: new Float32Array(rows * columns),
    shape: [rows, columns],
  });
  const refuses = (promise: Promise<unknown>, name: string, message: RegExp) =>
    assert.rejects(promise, { name, message });
  await refuses(bare.route(tokensOnly(3)), "InvalidArgumentError", /no gate/);
  await refuses(bare.route(tokensOnly(3), logits(2, 4)), "ShapeError", /2 rows.*3 tokens/);
  await refuses(bare.route(tokensOnly(3), logits(3, 1)), "InvalidArgumentError", /topK is 2/);
  await refuses(
    bare.route(tokensOnly(1), logits(1, 1025)),
    "InvalidArgumentError",
    /experts is 1025/,
  );
  await refuses(
    bare.route(tokensOnly(1), { data: new Float32Array(4), shape: [4] }),
    "ShapeError",
    /logits has shape \[4\]/,
  );
  await refuses(
    bare.route(tokensOnly(1), { data: new Int32Array(4), shape: [1, 4] }),
    "ShapeError",
    /logits is int32/,
  );
  await refuses(
    bare.route({ data: new Float32Array(3), shape: [2, 2] }, logits(2, 4)),
    "ShapeError",
    /hidden has shape \[2, 2\], which is 4/,
  );
  await refuses(gated.route(logits(2, 5)), "ShapeError", /hidden has 5 columns.*takes 2/);
  assert.equal(device.memory().usedBytes, used);
});

test("a closed router says so; closing twice is harmless; nothing stays allocated", async () => {
  const before = device.memory();
  const router = new Router({
    topK: 1,
    gate: tensorOf(new Float32Array(6), [3, 2]),
    selectionBias: tensorOf(new Float32Array(3), [3]),
    rule: { scoring: "sigmoid", renormalize: false, scale: 1 },
    device,
  });
  const hidden = { data: new Float32Array(4), shape: [2, 2] };
  await router.route(hidden);
  router[Symbol.dispose]();
  router[Symbol.dispose]();
  await assert.rejects(router.route(hidden), DisposedError);
  assert.equal(device.memory().usedBytes, before.usedBytes);
  assert.equal(device.memory().allocations, before.allocations);
});

test("a router that found no memory can try again, and leaves nothing meanwhile", () =>
  withCpu(1, async (small) => {
    using router = new Router({
      topK: 1,
      rule: { scoring: "sigmoid", renormalize: false, scale: 1 },
      gate: tensorOf(Float32Array.of(0, 1), [2, 1]),
      selectionBias: tensorOf(new Float32Array(2), [2]),
      device: small,
    });
    const hidden = { data: Float32Array.of(1, -1), shape: [2, 1] };
    const { usedBytes, limitBytes } = small.memory();
    // Whatever is free is taken, in ever smaller pieces.
    const others: Disposable[] = [];
    for (let bytes = limitBytes - usedBytes; bytes >= 4; bytes = Math.floor(bytes / 2)) {
      try {
        others.push(small.allocate(bytes, "others"));
      } catch (error) {
        assert.ok(error instanceof OutOfDeviceMemoryError);
      }
    }
    const full = small.memory();
    await assert.rejects(router.route(hidden), OutOfDeviceMemoryError);
    assert.deepEqual(small.memory(), full);
    for (const other of others) other[Symbol.dispose]();
    assert.deepEqual(Array.from((await router.route(hidden)).ids), [1, 0]);
  }));

test("a batch that finds no memory half-way leaves nothing to what others enqueue next", async () => {
  const gate = tensorOf(Float32Array.of(0, 1), [2, 1]);
  using router = new Router({ topK: 1, gate, device });
  using other = new Router({ topK: 1, gate, device });
  const hidden = { data: Float32Array.of(1, -1), shape: [2, 1] };
  await other.route(hidden);
  await leavesNothing(device, async () => {
    using bare = new Router({ topK: 1, device });
    {
      using _ = withoutMemoryFor(device, "bucket");
      await assert.rejects(router.route(hidden), OutOfDeviceMemoryError);
      await assert.rejects(bare.route(hidden, hidden), OutOfDeviceMemoryError);
    }
    assert.deepEqual(Array.from((await other.route(hidden)).ids), [1, 0]);
    router[Symbol.dispose]();
  });
});

test("a router without a device of its own follows the default device to the next one", async () => {
  using router = new Router({ topK: 1, gate: tensorOf(Float32Array.of(0, 1), [2, 1]) });
  const hidden = { data: Float32Array.of(1, -1), shape: [2, 1] };
  for (let i = 0; i < 3; i++) {
    const both = await Promise.all([router.route(hidden), router.route(hidden)]);
    for (const { ids } of both) assert.deepEqual(Array.from(ids), [1, 0]);
    await (await defaultDevice()).close();
  }
  const last = await defaultDevice();
  await leavesNothing(last, async () => {
    await router.route(hidden);
    router[Symbol.dispose]();
  });
  await last.close();
});

test("a router whose own device was closed says so", async () => {
  const gone = await openCpu(1);
  using router = new Router({
    topK: 1,
    gate: tensorOf(Float32Array.of(0, 1), [2, 1]),
    device: gone,
  });
  const hidden = { data: Float32Array.of(1, -1), shape: [2, 1] };
  await router.route(hidden);
  await gone.close();
  for (let i = 0; i < 2; i++) await assert.rejects(router.route(hidden), DisposedError);
});

test("a router closed while it routes finishes, then frees its weights", async () => {
  const before = device.memory();
  const router = new Router({ topK: 1, gate: tensorOf(Float32Array.of(0, 1), [2, 1]), device });
  const routed = router.route({ data: Float32Array.of(1, -1), shape: [2, 1] });
  router[Symbol.dispose]();
  assert.deepEqual(Array.from((await routed).ids), [1, 0]);
  assert.equal(device.memory().usedBytes, before.usedBytes);
});

test("nor are weights freed under a batch that finds them there", async () => {
  const before = device.memory();
  const router = new Router({ topK: 1, gate: tensorOf(Float32Array.of(0, 1), [2, 1]), device });
  const hidden = { data: Float32Array.of(1, -1), shape: [2, 1] };
  await router.route(hidden);
  const routed = router.route(hidden);
  router[Symbol.dispose]();
  assert.deepEqual(Array.from((await routed).ids), [1, 0]);
  assert.equal(device.memory().usedBytes, before.usedBytes);
});

test("routing leaves nothing behind, whether it succeeds or fails", async () => {
  using router = new Router({ topK: 2, device });
  const shape = [10, 6];
  const sound = { data: new Float32Array(60), shape };
  const unsound = { data: new Float32Array(60).fill(Number.NaN), shape };
  await router.route(tokensOnly(10), sound);
  const before = device.memory();
  for (let i = 0; i < 50; i++) {
    await router.route(tokensOnly(10), sound);
    await assert.rejects(router.route(tokensOnly(10), unsound), InvalidLogitsError);
  }
  assert.equal(device.memory().usedBytes, before.usedBytes);
  assert.equal(device.memory().allocations, before.allocations);
});

test("a bad batch among many at once fails alone", async () => {
  using router = new Router({ topK: 2, device });
  const batches = Array.from({ length: 20 }, (_, i) => {
    const data = new Float32Array(12);
    if (i % 3 === 1) data[4 * (i % 2) + 6] = Number.NaN;
    return router.route(tokensOnly(3), { data, shape: [3, 4] });
  });
  const results = await Promise.allSettled(batches);
  results.forEach((result, i) => {
    assert.equal(result.status, i % 3 === 1 ? "rejected" : "fulfilled", `batch ${i}`);
    if (result.status === "rejected") assert.equal(result.reason.row, i % 2 === 0 ? 1 : 2);
  });
});
