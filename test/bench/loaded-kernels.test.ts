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
    selects: Readonly<Record<string, unknown>>,
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

test("kernels are those of an architecture, with an entry, that select what is asked for", () => {
  const own = ["sm_90a", "wgmma", "tma"];
  const many = (features: readonly string[], element: string) =>
    kernelsOf({ properties: { features } }, "project_many", { element });
  const names = many(own, "bfloat16");
  assert.ok(names.length > 0 && names.every((name) => /^project_\w+_bf16_many\d+$/.test(name)));
  assert.deepEqual(many(own, "float32"), []);
  assert.deepEqual(many(["sm_80"], "bfloat16"), []);
  const on = { properties: { features: own } };
  const general = kernelsOf(on, "route", { element: "float32", plain: false });
  assert.ok(general.length > 0 && general.every((name) => /^route_fp32_experts\d+$/.test(name)));
  assert.deepEqual(kernelsOf(on, "mark", {}), ["mark"]);
});
