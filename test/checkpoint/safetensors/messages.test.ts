/** What errors repeat of a file: little, printable, and in plain words. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { SafetensorsFile } from "../../../src/checkpoint/safetensors/reader.ts";
import { quote, shapeText, shown } from "../../../src/errors/wording.ts";
import { CheckpointError } from "../../../src/errors.ts";
import { MemorySource, rawFile } from "../support.ts";

const openBytes = (bytes: Uint8Array) => {
  const source = new MemorySource(bytes);
  return SafetensorsFile.open(source.path, async () => source);
};

/** A sound entry of 8 bytes at the front of the data. */
const A = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
const EIGHT = new Uint8Array(8);

test("a name in a message is cut, quoted and printable, whichever tensor's it is", async () => {
  const hostile = `\u001b[31m\u0007\u202e\u009b\u{e0041}${"x".repeat(1e6)}`;
  const other = { ...A, data_offsets: [4, 12] };
  const cases = [
    rawFile({ [hostile]: A, b: other }, new Uint8Array(12)),
    rawFile({ b: { ...A, shape: hostile } }, EIGHT),
    rawFile({ __metadata__: { [hostile]: [hostile] } }),
    rawFile(`{"b":{"dtype":${"[".repeat(1e5)}${"]".repeat(1e5)}}}`),
  ];
  for (const bytes of cases) {
    await assert.rejects(openBytes(bytes), (error: Error) => {
      assert.ok(error instanceof CheckpointError);
      assert.doesNotMatch(error.message, /[\p{Cc}\p{Cf}]/u);
      assert.ok(error.message.length < 500, `${error.message.length} characters`);
      return true;
    });
  }
  const path = `\u001b[31m${"x".repeat(1e6)}`;
  const { message, file } = new CheckpointError("truncated", path, "is short.");
  assert.equal(file, path);
  assert.match(message, /^\\u001b\[31mx+\.\.\.: is short\.$/);
  assert.ok(message.length < 1200);
});

test("one byte is a byte, and an object is no a object", async () => {
  const message = async (bytes: Uint8Array) => {
    const refused = await openBytes(bytes).catch((error: Error) => error);
    assert.ok(refused instanceof CheckpointError);
    return refused.message;
  };
  assert.match(await message(new Uint8Array(1)), /is 1 byte long/);
  assert.match(await message(rawFile({ a: A }, new Uint8Array(7))), /take 8 bytes.* 1 byte early/);
  assert.match(await message(rawFile({ a: A }, new Uint8Array(9))), /1 byte more/);
  assert.match(await message(rawFile({ __metadata__: { a: {} } })), /has \{\} under "a"/);
});

test("quotes end where they should: at the limit, at the stack's end, at half a character", () => {
  assert.equal(quote("x".repeat(118)), `"${"x".repeat(118)}"`);
  assert.equal(quote("x".repeat(119)), `"${"x".repeat(115)}..."`);
  assert.equal(quote("\u007f".repeat(1e6)).length, 120);
  assert.equal(quote(undefined), "undefined");
  assert.equal(quote(JSON.parse(`{"a":${"[".repeat(1e5)}${"]".repeat(1e5)}}`)), "{...}");
  assert.doesNotMatch(quote(`${"x".repeat(119)}\u{1f600}`), /\p{Cs}/u);
  assert.equal(quote("Ω 漢"), '"Ω 漢"');
});

test("of a shape of a million extents the first are shown", () => {
  assert.equal(shapeText([2, 3]), "[2, 3]");
  assert.equal(shapeText(new Array(1e6).fill(1)), "[1, 1, 1, 1, 1, 1, 1, 1, ...]");
  const odd = [2, Symbol("x"), 3n, Object.create(null)] as unknown as number[];
  assert.equal(shapeText(odd), "[2, Symbol(x), 3n, [Object: null prototype] {}]");
});

test("any value is shown in one short line of printable characters", () => {
  assert.equal(shown("auto"), '"auto"');
  assert.equal(shown("a\n\u202e"), '"a\\n\\u202e"');
  const circular: Record<string, unknown> = {};
  circular["self"] = circular;
  const detached = new Int32Array(4);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  const wide = Object.fromEntries(Array.from({ length: 1e4 }, (_, i) => [`\u202ekey${i}`, i]));
  const values = [Symbol("x"), 1n, circular, Object.create(null), detached, wide, "x".repeat(1e5)];
  for (const value of values) {
    const text = shown(value);
    assert.ok(text.length < 3e3, `${text.length} characters`);
    assert.doesNotMatch(text, /[\n\p{Cc}\p{Cf}]/u);
  }
});
