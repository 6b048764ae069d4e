/** Numbers and text as people read them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  formatBytes,
  formatNumber,
  formatRanges,
  formatSeconds,
  formatShare,
  plural,
  wrap,
} from "../../../src/cli/terminal/format.ts";

test("numbers keep three significant digits, or all of the whole part", () => {
  for (const [value, text] of [
    [0, "0"],
    [7, "7"],
    [1234567, "1,234,567"],
    [1234.5, "1,235"],
    [123.45, "123"],
    [12.345, "12.3"],
    [1.2345, "1.23"],
    [0.12345, "0.123"],
    [0.0012345, "0.00123"],
    [-1.5, "-1.5"],
    [Number.POSITIVE_INFINITY, "Infinity"],
  ] as const) {
    assert.equal(formatNumber(value), text);
  }
});

test("bytes, seconds, shares and counts have units", () => {
  assert.equal(formatBytes(1023), "1,023 B");
  assert.equal(formatBytes(1536), "1.5 KiB");
  assert.equal(formatBytes(2 ** 32), "4 GiB");
  assert.equal(formatBytes(2 ** 52), "4,096 TiB");
  assert.equal(formatSeconds(2.5), "2.5 s");
  assert.equal(formatSeconds(0.0125), "12.5 ms");
  assert.equal(formatSeconds(42e-6), "42 us");
  assert.equal(formatShare(0.12345), "12.3 %");
  assert.equal(plural(1, "expert"), "1 expert");
  assert.equal(plural(0, "expert"), "0 experts");
});

test("runs of whole numbers are joined", () => {
  assert.equal(formatRanges([]), "");
  assert.equal(formatRanges([3]), "3");
  assert.equal(formatRanges([0, 1, 2, 3, 7, 9, 10]), "0-3, 7, 9-10");
});

test("wrapped lines fit, and nothing is lost", () => {
  const text =
    "It does what it says and says what it does, at some length and with a-rather-long-word.";
  for (const width of [8, 20, 40, 200]) {
    const lines = wrap(text, { width });
    for (const line of lines) assert.ok(line.length <= width, `${width}: "${line}"`);
    assert.equal(lines.join("").replaceAll(" ", ""), text.replaceAll(" ", ""));
  }
  assert.deepEqual(wrap("", { width: 10 }), []);
  assert.deepEqual(wrap("one two", { width: 100 }), ["one two"]);
});
