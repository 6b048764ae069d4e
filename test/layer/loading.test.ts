/**
 * How a layer comes to its weights: specs, tensors and options that do not fit, sources
 * that fail, lack something or give the wrong thing. What failed leaves nothing
 * allocated and can be tried again.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { LayerSpec } from "../../src/data/spec.ts";
import type { LayerWeights } from "../../src/data/weights.ts";
import { InvalidArgumentError, ShapeError } from "../../src/errors.ts";
import { MoELayer } from "../../src/layer/moe-layer.ts";
import { referenceLayer, relativeError } from "../../src/reference/index.ts";
import { holdings, leavesNothing, openCpu } from "../support/device.ts";
import {
  batch,
  gatedExperts,
  plainSpec,
  type RandomLayerParts,
  randomHidden,
  randomLayer,
} from "../support/layers.ts";
import { randomFor } from "../support/seed.ts";

const device = await openCpu(2);
after(() => device.close());

const HIDDEN = 12;

function smallLayer(name: string, more: Partial<LayerSpec> = {}): RandomLayerParts {
  return randomLayer(randomFor(name), plainSpec(HIDDEN, 9, 5, 2, more));
}

const withShared: Partial<LayerSpec> = {
  shared: { experts: gatedExperts(HIDDEN, 7), gate: true },
};

for (const part of ["gate", "expert", "shared", "sharedGate"] as const) {
  test(`a source that fails at ${part} leaves nothing allocated and can be tried again`, () =>
    leavesNothing(device, async () => {
      const parts = smallLayer("lifecycle retry", withShared);
      let broken = true;
      const fragile: LayerWeights = {
        ...parts.source,
        [part]: async (index: number) => {
          if (broken && !(index < 3)) throw new RangeError(`no ${part} today`);
          return (parts.source[part] as (i: number) => Promise<unknown>)(index);
        },
      };
      const layer = new MoELayer(parts.spec, fragile, { device });
      const hidden = await randomHidden(randomFor("lifecycle retry"), parts, 6);
      const before = holdings(device);
      await assert.rejects(layer.ready(), new RegExp(`no ${part} today`));
      assert.deepEqual(holdings(device), before);
      const both = await Promise.allSettled([layer.ready(), layer.forward(batch(hidden, HIDDEN))]);
      assert.deepEqual(
        both.map(({ status }) => status),
        ["rejected", "rejected"],
      );
      assert.deepEqual(holdings(device), before);
      broken = false;
      const { output } = await layer.forward(batch(hidden, HIDDEN));
      const expected = await referenceLayer(parts.spec, parts.source, hidden);
      assert.ok(relativeError(output.data, expected.output) < 1e-5);
      await layer.close();
    }));
}

test("a source that lacks what the spec asks for is named", () =>
  leavesNothing(device, async () => {
    const base = plainSpec(HIDDEN, 9, 5, 2, withShared);
    const spec: LayerSpec = {
      ...base,
      router: {
        ...base.router,
        rule: { scoring: "sigmoid", renormalize: true, scale: 1 },
        bias: true,
        selectionBias: true,
      },
    };
    const { source } = randomLayer(randomFor("lifecycle missing"), spec);
    for (const [part, message] of [
      ["gateBias", /router's bias is missing/],
      ["selectionBias", /router's selection bias is missing/],
      ["shared", /shared expert's weights are missing/],
      ["sharedGate", /shared expert's gate is missing/],
    ] as const) {
      const { [part]: _, ...rest } = source;
      await assert.rejects(new MoELayer(spec, rest, { device }).ready(), {
        name: "ShapeError",
        message,
      });
    }
  }));

test("a source whose router does not fit the spec is refused, and nothing stays", () =>
  leavesNothing(device, async () => {
    const base = plainSpec(HIDDEN, 9, 5, 2, withShared);
    const spec: LayerSpec = {
      ...base,
      router: {
        ...base.router,
        rule: { scoring: "sigmoid", renormalize: true, scale: 1 },
        bias: true,
        selectionBias: true,
      },
    };
    const { source } = randomLayer(randomFor("lifecycle misfit"), spec);
    const other = randomLayer(randomFor("lifecycle misfit"), {
      ...spec,
      router: { ...spec.router, experts: 6 },
    });
    const wide = randomLayer(
      randomFor("lifecycle misfit"),
      plainSpec(HIDDEN + 1, 9, 5, 2, {
        shared: { experts: gatedExperts(HIDDEN + 1, 7), gate: true },
      }),
    );
    for (const [part, from] of [
      ["gate", other],
      ["gate", wide],
      ["gateBias", other],
      ["selectionBias", other],
      ["sharedGate", wide],
    ] as const) {
      const misfit = { ...source, [part]: from.source[part] } as LayerWeights;
      await assert.rejects(
        new MoELayer(spec, misfit, { device }).ready(),
        (error) => {
          assert.ok(error instanceof ShapeError, `${part}: ${String(error)}`);
          return true;
        },
        part,
      );
    }
  }));

test("specs and tensors that do not fit are refused when the layer is made", () => {
  const { spec, tensors } = smallLayer("lifecycle constructor");
  assert.throws(
    () => new MoELayer({ ...spec, hiddenSize: 0 }, tensors, { device }),
    InvalidArgumentError,
  );
  assert.throws(
    () => new MoELayer({ ...spec, hiddenSize: 0 }, tensors, { device }),
    /hiddenSize is 0/,
  );
  const { experts: _, ...rest } = tensors;
  assert.throws(() => new MoELayer(spec, rest as typeof tensors, { device }), /experts is missing/);
});

test("options that make no sense are refused, and nothing stays allocated", () =>
  leavesNothing(device, async () => {
    const { spec, tensors } = smallLayer("lifecycle options");
    for (const options of [
      { streams: 0 },
      { graphs: { warmup: -1 } },
      { graphs: { capacity: 0 } },
      { slices: { policy: "greedy" as never } },
      { profiler: { window: 0 } },
    ]) {
      assert.throws(
        () => new MoELayer(spec, tensors, { device, ...options }),
        InvalidArgumentError,
        JSON.stringify(options),
      );
    }
  }));

test("load: a directory without a checkpoint, and options out of range", () =>
  leavesNothing(device, async () => {
    await assert.rejects(MoELayer.load("no/such/directory", { layer: 0, device }), {
      name: "CheckpointError",
    });
  }));
