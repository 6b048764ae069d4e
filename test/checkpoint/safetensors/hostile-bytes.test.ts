/** Files that are cut short, random or changed: read or refused in words, never worse. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CheckpointError, type CheckpointFault } from "../../../src/errors.ts";
import { openBytes, packFile, rawFile } from "../support.ts";

/** Opens and reads everything; anything but success or a CheckpointError is a failure. */
async function survives(bytes: Uint8Array): Promise<"read" | CheckpointFault> {
  try {
    await using file = await openBytes(bytes);
    for (const name of file.tensors.keys()) {
      await file.read(name).catch((error) => {
        if (!(error instanceof CheckpointError)) throw error;
      });
    }
    return "read";
  } catch (error) {
    if (error instanceof CheckpointError) return error.fault;
    throw error;
  }
}

const sample = packFile({
  "a.weight": { dtype: "BF16", shape: [3, 2] },
  "b.weight": { dtype: "F32", shape: [2] },
  c: { dtype: "I64", shape: [1] },
});

test("a file cut short anywhere is truncated", async () => {
  for (let length = 0; length < sample.byteLength; length++) {
    assert.equal(await survives(sample.subarray(0, length)), "truncated", `${length} bytes`);
  }
  assert.equal(await survives(sample), "read");
});

test("random bytes never pass and never crash", async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
      assert.notEqual(await survives(bytes), "read");
    }),
    { numRuns: 500 },
  );
});

test("random JSON under a sound length never crashes", async () => {
  const entry = fc.record(
    {
      dtype: fc.oneof(fc.constantFrom("F32", "BF16", "F4", "I64"), fc.anything()),
      shape: fc.oneof(fc.array(fc.integer({ min: -1, max: 4 }), { maxLength: 3 }), fc.anything()),
      data_offsets: fc.oneof(fc.tuple(fc.nat(40), fc.nat(40)), fc.anything()),
    },
    { requiredKeys: [] },
  );
  const header = fc.oneof(
    fc.jsonValue(),
    fc.dictionary(fc.string(), fc.oneof(entry, fc.jsonValue())),
  );
  const encode = (value: unknown) =>
    JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? `${inner}` : inner)) ?? "";
  await fc.assert(
    fc.asyncProperty(header, fc.uint8Array({ maxLength: 40 }), async (json, data) => {
      await survives(rawFile(encode(json), data));
    }),
    { numRuns: 1000 },
  );
});

test("a sound file with bytes changed is read or refused, never worse", async () => {
  const change = fc.tuple(fc.nat(sample.byteLength - 1), fc.nat(255));
  await fc.assert(
    fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), async (changes) => {
      const bytes = Uint8Array.from(sample);
      for (const [at, value] of changes) bytes[at] = value;
      await survives(bytes);
    }),
    { numRuns: 2000 },
  );
});
