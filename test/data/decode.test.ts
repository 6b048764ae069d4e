import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { decodeTokensOf } from "../../src/data/decode.ts";
import { layerSpecOf, presetOf } from "../../src/workload/presets.ts";

const MIB = 2 ** 20;
const GPU = { decodeTokens: 4, cacheBytes: 50 * MIB, memoryBytesPerSecond: 3.35e12 };
const FAST = { ...GPU, memoryBytesPerSecond: 4.8e12 };

function ofShape(changes: object, device: typeof GPU = GPU, packed = false): number {
  const shape = { ...presetOf("large"), ...changes };
  return decodeTokensOf(device, layerSpecOf(shape, "bfloat16"), packed);
}

describe("decodeTokensOf", () => {
  it("is all that the device can where an expert is found in the cache again", () => {
    assert.equal(ofShape({ hiddenSize: 2048, intermediateSize: 1024, experts: 8, topK: 8 }), 4);
    assert.equal(ofShape({ experts: 16 }, { ...GPU, cacheBytes: 96 * MIB }), 4, "just half of it");
    assert.equal(
      ofShape({ experts: 16 }, { ...GPU, cacheBytes: 96 * MIB - 1 }),
      2,
      "just more than half",
    );
  });

  it("keeps to half as many choices as experts where they are larger", () => {
    assert.equal(ofShape({ experts: 31, topK: 4 }), 3, "4 tokens would make 16 choices");
    assert.equal(ofShape({ experts: 32, topK: 4 }), 4);
    assert.equal(ofShape({ experts: 256, topK: 8 }), 4, "never more than the device can");
    assert.equal(ofShape({ experts: 8, topK: 2 }), 2);
  });

  it("keeps to two where memory is fast and there is much to read", () => {
    assert.equal(ofShape({}, FAST), 2);
    assert.equal(ofShape({ experts: 8, topK: 8 }, FAST), 1, "never more than elsewhere");
    const small = { hiddenSize: 2048, intermediateSize: 768, experts: 128 };
    assert.equal(ofShape({ ...small, topK: 15 }, FAST), 2, "45 choices of 9 MiB");
    assert.equal(ofShape({ ...small, topK: 14 }, FAST), 4, "42");
    assert.equal(ofShape({}, { ...FAST, memoryBytesPerSecond: 3.9e12 }), 4);
  });

  it("is all that the device can where experts are packed", () => {
    assert.equal(ofShape({}, FAST, true), 4);
    assert.equal(ofShape({ experts: 8, topK: 2 }, GPU, true), 4);
    const spec = layerSpecOf(presetOf("large"), "bfloat16");
    const limited = { ...spec, router: { ...spec.router, capacityFactor: 1.25 } };
    assert.equal(decodeTokensOf(GPU, limited, true), 0, "but for what it does not know");
  });

  it("is one token at least, since a token's experts are distinct", () => {
    assert.equal(ofShape({ experts: 8, topK: 8 }), 1);
    assert.equal(ofShape({ experts: 1, topK: 1 }), 1);
  });

  it("asks no more of a device that does not tell its cache, or has no such operator", () => {
    const spec = layerSpecOf({ ...presetOf("mixtral-8x7b") }, "bfloat16");
    assert.equal(decodeTokensOf({ ...GPU, cacheBytes: null }, spec), 4);
    assert.equal(decodeTokensOf({ ...GPU, decodeTokens: 0 }, spec), 0);
  });

  it("is none of what the operator does not know", () => {
    const spec = layerSpecOf(presetOf("small"), "bfloat16");
    const limited = { ...spec, router: { ...spec.router, capacityFactor: 1.25 } };
    assert.equal(decodeTokensOf(GPU, limited), 0);
    assert.equal(decodeTokensOf(GPU, spec), 4);
    assert.equal(decodeTokensOf(GPU, { ...spec, aggregation: { mode: "concat" } as never }), 0);
  });
});
