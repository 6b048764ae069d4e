/**
 * Opening devices by kind, and the one that everything shares, on a machine whose GPU, if it has one, is hidden. With
 * one: open.gpu.test.ts; with one of no use: unusable-gpu.test.ts.
 */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceUnavailableError, InvalidArgumentError } from "../../src/errors.ts";
import type { DeviceKind } from "../../src/execution/device.ts";
import { defaultDevice, openDevice } from "../../src/execution/open.ts";

// test/run.mjs does so for all tests without a GPU; by itself this file has to.
process.env["CUDA_VISIBLE_DEVICES"] = "";

describe("openDevice", () => {
  it("opens the CPU when asked to, or left to choose", async () => {
    for (const options of [{ kind: "cpu" }, { kind: "cpu", threads: 1 }, { threads: 1 }] as const) {
      await using device = await openDevice(options);
      assert.equal(device.properties.kind, "cpu");
      if ("threads" in options) assert.equal(device.properties.computeUnits, 1);
    }
  });

  it("takes the CPU without a GPU, where it may choose", async () => {
    for (const options of [{}, { kind: "auto" }, { float32: "tf32" }] as const) {
      await using device = await openDevice(options);
      assert.equal(device.properties.kind, "cpu");
    }
  });

  it("says why there is no other", async () => {
    // More than any machine has.
    for (const options of [{ kind: "cuda", ordinal: 1000 }, { ordinal: 1000 }] as const) {
      await assert.rejects(
        openDevice(options),
        (error) => error instanceof DeviceUnavailableError && /CPU device/.test(error.message),
      );
    }
    await assert.rejects(openDevice({ kind: "cuda", ordinal: -1 }), InvalidArgumentError);
    for (const kind of ["auto", "cpu", "cuda"] as const) {
      await assert.rejects(openDevice({ kind, float32: "fp8" as "ieee" }), InvalidArgumentError);
    }
    await assert.rejects(openDevice({ kind: "tpu" as DeviceKind }), InvalidArgumentError);
    await assert.rejects(openDevice({ threads: 0 }), InvalidArgumentError);
  });
});

describe("an option that is for another kind of device", () => {
  for (const [options, message] of [
    [{ kind: "cpu", ordinal: 3 }, /^ordinal is 3, but kind is "cpu"/],
    [{ kind: "cuda", threads: 2 }, /^threads is 2, but kind is "cuda"/],
    [{ threads: 2, ordinal: 0 }, /^threads is 2 and ordinal is 0; .*Leave one of them out/],
    [{ kind: "auto", threads: 2, ordinal: 0 }, /^threads is 2 and ordinal is 0/],
  ] as const) {
    it(`is refused: ${JSON.stringify(options)}`, async () => {
      await assert.rejects(openDevice(options), { name: "InvalidArgumentError", message });
    });
  }
});

describe("defaultDevice", () => {
  it("is one device for all, opened again once it was closed", async () => {
    const [a, b] = await Promise.all([defaultDevice(), defaultDevice()]);
    assert.equal(a, b);
    assert.equal(await defaultDevice(), a);
    await a.close();
    const [c, d] = await Promise.all([defaultDevice(), defaultDevice()]);
    assert.equal(c, d);
    assert.notEqual(c, a);
    assert.equal(c.closed, false);
    await c.close();
  });
});
