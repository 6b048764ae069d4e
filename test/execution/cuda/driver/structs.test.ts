/** Layouts of the driver's structures: as cuda.h 12.8 has them, and as a C compiler here does. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  ACCESS_WINDOW,
  DEVICE_RESOURCE,
  KERNEL_NODE_PARAMS,
  LAUNCH_ATTRIBUTE,
  LAUNCH_CONFIG,
  TENSOR_MAP,
} from "../../../../src/execution/cuda/driver/structs.ts";
import { buildFake, cudaHeaders } from "./fake-cuda.ts";

/** Printed by a C program that included cuda.h 12.8, gcc 12 on x86-64. */
const HEADER_12_8 = [
  [56, 0, 4, 8, 12, 16, 20, 24, 32, 40, 48],
  [72, 0, 8],
  [32, 0, 8, 16, 20, 24],
  [72, 0, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64],
  [144, 0, 96],
  [128, 64],
];

/** Size first, then the offsets; the order of the constants is that of the fields. */
const OURS = [
  LAUNCH_CONFIG,
  LAUNCH_ATTRIBUTE,
  ACCESS_WINDOW,
  KERNEL_NODE_PARAMS,
  DEVICE_RESOURCE,
  TENSOR_MAP,
].map((struct) => Object.values(struct));

test("sizes and offsets are those of the header", () => {
  assert.deepEqual(OURS, HEADER_12_8);
});

const fake = buildFake();

test("and of the C compiler of this machine", { skip: typeof fake === "string" && fake }, () => {
  assert.ok(typeof fake !== "string");
  assert.deepEqual(fake.layout(), OURS.flat());
});

const headers = cudaHeaders();

test("and, with all prototypes, of NVIDIA's header itself", {
  skip: typeof headers === "string" ? headers : typeof fake === "string" && fake,
}, () => {
  assert.ok(typeof headers !== "string");
  const checked = buildFake(undefined, headers.folder);
  assert.ok(typeof checked !== "string");
  assert.deepEqual(checked.layout(), OURS.flat());
});
