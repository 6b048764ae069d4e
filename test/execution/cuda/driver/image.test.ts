/** Kernel images: whole ones pass, and no cut of one does. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { InvalidArgumentError } from "../../../../src/errors.ts";
import { checkModuleImage } from "../../../../src/execution/cuda/driver/image.ts";

/** The headers of a cubin with one program header and two sections, the second without bytes. */
function cubin(): Uint8Array {
  const bytes = new Uint8Array(64 + 56 + 32 + 128);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0x7f454c46);
  view.setBigUint64(32, 64n, true); // program headers
  view.setUint16(56, 1, true);
  view.setBigUint64(40, 152n, true); // section headers
  view.setUint16(60, 2, true);
  const [first, second] = [152, 216];
  view.setUint32(first + 4, 1, true);
  view.setBigUint64(first + 24, 120n, true);
  view.setBigUint64(first + 32, 32n, true);
  view.setUint32(second + 4, 8, true);
  view.setBigUint64(second + 24, 152n, true);
  view.setBigUint64(second + 32, 1n << 40n, true);
  return bytes;
}

test("a whole cubin passes, wherever it lies in its buffer", () => {
  checkModuleImage(cubin());
  const larger = new Uint8Array(1000);
  larger.set(cubin(), 100);
  checkModuleImage(larger.subarray(100, 100 + cubin().length));
});

test("every cut of it is refused", () => {
  const whole = cubin();
  for (let length = 0; length < whole.length; length++) {
    assert.throws(
      () => checkModuleImage(whole.subarray(0, length)),
      InvalidArgumentError,
      `${length} bytes`,
    );
  }
});

test("a section beyond the end is refused", () => {
  const image = cubin();
  new DataView(image.buffer).setBigUint64(152 + 32, 1n << 63n, true);
  assert.throws(() => checkModuleImage(image), /cut short/);
});

test("PTX is text with one zero byte, at its end", () => {
  checkModuleImage(Buffer.from(".version 8.0\0"));
  for (const text of ["", "\0", ".version 8.0", ".ver\0sion\0"]) {
    assert.throws(() => checkModuleImage(Buffer.from(text)), /no PTX/, JSON.stringify(text));
  }
});
