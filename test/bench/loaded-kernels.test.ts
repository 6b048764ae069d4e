/** Which kernels a device has loaded, as bench/gpu/loaded-kernels.mjs tells it. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

interface FakeDriver {
  loadModule(image: Uint8Array): bigint;
}
interface Loaded {
  rememberImages(driver: FakeDriver): ReadonlySet<string>;
  kernelsOf(device: { properties: { features: readonly string[] } }, entry: string): string[];
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

test("kernels for many rows are those of the architecture that has some", () => {
  const on = (...features: string[]) => kernelsOf({ properties: { features } }, "project_many");
  const names = on("sm_90a", "wgmma", "tma");
  assert.ok(names.length > 0 && names.every((name) => /^project_\w+_many(128|64)$/.test(name)));
  assert.deepEqual(on("sm_80"), []);
});
