/** Work lists: who may count pieces beside a lane's counts. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { lane } from "./operators.ts";

describe("a lane's words", () => {
  it("count pieces for one product each, as long as it lives", async () => {
    const { device, operator } = await lane({ experts: 8, topK: 2, mostTokens: 400 });
    // 100 rows an expert: claimed.
    const bits = (changes: Partial<typeof operator>) =>
      Number(device.kernel({ ...operator, ...changes }).values["options"]) & (32 | 64);
    const spec = { count: 8, inputs: operator.projection.spec.inputs };
    const first = operator.projection;
    const other = device.projection(spec);
    assert.equal(bits({}), 64);
    assert.equal(bits({ projection: other }), 0, "dealt, and not in step");
    assert.equal(bits({}), 64);
    const second = {
      input: device.buffer(2 * operator.input.byteLength),
      rows: { ...operator.rows, gather: false },
    };
    assert.equal(bits({ ...second, projection: other }), 64, "a word of its own");
    assert.equal(bits(second), 0);
    const gated = device.projection({ ...spec, gated: true });
    const output = device.buffer(2 * operator.output.byteLength);
    const ungathered = { ...second, projection: gated, output };
    assert.equal(bits(ungathered), 0, "a gated product has the first word, however its rows lie");
    first[Symbol.dispose]();
    assert.equal(bits({ projection: other }), 64);
    assert.equal(bits(ungathered), 0);
    for (const projection of [other, gated]) projection[Symbol.dispose]();
  });
});
