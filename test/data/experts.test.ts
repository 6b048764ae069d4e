/** Experts on a device: loading one after the other, and leaving nothing behind when that fails. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Experts } from "../../src/data/experts.ts";
import type { ProductWeights } from "../../src/data/weights.ts";
import { DisposedError, InvalidArgumentError, ShapeError } from "../../src/errors.ts";
import { openCpu } from "../support/device.ts";
import {
  gatedExperts,
  layOut,
  PLAIN_LAYOUT,
  productsOf,
  randomExperts,
  WEIGHT_DTYPES,
} from "../support/layers.ts";
import { randomFor } from "../support/seed.ts";

const device = await openCpu(1);
after(() => device.close());

const random = randomFor("experts");

test("weights are asked for once per expert, in order, and take the bytes they say", async () => {
  for (const dtype of WEIGHT_DTYPES) {
    const spec = gatedExperts(24, 40, { dtype });
    const set = randomExperts(random, spec, 5);
    const before = device.memory().usedBytes;
    const asked: number[] = [];
    using experts = await Experts.load(device, spec, 5, async (i) => {
      asked.push(i);
      return productsOf(set, i);
    });
    assert.deepEqual(asked, [0, 1, 2, 3, 4]);
    assert.equal(experts.count, 5);
    assert.equal(experts.products.length, 2);
    assert.ok(experts.byteLength >= 5 * 3 * 24 * 40 * (dtype === "float32" ? 4 : 2));
    assert.equal(device.memory().usedBytes - before, experts.byteLength);
  }
});

test("closing frees the weights, twice is harmless, use afterwards is an error", async () => {
  const spec = gatedExperts(3, 4);
  const before = device.memory();
  const tensors = layOut(spec, randomExperts(random, spec, 2), PLAIN_LAYOUT);
  const experts = await Experts.fromTensors(spec, 2, tensors, { device });
  experts[Symbol.dispose]();
  experts[Symbol.dispose]();
  assert.equal(device.memory().usedBytes, before.usedBytes);
  assert.equal(device.memory().allocations, before.allocations);
  assert.throws(() => experts.products, DisposedError);
});

test("a source that fails, or gives less than the form needs, leaves nothing allocated", async () => {
  const spec = gatedExperts(6, 4, { bias: true });
  const set = randomExperts(random, spec, 3);
  const before = device.memory();
  const fails = async (
    change: (products: readonly ProductWeights[]) => readonly ProductWeights[],
    kind: new (message: string) => Error,
    message: RegExp,
  ) => {
    const source = async (i: number) => (i < 2 ? productsOf(set, i) : change(productsOf(set, i)));
    await assert.rejects(Experts.load(device, spec, 3, source), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.match(error.message, message);
      return true;
    });
    assert.equal(device.memory().usedBytes, before.usedBytes);
    assert.equal(device.memory().allocations, before.allocations);
  };
  const first =
    (change: (product: ProductWeights) => object) =>
    ([product, ...rest]: readonly ProductWeights[]) =>
      [change(product as ProductWeights), ...rest] as readonly ProductWeights[];

  const broken = () => {
    throw new RangeError("disk on fire");
  };
  await fails(broken, RangeError, /disk on fire/);
  await fails(() => [], ShapeError, /Expert 2 has no weights for product 1/);
  await fails(([product]) => [product as ProductWeights], ShapeError, /Expert 2.*product 2/);
  await fails(
    first(({ gate: _, ...rest }) => rest),
    ShapeError,
    /Expert 2 has no gate for product 1/,
  );
  await fails(
    first(({ valueBias: _, ...rest }) => rest),
    ShapeError,
    /Expert 2 has no bias for product 1/,
  );
  await fails(
    first(({ gateBias: _, ...rest }) => rest),
    ShapeError,
    /Expert 2 has no gate bias for product 1/,
  );
  await fails(
    first((product) => ({ ...product, value: { ...product.value, rows: 3 } })),
    ShapeError,
    /3/,
  );
  await fails(
    first((product) => ({ ...product, valueBias: new Float32Array(3) })),
    ShapeError,
    /3/,
  );
});

test("specs and element types that cannot be are refused before anything is allocated", async () => {
  const spec = gatedExperts(6, 4);
  const tensors = layOut(spec, randomExperts(random, spec, 2), PLAIN_LAYOUT);
  const before = device.memory().usedBytes;
  await assert.rejects(
    Experts.fromTensors({ ...spec, form: "dense" as never }, 2, tensors, { device }),
    { name: "InvalidArgumentError", message: /experts\.form is "dense"/ },
  );
  await assert.rejects(Experts.fromTensors(spec, 3, tensors, { device }), ShapeError);
  await assert.rejects(
    Experts.fromTensors(spec, 0, { gate: [], up: [], down: [] }, { device }),
    InvalidArgumentError,
  );
  await assert.rejects(
    Experts.load(device, { ...spec, dtype: "int32" }, 2, async () => []),
    { name: "InvalidArgumentError", message: /int32.*float32, bfloat16, float16/ },
  );
  assert.equal(device.memory().usedBytes, before);
});
