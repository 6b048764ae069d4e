/** Which kernels a device has loaded, as bench/gpu/loaded-kernels.mjs tells it. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

interface FakeDriver {
  loadModule(image: Uint8Array): bigint;
}
interface Loaded {
  rememberImages(driver: FakeDriver): ReadonlySet<string>;
  kernelsOf(
    device: { properties: { features: readonly string[] } },
    entry: string,
    elements: readonly string[],
  ): string[];
}

const file = new URL("../../../bench/gpu/loaded-kernels.mjs", import.meta.url);
const { rememberImages, kernelsOf }: Loaded = await import(file.href);

test("images are remembered on their way to the driver", () => {
  const given: Uint8Array[] = [];
  const driver: FakeDriver = { loadModule: (image) => BigInt(given.push(image)) };
  const images = rememberImages(driver);
  const image = Uint8Array.of(1, 2, 3);
  assert.equal(driver.loadModule(image), 1n);
  assert.deepEqual(given, [image]);
  assert.deepEqual([...images], [createHash("sha256").update(image).digest("hex")]);
});

test("kernels for many rows are those of the architecture that has some, and of the rows' types", () => {
  const on = (features: readonly string[], ...elements: string[]) =>
    kernelsOf({ properties: { features } }, "project_many", elements);
  const own = ["sm_90a", "wgmma", "tma"];
  const names = on(own, "bfloat16");
  assert.ok(names.length > 0 && names.every((name) => /^project_\w+_bf16_many\d+$/.test(name)));
  assert.equal(on(own, "bfloat16", "float16").length, 2 * names.length);
  assert.deepEqual(on(own, "float32"), []);
  assert.deepEqual(on(["sm_80"], "bfloat16"), []);
});
